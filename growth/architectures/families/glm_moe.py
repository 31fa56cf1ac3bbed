"""Mixtures with DeepSeek-V3's experts behind other attention: GLM-4.5, dots1, Solar Open, EXAONE MoE, Kolibri."""

from dataclasses import replace

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Attention, Norms, attention_bias, gated_mlp, implied_head_dim, layer_types
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import SIZES, decoder
from growth.architectures.grouped_experts import (
    DENSE,
    EXPERT_SIZES,
    chosen_in_groups,
    corrected_router,
    counted,
    leading_dense,
    listed_dense,
    mlp_layer_types,
    shared_and_routed,
    without_prediction_layers,
)
from growth.architectures.mixtures import added, experts_key
from growth.architectures.rotary import rotary_channels, rotary_of_layers

USUAL = {key: axes for key, axes in SIZES.items() if axes != "ffn"}


@family
def glm4_moe(config: Config) -> Architecture:
    """Return the table of a GLM-4.5 or GLM-4.6: partial rotary embedding, and norms on queries and keys if stated."""
    mlp, sizes = leading_dense(config, (*corrected_router(), *shared_and_routed(config)), default=1)
    table = decoder(
        config,
        Attention(
            bias=(flag(config, "attention_bias", False), False),
            qk_norm="shared" if flag(config, "use_qk_norm", False) else "",
        ),
        mlp,
        Norms(eps_default=1e-5),
        sizes={**USUAL, **sizes},
        defaults={"heads": 8, "ffn": 1408, "experts": 128, "shared_experts": 1},
        rotary=rotary_channels(config, implied_head_dim(config), 0.5),
    )
    return without_prediction_layers(counted(chosen_in_groups(table, top_k=8), default=1), default=1)


@family
def dots1(config: Config) -> Architecture:
    """Return the table of a dots1: Qwen3's attention."""
    mlp, sizes = leading_dense(config, (*corrected_router(), *shared_and_routed(config, normalised=False)), default=0)

    def has_window(layer: int) -> bool:
        return config.get("sliding_window", 4096) is not None and layer >= size(
            config, "max_window_layers", 62, least=0
        )

    table = decoder(
        config,
        Attention(bias=attention_bias(config), qk_norm="shared"),
        mlp,
        sizes={**USUAL, **sizes},
        defaults={"heads": 32, "ffn": 1408},
        layer_types=layer_types(config, has_window),
    )
    return counted(chosen_in_groups(table, top_k=None), default=0)


@family
def solar_open(config: Config) -> Architecture:
    """Return the table of a Solar Open: Llama's attention, and experts in all layers."""
    table = decoder(
        config,
        Attention(bias=(flag(config, "attention_bias", False), False)),
        (*corrected_router(), *shared_and_routed(config)),
        Norms(eps_default=1e-5),
        sizes={**USUAL, **EXPERT_SIZES},
        defaults={"heads": 8, "head_dim": 128, "ffn": 1280, "experts": 128, "shared_experts": 1},
        bases=(("", "rope_theta", 1e6),),
    )
    return chosen_in_groups(table, top_k=8)


@family
def exaone_moe(config: Config) -> Architecture:
    """Return the table of an EXAONE MoE: Qwen3's attention, with RoPE in the layers with a sliding window alone."""
    mlp_kinds = mlp_layer_types(config, dense=size(config, DENSE, 1, least=0))
    router = corrected_router("mlp.e_score_correction_bias")
    mlp, sizes = listed_dense(config, (*router, *shared_and_routed(config)), mlp_kinds)
    own = {"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"}
    kinds = layer_types(config, lambda layer: (layer + 1) % size(config, "sliding_window_pattern", 4) != 0)
    rope = [kind == "sliding_attention" for kind in kinds]
    table = decoder(
        {key: value for key, value in config.items() if key != DENSE},  # which the list of kinds takes the place of
        Attention(qk_norm="shared"),
        mlp,
        Norms(eps_default=1e-5),
        sizes={**USUAL, **{own.get(key, key): axes for key, axes in sizes.items()}},
        defaults={"heads": 32, "ffn": 1024, "experts": 64, "shared_experts": 1},
        rotary=rotary_of_layers(rope, implied_head_dim(config)),
    )
    lists = {"layer_types": kinds, "mlp_layer_types": mlp_kinds}
    table = replace(chosen_in_groups(table, top_k=8), layer_lists=lists)
    return replace(without_prediction_layers(table), prediction={"mtp.": ""})


@family
def kolibri1(config: Config) -> Architecture:
    """Return the table of a Kolibri: norms around every branch, and RoPE in the layers with a sliding window alone.

    Experts are chosen by corrected scores before the sigmoids that are their weights. If sliding_window is null, RoPE
    applies to all layers.
    """
    kinds = layer_types(config, lambda layer: (layer + 1) % 5 != 0)
    rope = [kind == "sliding_attention" or config.get("sliding_window", 513) is None for kind in kinds]
    routed = gated_mlp("mlp.experts.{expert}")
    sizes = {
        "moe_intermediate_size": "ffn",
        "shared_expert_intermediate_size": "shared_ffn",
        experts_key(config): "experts",
    }
    table = decoder(
        config,
        Attention(qk_norm="shared"),
        (
            *corrected_router("moe.router.expert_bias"),
            *(routed if flag(config, "norm_topk_prob", False) else added(routed)),
            *gated_mlp("mlp.shared_experts", axis="shared_ffn"),
        ),
        Norms(after=("post_attn_norm", "post_ffn_norm")),
        sizes={**USUAL, **sizes},
        defaults={"heads": 4, "head_dim": 128, "ffn": 512, "shared_ffn": 512, "experts": 384},
        rotary=rotary_of_layers(rope, size(config, "head_dim", 128)),
        layer_types=kinds,
    )
    return chosen_in_groups(table, top_k=6, groups=None)
