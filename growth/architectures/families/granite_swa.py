"""Granite SWA and GraniteMoE SWA: Granite with attention sinks, windows, and a base of RoPE for each layer, or none."""

from dataclasses import replace

from growth.architectures.base import Architecture, Weight, family, linear
from growth.architectures.blocks import Attention, Norms, attention_bias, gated_mlp, implied_head_dim, layer_types
from growth.architectures.config import Config, flag, of_layers, size
from growth.architectures.decoder import SIZES, decoder
from growth.architectures.mixtures import mixture, stacked_mlp
from growth.architectures.rotary import rope, rotary_of_layers


@family
def granite_swa(config: Config) -> Architecture:
    """Return the table of a Granite SWA."""
    mlp = gated_mlp(bias=flag(config, "mlp_bias", False))
    return _with_windows(config, mlp, {}, Norms(eps_default=1e-5), default_tied=True, kv_heads=4)


@family
def granitemoe_swa(config: Config) -> Architecture:
    """Return the table of a GraniteMoE SWA: with an MLP that all tokens share, if shared_intermediate_size is not 0."""
    shared = size(config, "shared_intermediate_size", 0, least=0) > 0
    together = gated_mlp("shared_mlp", ("input_linear", "input_linear", "output_linear"), axis="shared_ffn")
    mlp = (
        *linear("block_sparse_moe.router", "experts", "normed"),
        *stacked_mlp("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"),
        *(together if shared else ()),
    )
    sizes = {"num_local_experts": "experts", **({"shared_intermediate_size": "shared_ffn"} if shared else {})}
    return mixture(_with_windows(config, mlp, sizes, Norms()), top_k=2)


def _with_windows(
    config: Config,
    mlp: tuple[Weight, ...],
    sizes: dict[str, str],
    norms: Norms,
    *,
    default_tied: bool = False,
    kv_heads: int | None = None,
) -> Architecture:
    kinds = layer_types(config, lambda layer: layer % 4 != 0)
    bases = of_layers(config, "layer_rope_theta", (int, float)) or [rope(config, "rope_theta", 1e4)] * len(kinds)
    table = decoder(
        config,
        Attention(bias=attention_bias(config), scaled=False, sinks="sinks"),
        mlp,
        norms,
        default_tied=default_tied,
        sizes={**SIZES, **sizes},
        defaults={"experts": 8, **({"heads": kv_heads} if kv_heads else {})},
        rotary=rotary_of_layers(bases, implied_head_dim(config)),
    )
    return replace(
        table, layer_lists={"layer_types": kinds, "layer_rope_theta": bases}, base_lists=("layer_rope_theta",)
    )
