"""Llama 4's text model: layers without RoPE, experts and an MLP that all tokens share.

A sigmoid of the score of each expert that is chosen multiplies the expert's input, and the outputs are added. So copies
of an expert have the same input, and their last weights are shares of the old one. Attention's temperature depends on
positions alone.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, Weight, WeightPart, family, linear, weight
from growth.architectures.blocks import Attention, Norms, attention_bias, gated_mlp, optional_head_dim
from growth.architectures.config import Config, flag, of_layers, size
from growth.architectures.decoder import SIZES, decoder
from growth.architectures.families.smollm3 import rope_layers
from growth.architectures.families.ungated import NO_QK_GAIN
from growth.architectures.mixtures import in_layers, mixture
from growth.architectures.rotary import rotary_of_layers
from growth.errors import ConfigError

NO_QK_EPS = "its eps is also that of the norms of queries and keys, whose input does not change"
PROJECTION = WeightPart("experts normed ffn", ("normed",))


@family
def llama4_text(config: Config) -> Architecture:
    """Return the table of a Llama 4."""
    depth = size(config, "num_hidden_layers")
    rope = rope_layers(config)
    kinds = of_layers(config, "layer_types") or ["chunked_attention" if each else "full_attention" for each in rope]
    sparse = _sparse_layers(config)
    dense = tuple(layer for layer in range(depth) if layer not in sparse)
    head_dim = optional_head_dim(config, 128)
    normed = flag(config, "use_qk_norm", True) and any(rope)
    usual = {key: axes for key, axes in SIZES.items() if axes != "ffn"}
    of_experts = {"intermediate_size": "ffn", "num_local_experts": "experts"} if sparse or not depth else {}
    table = decoder(
        config,
        Attention(bias=attention_bias(config)),
        (
            *(in_layers(_experts(), sparse) if of_experts else ()),
            *(in_layers(gated_mlp("feed_forward", axis="dense_ffn"), dense) if dense else ()),
        ),
        Norms(eps=None if normed else "rms_norm_eps", eps_default=1e-5),
        sizes={**usual, **of_experts, **({"intermediate_size_mlp": "dense_ffn"} if dense else {})},
        defaults={"heads": 8, "head_dim": head_dim, "ffn": 8192, "dense_ffn": 16384, "experts": 16},
        rotary=rotary_of_layers(rope, head_dim),
        bases=(("", "rope_theta", 5e5),),
        pairs="neighbours",
        layer_types=kinds,
    )
    table = replace(
        table,
        layer_lists={"layer_types": kinds, "no_rope_layers": rope},
        layer_sets={"moe_layers": sparse},
        no_rescale=NO_QK_EPS if normed else table.no_rescale,
    )
    if normed:
        table = table.with_axes(replace(table.axes["head_dim"], refusal=NO_QK_GAIN))
    return mixture(table, top_k=1) if "experts" in table.axes else table


def _experts() -> tuple[Weight, ...]:
    """Return the router, the experts in stacks, and the MLP beside them."""
    return (
        *linear("feed_forward.router", "experts", "normed"),
        Weight("feed_forward.experts.gate_up_proj", (PROJECTION, PROJECTION), fused=2),
        weight("feed_forward.experts.down_proj", "experts ffn residual", ("experts", "ffn"), branch_end=True),
        *gated_mlp("feed_forward.shared_expert"),
    )


def _sparse_layers(config: Config) -> tuple[int, ...]:
    """Return the layers that have experts."""
    listed, depth = config.get("moe_layers"), size(config, "num_hidden_layers")
    step = size(config, "interleave_moe_layer_step", 1)
    if listed is None:
        return tuple(range(step - 1, depth, step))
    if not isinstance(listed, list) or any(type(layer) is not int for layer in listed):
        raise ConfigError(f"config.json has moe_layers = {listed!r}; a list of layers is needed.")
    return tuple(layer for layer in range(depth) if layer in listed)
