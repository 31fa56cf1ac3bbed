"""Mellum 2: Qwen3-MoE's layers with a base of RoPE for each kind of attention, and dense layers where listed."""

from dataclasses import replace

from growth.architectures.base import Architecture, family, linear
from growth.architectures.blocks import Attention, attention_bias, gated_mlp, layer_types
from growth.architectures.config import Config
from growth.architectures.decoder import SIZES, decoder
from growth.architectures.grouped_experts import called, listed_dense, mlp_layer_types, without_prediction_layers
from growth.architectures.mixtures import experts_key, mixture
from growth.architectures.rotary import rope
from growth.errors import ConfigError

BASES = (("full_attention", "rope_theta", 5e5), ("sliding_attention", "rope_theta", 1e4))
PREDICTED = ("mtp_layer_types", "mtp_mlp_layer_types")  # the kinds of layers that the stock class does not run


@family
def mellum(config: Config) -> Architecture:
    """Return the table of a Mellum 2.

    Raises:
        ConfigError: RoPE covers a part of the head alone, or no layer has experts.
    """
    if rope(config, "partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError(
            f"config.json has partial_rotary_factor = {rope(config, 'partial_rotary_factor', 1.0)!r}: only Mellum "
            "models with RoPE on the whole head are supported. Remove it."
        )
    mlp_kinds = mlp_layer_types(config, dense=0)
    sparse = (*linear("mlp.gate", "experts", "normed"), *gated_mlp("mlp.experts.{expert}"))
    mlp, sizes = listed_dense(config, sparse, mlp_kinds)
    named = called(sizes, {"n_routed_experts": experts_key(config)})
    sizes = {key: axes for key, axes in named.items() if "shared" not in axes}
    table = decoder(
        {key: value for key, value in config.items() if key not in PREDICTED},
        Attention(bias=attention_bias(config), qk_norm="shared"),
        mlp,
        sizes={**{key: axes for key, axes in SIZES.items() if axes != "ffn"}, **sizes},
        defaults={"heads": 4, "head_dim": 128, "ffn": 896, "experts": 64},
        bases=BASES,
    )
    lists = {"layer_types": layer_types(config, lambda layer: False), "mlp_layer_types": mlp_kinds}
    table = mixture(table, top_k=8) if "experts" in table.axes else table
    return replace(without_prediction_layers(replace(table, layer_lists=lists)), prediction={"mtp.": ""})
