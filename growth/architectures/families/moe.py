"""Mixtures of experts with a softmax over all of them: mixtral, qwen2_moe, qwen3_moe, olmoe, granitemoe(shared)."""

from dataclasses import replace

from growth.architectures.base import Architecture, Weight, family, linear
from growth.architectures.blocks import (
    Attention,
    Norms,
    attention_bias,
    check_square,
    gated_mlp,
    layer_norms,
    layer_types,
)
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import SIZES, decoder
from growth.architectures.families.olmo import AFTER
from growth.architectures.mixtures import experts_key, in_layers, mixture, stacked_mlp
from growth.errors import ConfigError

TWO_CHOICES = (
    "the router chooses two experts whatever num_experts_per_tok is, the second among all but the first: that would be "
    "the first one's copy. Widen ffn instead."
)


@family
def mixtral(config: Config) -> Architecture:
    """Return the table of a Mixtral."""
    router = linear("block_sparse_moe.gate", "experts", "normed")
    experts = gated_mlp("block_sparse_moe.experts.{expert}", ("w1", "w3", "w2"))
    table = decoder(
        config,
        mlp=(*router, *experts),
        norms=Norms(eps_default=1e-5),
        sizes={**SIZES, "num_local_experts": "experts"},
        defaults={"heads": 8, "experts": 8},
        bases=(("", "rope_theta", 1e6),),
    )
    return mixture(table, top_k=2)


@family
def qwen2_moe(config: Config) -> Architecture:
    """Return the table of a Qwen1.5-MoE or Qwen2-MoE: a gated expert that all tokens share, beside the others."""
    dense, sparse = sparse_layers(config)
    bias = flag(config, "qkv_bias", True)
    shared = (
        *gated_mlp("mlp.shared_expert", axis="shared_ffn"),
        *linear("mlp.shared_expert_gate", "1", "normed"),
    )

    def has_window(layer: int) -> bool:
        last = size(config, "max_window_layers", 28, least=0)
        return flag(config, "use_sliding_window", False) and layer % 2 == 0 and layer < last

    table = decoder(
        config,
        Attention(bias=(bias, False)),
        _by_layer((*_experts(), *shared), dense, sparse),
        sizes=_sizes(dense, "num_experts", moe_intermediate_size="ffn", shared_expert_intermediate_size="shared_ffn"),
        defaults={"heads": 16, "ffn": 1408, "shared_ffn": 5632, "experts": 60},
        layer_types=layer_types(config, has_window),
    )
    return _with_dense_layers(mixture(table, top_k=4), dense)


@family
def qwen3_moe(config: Config) -> Architecture:
    """Return the table of a Qwen3-MoE."""
    dense, sparse = sparse_layers(config)
    table = decoder(
        config,
        Attention(bias=attention_bias(config), qk_norm="shared"),
        _by_layer(_experts(), dense, sparse),
        sizes=_sizes(dense, experts_key(config), moe_intermediate_size="ffn"),
        defaults={"heads": 4, "ffn": 768, "experts": 128},
    )
    return _with_dense_layers(mixture(table, top_k=8), dense)


@family
def olmoe(config: Config) -> Architecture:
    """Return the table of an OLMoE: a norm over all queries, and one over all keys."""
    check_square(config, "OLMoE norms")
    table = decoder(
        config,
        Attention(bias=attention_bias(config), qk_norm="across"),
        _experts(),
        Norms(eps_default=1e-5),
        sizes={**SIZES, experts_key(config): "experts"},
        defaults={"ffn": 2048, "experts": 64},
    )
    return mixture(table, top_k=8)


def sparse_layers(config: Config) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the layers with a dense MLP, and those with experts."""
    step, listed = size(config, "decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    if not isinstance(listed, list) or any(type(layer) is not int for layer in listed):
        raise ConfigError(f"config.json has mlp_only_layers = {listed!r}; a list of layers is needed.")
    layers, listed = range(size(config, "num_hidden_layers")), set(listed)
    dense = tuple(layer for layer in layers if layer in listed or (layer + 1) % step)
    return dense, tuple(layer for layer in layers if layer not in dense)


def _with_dense_layers(table: Architecture, dense: tuple[int, ...]) -> Architecture:
    """Return a table in whose config decoder_sparse_step becomes a list of the dense layers, if there are any."""
    if not dense:
        return table
    config = {**table.config, "decoder_sparse_step": 1, "mlp_only_layers": list(dense)}
    return replace(table, config=config, layer_sets={"mlp_only_layers": dense})


def _by_layer(mlp: tuple[Weight, ...], dense: tuple[int, ...], sparse: tuple[int, ...]) -> tuple[Weight, ...]:
    """Return the weights of experts in the sparse layers and of an MLP in the dense ones."""
    if not dense:
        return mlp
    return (*in_layers(mlp, sparse), *in_layers(gated_mlp(axis="dense_ffn"), dense))


def _sizes(dense: tuple[int, ...], experts: str, **of_experts: str) -> dict[str, str]:
    """Return config keys and the axes whose product they are; `experts` is the key of the number of experts."""
    usual = {key: axes for key, axes in SIZES.items() if axes != "ffn"}
    of_layers = {"intermediate_size": "dense_ffn"} if dense else {}
    return {**usual, **of_experts, **of_layers, experts: "experts"}


def _experts() -> tuple[Weight, ...]:
    return (*linear("mlp.gate", "experts", "normed"), *gated_mlp("mlp.experts.{expert}"))


@family
def granitemoe(config: Config) -> Architecture:
    """Return the table of a GraniteMoE: Granite's multipliers, which no width changes; a softmax over those chosen."""
    return _granite(config)


@family
def granitemoeshared(config: Config) -> Architecture:
    """Return the table of a GraniteMoE with an MLP that all tokens share, if shared_intermediate_size is not 0."""
    shared = size(config, "shared_intermediate_size", 0, least=0)
    return _granite(config, shared=shared > 0)


def granite_experts() -> tuple[Weight, ...]:
    """Return the router and the experts of a GraniteMoE, as its files name them."""
    return (
        *linear("block_sparse_moe.router.layer", "experts", "normed"),
        *stacked_mlp("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
    )


def _granite(config: Config, *, shared: bool = False) -> Architecture:
    mlp = gated_mlp("shared_mlp", ("input_linear", "input_linear", "output_linear"), axis="shared_ffn")
    table = decoder(
        config,
        Attention(bias=attention_bias(config), scaled=False),
        (
            *granite_experts(),
            *(mlp if shared else ()),
        ),
        sizes={
            **SIZES,
            "num_local_experts": "experts",
            **({"shared_intermediate_size": "shared_ffn"} if shared else {}),
        },
        defaults={"experts": 8},
    )
    return mixture(table, top_k=2)


@family
def phimoe(config: Config) -> Architecture:
    """Return the table of a Phi-3.5-MoE: LayerNorms, and a router that chooses its two experts one after the other."""
    router = linear("block_sparse_moe.gate", "experts", "normed")
    experts = gated_mlp("block_sparse_moe.experts.{expert}", ("w1", "w3", "w2"))
    table = decoder(
        config,
        Attention(bias=attention_bias(config)),
        (*router, *experts),
        layer_norms("input_layernorm", "post_attention_layernorm", eps="rms_norm_eps"),
        head_bias=flag(config, "lm_head_bias", False),
        sizes={**SIZES, "num_local_experts": "experts"},
        defaults={"heads": 8, "experts": 16},
        bases=(("", "rope_theta", 1e6),),
    )
    return mixture(table, top_k=2, refusal=TWO_CHOICES)


@family
def flex_olmo(config: Config) -> Architecture:
    """Return the table of a FlexOlmo: the norms of OLMo 2 around experts."""
    table = decoder(
        config,
        Attention(bias=attention_bias(config), qk_norm="across"),
        _experts(),
        replace(AFTER, eps_default=1e-6),
        sizes={**SIZES, "num_experts": "experts"},
        defaults={"experts": 7},
        bases=(("", "rope_theta", 5e5),),
    )
    return mixture(table, top_k=5)


@family
def hunyuan_v1_moe(config: Config) -> Architecture:
    """Return the table of a HunYuan-MoE: an MLP of the experts' size that all tokens share."""
    for key in ("num_experts", "moe_topk"):
        if isinstance(config.get(key), list):
            raise ConfigError(
                f"config.json has {key} = {config[key]!r}; models whose layers differ in it are not supported."
            )
    table = decoder(
        config,
        Attention(bias=attention_bias(config), qk_norm="shared", qk_norm_names=("query_layernorm", "key_layernorm")),
        (*linear("mlp.gate.wg", "experts", "normed"), *gated_mlp("mlp.experts.{expert}"), *gated_mlp("mlp.shared_mlp")),
        Norms(eps_default=1e-5),
        sizes={**SIZES, "num_experts": "experts"},
        defaults={"head_dim": size(config, "head_dim"), "experts": 1},
    )
    return mixture(table, 1, "moe_topk")
