"""Families with latent attention: DeepSeek-V2, -V3 and -V3.2, GLM-4.7 Flash, GLM-5, A.X K1, Youtu and MiniCPM3."""

from dataclasses import dataclass, replace

from growth.architectures.base import Architecture, RotaryPairs, Weight, family, linear, norm, weight
from growth.architectures.blocks import Norms, gated_mlp
from growth.architectures.config import Config, flag, of_layers, size
from growth.architectures.families.llama import check_whole_heads
from growth.architectures.grouped_experts import (
    DENSE,
    chosen_in_groups,
    corrected_router,
    counted,
    leading_dense,
    listed_dense,
    mlp_layer_types,
    shared_and_routed,
    without_prediction_layers,
)
from growth.architectures.latent import ROTARY, LatentAttention, latent_decoder
from growth.errors import ConfigError

DEEPSEEK = {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
OF_INDEXER = "the indexer, which does not grow, has as many rotary channels. Widen qk_nope_head_dim instead."
SHARED = (
    "a layer of the indexer type 'shared' attends to the tokens that the last indexer before it has chosen, and a new "
    "layer would choose others."
)


@family
def deepseek_v3(config: Config) -> Architecture:
    """Return the table of a DeepSeek-V3 or Kimi K2: sigmoids as scores, corrected by a bias for the choice alone."""
    mlp, sizes = leading_dense(config, (*corrected_router(), *shared_and_routed(config)), default=3)
    table = latent_decoder(
        config,
        _attention(config),
        mlp,
        sizes=sizes,
        defaults={**DEEPSEEK, "heads": 128, "ffn": 2048, "experts": 256, "shared_experts": 1},
        pairs=_pairs(config),
    )
    table = chosen_in_groups(table, top_k=8, groups=(8, 4))
    return without_prediction_layers(counted(table, default=3), default=1)


@family
def deepseek_v2(config: Config) -> Architecture:
    """Return the table of a DeepSeek-V2: a softmax over all experts, of which the best are chosen, or in groups."""
    method, mlp_bias = config.get("topk_method", "greedy"), flag(config, "mlp_bias", False)
    if method not in ("greedy", "group_limited_greedy"):
        raise ConfigError(
            f"config.json has topk_method = {method!r}, and a stock DeepSeek-V2 has only greedy and "
            "group_limited_greedy. State the one that the model was trained with."
        )
    check_whole_heads(config, "DeepSeek-V2")
    sparse = (*linear("mlp.gate", "experts", "normed"), *shared_and_routed(config, softmax=True, shared_bias=mlp_bias))
    mlp, sizes = leading_dense(config, sparse, default=0, bias=mlp_bias)
    table = latent_decoder(
        config,
        _attention(config),
        mlp,
        sizes=sizes,
        defaults={**DEEPSEEK, "ffn": 1407, "experts": 64, "shared_experts": 2},
    )
    for key in ("kv_lora_rank", "qk_nope_head_dim"):
        if table.axes[key].size % 2:
            raise ConfigError(
                f"config.json has {key} = {table.axes[key].size}: a stock DeepSeek-V2 takes rotary channels as complex "
                "numbers from what follows them in memory, so an even number is needed."
            )
    groups = None if method == "greedy" else (None, None)
    return counted(chosen_in_groups(table, top_k=None, groups=groups, others_weigh=False), default=0)


@family
def glm4_moe_lite(config: Config) -> Architecture:
    """Return the table of a GLM-4.7 Flash: DeepSeek-V3's weights, with a list of the layers' kinds."""
    kinds = mlp_layer_types(config, dense=1)
    sparse = (*corrected_router(), *shared_and_routed(config))
    defaults = {
        **DEEPSEEK,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "heads": 20,
        "ffn": 1536,
        "experts": 64,
        "shared_experts": 1,
    }
    attention = _attention(config, query_rank=768)
    return chosen_in_groups(_listed(config, attention, sparse, kinds, Norms(eps_default=1e-5), defaults), top_k=4)


@family
def youtu(config: Config) -> Architecture:
    """Return the table of a Youtu: DeepSeek-V3's attention in a dense model."""
    config = {key: value for key, value in config.items() if key != "initializer_range" or value is not None}
    table = latent_decoder(
        config,
        _attention(config),
        defaults={**DEEPSEEK, "heads": 16},
        pairs=_pairs(config),
        default_tied=True,
    )
    return replace(table, initial_std=("initializer_range", 2 / (5 * table.axes["residual"].size) ** 0.5))


@family
def minicpm3(config: Config) -> Architecture:
    """Return the table of a MiniCPM3: DeepSeek's attention, and branches and logits scaled by depth and width.

    What a layer adds is divided by the root of the number of layers, and the head's input by hidden_size, each over a
    number of the config, which counts the layers or channels if it is null.
    """
    check_whole_heads(config, "MiniCPM3")
    bias = flag(config, "mlp_bias", False)
    table = latent_decoder(
        config,
        _attention(config, query_rank=768),
        gated_mlp(bias=bias),
        Norms(eps_default=1e-5),
        defaults={
            "q_lora_rank": 768,
            "kv_lora_rank": 256,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32,
            "v_head_dim": size(config, "hidden_size") // size(config, "num_attention_heads"),
            "heads": 40,
        },
        pairs="halves",
        default_tied=True,
        logits_scaled=config.get("dim_model_base", 256) is not None,
    )
    return replace(table, depth_roots={"scale_depth": 1.4} if config.get("scale_depth", 1.4) is not None else {})


def _attention(config: Config, query_rank: int = DEEPSEEK["q_lora_rank"]) -> LatentAttention:
    """Return the attention of a config; a q_lora_rank of null stands for queries of full rank."""
    bias = flag(config, "attention_bias", False)
    return LatentAttention(config.get("q_lora_rank", query_rank) is not None, (bias, bias))


def _pairs(config: Config) -> RotaryPairs:
    """Return which rotary channels of a config are a pair."""
    return "neighbours" if flag(config, "rope_interleave", True) else "halves"


@family
def axk1(config: Config) -> Architecture:
    """Return the table of an A.X K1: DeepSeek-V3's weights, and a norm on the output of all experts together."""
    leading, step = size(config, DENSE, 1, least=0), size(config, "moe_layer_freq", 1)
    depth = size(config, "num_hidden_layers")
    implied = ["dense" if at < leading or at % step else "sparse" for at in range(depth)]
    experts = (*corrected_router(), *shared_and_routed(config))
    sparse = (
        *(replace(one, branch_end=False) for one in experts),
        *norm("post_mlp_layernorm", "residual", "residual", bias=False, branch_end=True),
    )
    defaults = {**DEEPSEEK, "heads": 64, "ffn": 2048, "experts": 192, "shared_experts": 1}
    kinds = of_layers(config, "mlp_layer_types") or implied
    stated = {key: value for key, value in config.items() if key not in (DENSE, "moe_layer_freq")}
    return chosen_in_groups(
        _listed(stated, _attention(config), sparse, kinds, Norms(), defaults), top_k=8, groups=(8, 4)
    )


def _listed(
    config: Config,
    attention: LatentAttention,
    sparse: tuple[Weight, ...],
    kinds: list[str],
    norms: Norms,
    defaults: dict[str, int],
) -> Architecture:
    """Return the table of a mixture that lists the kinds of its MLPs. sparse: the weights of a layer with experts."""
    mlp, sizes = listed_dense(config, sparse, kinds)
    table = latent_decoder(config, attention, mlp, norms, sizes=sizes, defaults=defaults, pairs=_pairs(config))
    return replace(without_prediction_layers(table), layer_lists={"mlp_layer_types": kinds})


@dataclass(frozen=True)
class IndexedAttention(LatentAttention):
    """Latent attention to the tokens that an indexer has chosen (DeepSeek-V3.2, arXiv 2512.02556, section 2.1).

    The indexer reads what queries and keys read. It has heads and channels of its own, which do not grow, so a grown
    model chooses the same tokens. The stock class computes it without gradients: what reads new channels there stays as
    it is written, until the indexer is trained by other code.

    heads, channels: of the indexer. indexers: the layers that have one; None for all.
    """

    heads: int = 64
    channels: int = 128
    indexers: tuple[int, ...] | None = None

    def weights(self, norm_offset: float = 0.0) -> tuple[Weight, ...]:
        """Return those of latent attention, and the indexer's."""
        own = f"{self.name}.indexer"
        indexer = (
            *linear(f"{own}.wq_b", str(self.heads * self.channels), "query_latent"),
            *linear(f"{own}.wk", str(self.channels), "normed"),
            *(weight(f"{own}.k_norm.{each}", str(self.channels)) for each in ("weight", "bias")),
            *linear(f"{own}.weights_proj", str(self.heads), "normed"),
        )
        return (*super().weights(norm_offset), *(replace(one, layers=self.indexers) for one in indexer))


@family
def deepseek_v32(config: Config) -> Architecture:
    """Return the table of a DeepSeek-V3.2: DeepSeek-V3's weights, and indexers that choose what is attended to."""
    defaults = {**DEEPSEEK, "heads": 128}
    return chosen_in_groups(_indexed(config, Norms(), 64, defaults), top_k=8, groups=(8, 4))


@family
def glm_moe_dsa(config: Config) -> Architecture:
    """Return the table of a GLM-5: DeepSeek-V3.2's weights, and an indexer whose choice later layers may share."""
    depth = size(config, "num_hidden_layers")
    stated = of_layers(config, "indexer_types", spare=not depth)
    kinds = stated or ["full"] * depth
    patterns = [key for key, no in (("index_topk_pattern", None), ("index_topk_freq", 1)) if config.get(key, no) != no]
    if (patterns and not stated) or {*kinds} - {"full", "shared"}:
        wrong = "indexer_types" if stated else patterns[0]
        raise ConfigError(
            f"config.json has {wrong} = {config[wrong]!r}; state indexer_types, 'full' or 'shared' for each layer."
        )
    defaults = {**DEEPSEEK, "q_lora_rank": 2048, "qk_nope_head_dim": 192, "v_head_dim": 256, "heads": 64}
    full = tuple(layer for layer, kind in enumerate(kinds) if kind == "full") if "shared" in kinds else None
    table = _indexed(config, Norms(eps_default=1e-5), 32, defaults, full)
    listed = {**table.layer_lists, "indexer_types": kinds}
    table = replace(table, layer_lists=listed, no_identity=SHARED if "shared" in kinds else "")
    return chosen_in_groups(table, top_k=8)


def _indexed(
    config: Config, norms: Norms, heads: int, defaults: dict[str, int], indexers: tuple[int, ...] | None = None
) -> Architecture:
    """Return the table of a mixture with indexers. heads: of an indexer whose config states no number."""
    if config.get("q_lora_rank", 0) is None:
        raise ConfigError(
            "config.json has q_lora_rank = None, and an indexer reads the latent of the queries: state it."
        )
    bias = flag(config, "attention_bias", False)
    own = size(config, "index_n_heads", heads), size(config, "index_head_dim", 128)
    attention = IndexedAttention(True, (bias, bias), "self_attn", *own, indexers)
    sparse = (*corrected_router(), *shared_and_routed(config))
    kinds = mlp_layer_types(config, dense=size(config, DENSE, 3, least=0))
    read = {key: value for key, value in config.items() if key != "rope_interleave"}  # the class pairs neighbours
    defaults = {**defaults, "ffn": 2048, "experts": 256, "shared_experts": 1}
    table = _listed(read, attention, sparse, kinds, norms, defaults)
    depth = len(kinds)
    caches = of_layers(config, "layer_types", spare=not depth) or ["indexed_attention"] * depth
    table = replace(table, layer_lists={**table.layer_lists, "layer_types": caches})
    return table.with_axes(replace(table.axes[ROTARY], refusal=OF_INDEXER))
