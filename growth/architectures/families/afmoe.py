"""AFMoE (Arcee Trinity) and Hy3: sigmoids as scores, corrected by a bias for the choice alone, normalised.

In AFMoE, a sigmoid of a projection of the stream multiplies what the heads read (`gate`), and RoPE applies to the
layers with a sliding window alone.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, Weight, family, linear, weight
from growth.architectures.blocks import (
    Attention,
    Norms,
    alternating_layers,
    attention_bias,
    gated_mlp,
    implied_head_dim,
    optional_head_dim,
)
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import SIZES, decoder
from growth.architectures.grouped_experts import (
    called,
    chosen_in_groups,
    counted,
    leading_dense,
    listed_dense,
    mlp_layer_types,
    without_prediction_layers,
)
from growth.architectures.rotary import rotary_of_layers

USUAL = {key: axes for key, axes in SIZES.items() if axes != "ffn"}


@family
def afmoe(config: Config) -> Architecture:
    """Return the table of an AFMoE: norms before and behind its branches."""
    key = "num_dense_layers"
    mlp, sizes = leading_dense(config, _experts("mlp.shared_experts"), default=1, key=key)
    kinds = alternating_layers(config, size(config, "global_attn_every_n_layers", 4))
    head_dim = optional_head_dim(config, 128)
    table = decoder(
        config,
        Attention(bias=attention_bias(config), qk_norm="shared", gate="gate_proj"),
        mlp,
        Norms(
            before=("input_layernorm", "pre_mlp_layernorm"),
            after=("post_attention_layernorm", "post_mlp_layernorm"),
            eps_default=1e-5,
        ),
        embed_scaled=flag(config, "mup_enabled", False),
        sizes={**USUAL, **called(sizes)},
        defaults={"head_dim": head_dim, "ffn": 1408, "experts": 64, "shared_experts": 2},
        rotary=rotary_of_layers(
            [kind == "sliding_attention" for kind in kinds], implied_head_dim({**config, "head_dim": head_dim})
        ),
        layer_types=kinds,
    )
    return counted(chosen_in_groups(table, top_k=6, groups=None), default=1, key=key)


@family
def hy_v3(config: Config) -> Architecture:
    """Return the table of a Hy3: Qwen3's attention, and MLPs with biases where stated, but for the experts'."""
    bias, kinds = flag(config, "mlp_bias", False), mlp_layer_types(config, dense=1)
    mlp, sizes = listed_dense(config, _experts("mlp.shared_mlp", bias=bias), kinds, bias=bias)
    table = decoder(
        config,
        Attention(bias=attention_bias(config), qk_norm="shared"),
        mlp,
        Norms(eps_default=1e-5),
        sizes={**USUAL, **called(sizes)},
        defaults={"heads": 8, "head_dim": 128, "ffn": 1536, "experts": 192, "shared_experts": 1},
        bases=(("", "rope_theta", 11158840.0),),
    )
    table = chosen_in_groups(table, top_k=8, groups=None)
    return without_prediction_layers(replace(table, layer_lists={"mlp_layer_types": kinds}))


def _experts(shared: str, *, bias: bool = False) -> tuple[Weight, ...]:
    """Return a router with its correction, the experts, and the MLP that stands for those of all tokens."""
    return (
        *linear("mlp.router.gate", "experts", "normed"),
        weight("mlp.expert_bias", "experts"),
        *gated_mlp("mlp.experts.{expert}"),
        *gated_mlp(shared, bias=bias, axis="(shared_experts ffn)"),
    )
