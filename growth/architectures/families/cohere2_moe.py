"""Cohere2 MoE (Command A+): Cohere2's parallel branches with experts, and dense layers where listed."""

from dataclasses import replace

from growth.architectures.base import Architecture, Weight, family, linear
from growth.architectures.blocks import Attention, Norms, attention_bias, gated_mlp, layer_norms, layer_types
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import SIZES, decoder
from growth.architectures.grouped_experts import DENSE, called, chosen_in_groups, listed_dense, mlp_layer_types
from growth.architectures.mixtures import added
from growth.architectures.rotary import rotary_of_layers
from growth.errors import ConfigError

WIDTHS = {"intermediate_size": "prefix_dense_intermediate_size", "moe_intermediate_size": "intermediate_size"}


@family
def cohere2_moe(config: Config) -> Architecture:
    """Return the table of a Cohere2 MoE: LayerNorms without bias, or RMSNorms if rms_norm_eps is stated.

    RoPE applies to the layers with a sliding window, and to all dense ones unless these have windows, too.
    """
    leading, dense_step = size(config, DENSE, 0, least=0), size(config, "prefix_dense_sliding_window_pattern", 1)
    step = size(config, "sliding_window_pattern", 4)

    def has_window(layer: int) -> bool:
        return (layer + 1) % dense_step != 0 if layer < leading else (layer - leading + 1) % step != 0

    kinds, mlp_kinds = layer_types(config, has_window), mlp_layer_types(config, dense=leading)
    rope = [
        attends == "sliding_attention" or (mlp == "dense" and dense_step == 1)
        for attends, mlp in zip(kinds, mlp_kinds, strict=True)
    ]
    shared = size(config, "num_shared_experts", 0, least=0) > 0
    config = {key: value for key, value in config.items() if key != DENSE}  # which the lists take the place of
    if "dense" in mlp_kinds and config.get("prefix_dense_intermediate_size") is None:
        config["prefix_dense_intermediate_size"] = size(config, "intermediate_size")
    mlp, sizes = listed_dense(config, _experts(config, shared=shared), mlp_kinds)
    sizes = {key: axes for key, axes in called(called(sizes), WIDTHS).items() if shared or axes != "shared_experts"}
    rms = config.get("rms_norm_eps") is not None
    norms = Norms(("input_layernorm",)) if rms else layer_norms("input_layernorm", bias=False)
    table = decoder(
        config,
        Attention(bias=attention_bias(config)),
        mlp,
        norms,
        default_tied=True,
        sizes={**{key: axes for key, axes in SIZES.items() if axes != "ffn"}, **sizes},
        defaults={"head_dim": 128, "experts": 8},
        rotary=rotary_of_layers(rope, size(config, "head_dim", 128)),
        pairs="neighbours",
    )
    table = chosen_in_groups(table, top_k=2, groups=None)
    return replace(table, layer_lists={"layer_types": kinds, "mlp_layer_types": mlp_kinds})


def _experts(config: Config, *, shared: bool) -> tuple[Weight, ...]:
    """Return the router, the experts, whose weights may not sum to 1, and the MLP that all tokens share.

    Raises:
        ConfigError: other weights than a softmax or sigmoids.
    """
    scores = config.get("expert_selection_fn", "softmax")
    if scores not in ("softmax", "sigmoid"):
        raise ConfigError(f"config.json has expert_selection_fn = {scores!r}: only softmax and sigmoid are known.")
    routed = gated_mlp("mlp.experts.{expert}")
    whole = scores == "softmax" or flag(config, "norm_topk_prob", True)
    return (
        *linear("mlp.gate", "experts", "normed"),
        *(routed if whole else added(routed)),
        *(gated_mlp("mlp.shared_experts", axis="(shared_experts ffn)") if shared else ()),
    )
