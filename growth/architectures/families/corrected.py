"""Mixtures whose router corrects its scores by a bias, for the choice of experts alone: MiniMax, ERNIE 4.5."""

from dataclasses import replace
from functools import partial

from growth.architectures.base import Architecture, Axis, family, linear, norm, weight
from growth.architectures.blocks import Attention, Mixer, Norms, gated_mlp, in_layers, layers_of, optional_head_dim
from growth.architectures.config import Config, flag, of_layers, size
from growth.architectures.decoder import SIZES, decoder
from growth.architectures.grouped_experts import called, corrected_router, listed_dense, mlp_layer_types, with_dense
from growth.architectures.mixtures import mixture, stacked_mlp
from growth.architectures.rotary import rope, rotary_channels
from growth.errors import ConfigError

USUAL = {key: axes for key, axes in SIZES.items() if axes != "ffn"}
M3_SIZES = {
    "moe_intermediate_size": "ffn",
    "num_local_experts": "experts",
    "shared_intermediate_size": "shared_ffn",
}
M3_NAMES = {"intermediate_size": "dense_intermediate_size", "moe_intermediate_size": "intermediate_size"}
SPARSE = "minimax_m3_sparse"
FUSED_MLP = partial(gated_mlp, projections=("gate_up_proj", "gate_up_proj", "down_proj"))
CHOSEN = (
    "the indexer only chooses which blocks of tokens are attended to, so its channels never have a gradient. Widen "
    "head_dim instead."
)
AS_MANY = "RoPE covers as many channels of an indexer as of a head, and the indexer's do not grow."
# older keys, which the class replaces
REPLACED = {"sparse_attention_config": "layer_types and index_n_heads", "moe_layer_freq": "mlp_layer_types"}


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
def minimax_m3_vl_text(config: Config) -> Architecture:
    """Return the table of the text model of a MiniMax-M3: indexers in some layers, and experts beside an MLP."""
    older = next((key for key in REPLACED if config.get(key) is not None), None)
    if older is not None:
        raise ConfigError(
            f"config.json has {older}, which transformers replaces by {REPLACED[older]}. Load the config with "
            "transformers and save it."
        )
    depth, head_dim = size(config, "num_hidden_layers"), size(config, "head_dim", 128)
    kinds = of_layers(config, "layer_types", spare=not depth) or ["full_attention"] * depth
    if rope(config, "rope_theta", None) is None:
        config = {**config, "rope_theta": 5e6}
    rotary = rotary_channels(config, head_dim, 1.0)
    mlp_kinds, indexed = mlp_layer_types(config, dense=0), layers_of(kinds, SPARSE)
    sparse = (
        *corrected_router(),
        *stacked_mlp("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
        *FUSED_MLP("mlp.shared_experts", axis="shared_ffn"),
    )
    mlp, sizes = listed_dense(config, sparse, mlp_kinds, sizes=M3_SIZES, mlp=FUSED_MLP)
    table = decoder(
        config,
        Attention(qk_norm="shared"),
        mlp,
        Norms(offset=1.0),
        sizes={**USUAL, **called(sizes, M3_NAMES)},
        defaults={
            "heads": 4,
            "head_dim": head_dim,
            "ffn": 3072 if "experts" in sizes.values() else 12288,
            "dense_ffn": 12288,
            "shared_ffn": 3072,
            "experts": 128,
        },
        rotary=rotary,
        mixer=_block_indexer(config, indexed, rotary) if indexed else Mixer((), (), {}),
    )
    lists = {"layer_types": kinds, "mlp_layer_types": mlp_kinds}
    table = replace(table, layer_lists=lists)
    if indexed:
        table = table.with_axes(replace(table.axes["head_dim"], one_stride=AS_MANY))
    return mixture(table, top_k=4) if "experts" in table.axes else table


def _block_indexer(config: Config, layers: tuple[int, ...], rotary: int) -> Mixer:
    """Return the indexers of some layers: each of their heads chooses the blocks of tokens that a KV head reads.

    rotary: number of rotary channels of a head.

    Raises:
        ConfigError: an indexer has another number of heads.
    """
    heads, needed = size(config, "index_n_heads", 4), size(config, "num_key_value_heads", 4)
    if heads != needed:
        raise ConfigError(
            f"config.json has index_n_heads = {heads} and num_key_value_heads = {needed}: only models whose indexers "
            "have a head for each KV head are supported. State the same number twice."
        )
    name, channels, chosen = "self_attn.indexer", "index_head_dim", "index_channels"
    width = size(config, channels, 128)
    weights = (
        *linear(f"{name}.q_proj", f"(heads {channels})", "normed"),
        *linear(f"{name}.k_proj", channels, "normed", also_reads=(chosen,)),
        *norm(f"{name}.q_norm", channels, chosen, bias=False, offset=1.0),
        *norm(f"{name}.k_norm", channels, chosen, bias=False, offset=1.0, reads=(chosen,)),
    )
    return Mixer(
        in_layers(layers, *weights),
        (Axis(channels, width, norm="rms", fixed=min(rotary, width), refusal=CHOSEN),),
        {"index_n_heads": "heads", channels: channels},
        {chosen: (channels, "normed")},
    )


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
    table = decoder(
        config,
        Attention(bias=(bias, bias)),
        mlp,
        Norms(eps_default=1e-5),
        default_tied=True,
        head_bias=bias,
        sizes={**USUAL, **sizes},
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
