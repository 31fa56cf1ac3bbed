"""Qwen3-Next and the text models of Qwen3.5: gated delta networks in most layers, attention with gates in the others.

The gate of a query head's output stands behind its query in q_proj. A part of each head is rotary.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, Weight, family, linear
from growth.architectures.blocks import Attention, Norms, attention_bias, gated_mlp, in_layers, layers_of
from growth.architectures.config import Config, size
from growth.architectures.decoder import SIZES, decoder
from growth.architectures.delta_net import delta_net, kinds_of_layers
from growth.architectures.families.moe import sparse_layers
from growth.architectures.grouped_experts import called, with_dense
from growth.architectures.mixtures import mixture
from growth.architectures.rotary import rotary_channels

INTERVAL = "full_attention_interval"
JOINT = dict.fromkeys("qkvz", "in_proj_qkvz") | dict.fromkeys("ba", "in_proj_ba")
SPLIT = dict.fromkeys("qkv", "in_proj_qkv") | {part: f"in_proj_{part}" for part in "zba"}
USUAL = {key: axes for key, axes in SIZES.items() if axes != "ffn"}
SHARED = {"shared_expert_intermediate_size": "shared_ffn"}


@family
def qwen3_next(config: Config) -> Architecture:
    """Return the table of a Qwen3-Next: experts, one of which all tokens share, or a dense MLP in some layers."""
    dense, _ = sparse_layers(config)
    mlp, sizes = with_dense(config, _experts(), dense)
    sizes = {
        key: axes
        for key, axes in called(sizes, {"n_routed_experts": "num_experts"}).items()
        if axes != "shared_experts"
    }
    config = {**config, "decoder_sparse_step": 1, "mlp_only_layers": list(dense)} if dense else config
    table = _table(config, mlp, {**sizes, **SHARED}, JOINT, kv_heads=2, within=("ssm_groups",))
    table = replace(table, layer_sets={"mlp_only_layers": dense} if dense else {})
    return mixture(table, top_k=10) if "experts" in table.axes else table


@family
def qwen3_5_text(config: Config) -> Architecture:
    """Return the table of the text model of a Qwen3.5."""
    return _table(config, gated_mlp(), {"intermediate_size": "ffn"}, SPLIT, kv_heads=4, ffn=12288)


@family
def qwen3_5_moe_text(config: Config) -> Architecture:
    """Return the table of the text model of a Qwen3.5-MoE: experts in all layers."""
    sizes = {"moe_intermediate_size": "ffn", "num_experts": "experts", **SHARED}
    return mixture(_table(config, _experts(), sizes, SPLIT, kv_heads=2, experts=256), top_k=8)


def _table(
    config: Config,
    mlp: tuple[Weight, ...],
    sizes: dict[str, str],
    projections: dict[str, str],
    *,
    kv_heads: int,
    ffn: int = 512,
    experts: int = 512,
    within: tuple[str, ...] = (),
) -> Architecture:
    step = size(config, INTERVAL, 4)
    kinds = kinds_of_layers(config, lambda layer: (layer + 1) % step == 0)
    attending, others = layers_of(kinds, "full_attention"), layers_of(kinds, "linear_attention")
    mixer = delta_net(config, "linear_attn", projections, within=within)
    table = decoder(
        {key: value for key, value in config.items() if key != INTERVAL},  # which the list takes the place of
        Attention(
            bias=attention_bias(config),
            within=("heads", "queries"),
            qk_norm="shared",
            gate="q_proj",
            layers=attending,
        ),
        mlp,
        Norms(offset=1.0),
        sizes={**USUAL, **sizes},
        defaults={"heads": kv_heads, "head_dim": 256, "ffn": ffn, "shared_ffn": 512, "experts": experts},
        rotary=rotary_channels(config, size(config, "head_dim", 256), 0.25),
        layer_types=kinds,
        mixer=replace(mixer, weights=in_layers(others, *mixer.weights)),
    )
    return replace(table, prediction={"mtp.": ""})


def _experts() -> tuple[Weight, ...]:
    return (
        *linear("mlp.gate", "experts", "normed"),
        *gated_mlp("mlp.experts.{expert}"),
        *gated_mlp("mlp.shared_expert", axis="shared_ffn"),
        *linear("mlp.shared_expert_gate", "1", "normed"),
    )
