"""Mixtures whose router corrects its scores by a bias, for the choice of experts alone: minimax_m2, ernie4_5_moe."""

from dataclasses import replace

from growth.architectures.base import Architecture, family, linear, weight
from growth.architectures.blocks import Attention, Norms, gated_mlp, optional_head_dim
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import SIZES, decoder
from growth.architectures.grouped_experts import with_dense
from growth.architectures.mixtures import mixture
from growth.architectures.rotary import rope, rotary_channels
from growth.errors import ConfigError


@family
def minimax_m2(config: Config) -> Architecture:
    """Return the table of a MiniMax-M2: sigmoids as scores, corrected by a bias for the choice alone, normalised."""
    head_dim = optional_head_dim(config, 128)
    if config.get("rotary_dim") is not None:  # of the published configs
        config = {"partial_rotary_factor": size(config, "rotary_dim") / head_dim, **config}
    if rope(config, "rope_theta", None) is None:
        config = {**config, "rope_theta": 5e6}
    table = decoder(
        config,
        Attention(qk_norm="across"),
        (
            *linear("block_sparse_moe.gate", "experts", "normed"),
            weight("block_sparse_moe.e_score_correction_bias", "experts"),
            *gated_mlp("block_sparse_moe.experts.{expert}", ("w1", "w3", "w2")),
        ),
        sizes={**SIZES, "num_local_experts": "experts"},
        defaults={"heads": 8, "head_dim": head_dim, "experts": 256},
        rotary=rotary_channels(config, head_dim, 1.0),
    )
    return replace(mixture(table, top_k=8), rotary_key="rotary_dim" if "rotary_dim" in config else "")


@family
def ernie4_5_moe(config: Config) -> Architecture:
    """Return the table of an ERNIE 4.5 MoE: leading dense layers, a bias that corrects the choice of experts alone."""
    bias = flag(config, "use_bias", False)
    config, dense = _leading(config)
    shared = size(config, "moe_num_shared_experts", 2, least=0) > 0
    sparse = (
        *linear("mlp.gate", "experts", "normed"),
        weight("mlp.moe_statics.e_score_correction_bias", "1 likely_experts"),
        *gated_mlp("mlp.experts.{expert}"),
        *(gated_mlp("mlp.shared_experts", bias=bias, axis="(shared_experts ffn)") if shared else ()),
    )
    sizes = {"moe_intermediate_size": "ffn", "moe_num_experts": "experts"}
    sizes |= {"moe_num_shared_experts": "shared_experts"} if shared else {}
    mlp, sizes = with_dense(config, sparse, range(dense), bias=bias, sizes=sizes)
    usual = {key: axes for key, axes in SIZES.items() if axes != "ffn"}
    table = decoder(
        config,
        Attention(bias=(bias, bias)),
        mlp,
        Norms(eps_default=1e-5),
        default_tied=True,
        head_bias=bias,
        sizes={**usual, **sizes},
        defaults={"heads": 4, "ffn": 1536, "experts": 64, "shared_experts": 2},
        bases=(("", "rope_theta", 5e5),),
        pairs="neighbours",
    )
    table = replace(table, layer_counts={"moe_layer_start_index": dense})
    if "experts" not in table.axes:
        return table
    likely = ("experts", "among_all")  # the bias is added to probabilities
    return replace(mixture(table, 6, "moe_k"), spaces={**table.spaces, "likely_experts": likely})


def _leading(config: Config) -> tuple[Config, int]:
    """Return a config whose layers have experts up to the last one, and the number of dense layers in front of them.

    Raises:
        ConfigError: dense layers follow.
    """
    depth, first = size(config, "num_hidden_layers"), size(config, "moe_layer_start_index", 1, least=0)
    last, step = config.get("moe_layer_end_index", -1), size(config, "moe_layer_interval", 1)
    if type(last) is not int or -1 < last < depth - 1 or step != 1:
        raise ConfigError(
            f"config.json has moe_layer_start_index = {first}, moe_layer_end_index = {last!r} and moe_layer_interval = "
            f"{step}: ERNIE 4.5 models of {depth} layers are supported whose layers from one on all have experts."
        )
    return {**config, "moe_layer_end_index": -1}, first
