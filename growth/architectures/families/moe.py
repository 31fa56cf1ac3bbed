"""Mixtures of experts: mixtral, qwen2_moe, qwen3_moe, olmoe.

A router's softmax runs over all experts, and the outputs of the top few are averaged with the router's weights,
normalised or not. Copies of an expert have its logit. So with k copies of each expert and top-k grown by k as well, the
copies of the experts chosen before are chosen, each with a k-th of the old weight.
"""

from collections.abc import Mapping
from dataclasses import replace

from growth.architectures.base import Architecture, Axis, Weight, family, linear
from growth.architectures.blocks import (
    Attention,
    Norms,
    attention_bias,
    gated_mlp,
    implied_head_dim,
    layer_types,
)
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import BASE, SIZES, decoder
from growth.errors import ConfigError

CHOSEN = "the router's softmax runs over all experts, so their weights stay only if each is copied equally often."


@family
def mixtral(config: Config) -> Architecture:
    """Return the table of a Mixtral."""
    router = linear("block_sparse_moe.gate", "experts", "normed")
    experts = gated_mlp("block_sparse_moe.experts.{expert}", ("w1", "w3", "w2"))
    return _mixture(
        config,
        Attention(),
        (*router, *experts),
        {"intermediate_size": "ffn", "num_local_experts": "experts"},
        {"heads": 8, "experts": 8},
        top_k=2,
        eps_default=1e-5,
        bases=(("", "rope_theta", 1e6),),
    )


@family
def qwen2_moe(config: Config) -> Architecture:
    """Return the table of a Qwen1.5-MoE or Qwen2-MoE: a gated expert that all tokens share, beside the others."""
    bias = flag(config, "qkv_bias", True)
    shared = gated_mlp("mlp.shared_expert", axis="shared_ffn")
    table = _partly_dense(
        config,
        Attention(bias=(bias, False)),
        (*_experts(), *shared, *linear("mlp.shared_expert_gate", "1", "normed")),
        {"moe_intermediate_size": "ffn", "shared_expert_intermediate_size": "shared_ffn"},
        {"heads": 16, "ffn": 1408, "shared_ffn": 5632, "experts": 60},
        top_k=4,
    )

    def has_window(layer: int) -> bool:
        last = size(config, "max_window_layers", 28, least=0)
        return flag(config, "use_sliding_window", False) and layer % 2 == 0 and layer < last

    return replace(table, layer_lists={"layer_types": layer_types(config, has_window)})


@family
def qwen3_moe(config: Config) -> Architecture:
    """Return the table of a Qwen3-MoE."""
    return _partly_dense(
        config,
        Attention(bias=attention_bias(config), qk_norm="shared"),
        _experts(),
        {"moe_intermediate_size": "ffn"},
        {"heads": 4, "ffn": 768, "experts": 128},
        top_k=8,
    )


@family
def olmoe(config: Config) -> Architecture:
    """Return the table of an OLMoE: a norm over all queries, and one over all keys."""
    hidden, attended = size(config, "hidden_size"), size(config, "num_attention_heads") * implied_head_dim(config)
    if hidden != attended:
        raise ConfigError(
            f"OLMoE norms hidden_size = {hidden} channels of all queries together, and its heads have {attended}. "
            "Grow residual together with heads, queries or head_dim so that they agree."
        )
    return _mixture(
        config,
        Attention(bias=attention_bias(config), qk_norm="across"),
        _experts(),
        {"intermediate_size": "ffn", _experts_key(config): "experts"},
        {"ffn": 2048, "experts": 64},
        top_k=8,
        eps_default=1e-5,
    )


def experts_axis(experts: int) -> Axis:
    """Return the axis of experts, which must be copied equally often."""
    return Axis("experts", experts, external=True, equal_copies=CHOSEN)


def sparse_layers(config: Config) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the layers with a dense MLP, and those with experts."""
    step, listed = size(config, "decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    if not isinstance(listed, list) or any(type(layer) is not int for layer in listed):
        raise ConfigError(f"config.json has mlp_only_layers = {listed!r}; a list of layers is needed.")
    layers, listed = range(size(config, "num_hidden_layers")), set(listed)
    dense = tuple(layer for layer in layers if layer in listed or (layer + 1) % step)
    return dense, tuple(layer for layer in layers if layer not in dense)


def _mixture(
    config: Config,
    attention: Attention,
    mlp: tuple[Weight, ...],
    sizes: dict[str, str],
    defaults: Mapping[str, int],
    *,
    top_k: int,
    eps_default: float = 1e-6,
    bases: tuple[tuple[str, str, float], ...] = BASE,
) -> Architecture:
    """Return the table of a mixture.

    sizes, defaults: as those of `decoder`; sizes are those of the MLPs.
    top_k: num_experts_per_tok if the config does not state it.
    """
    chosen = size(config, "num_experts_per_tok", top_k)
    table = decoder(
        {**config, "num_experts_per_tok": chosen},
        attention,
        mlp,
        Norms(eps_default=eps_default),
        sizes={key: axes for key, axes in SIZES.items() if axes != "ffn"} | sizes,
        defaults=defaults,
        bases=bases,
    )
    experts = table.axes["experts"].size
    if chosen > experts:
        raise ConfigError(
            f"config.json has num_experts_per_tok = {chosen} and only {experts} experts. Correct one of the two."
        )
    return replace(table.with_axes(experts_axis(experts)), ratios={"num_experts_per_tok": "experts"})


def _partly_dense(
    config: Config,
    attention: Attention,
    mlp: tuple[Weight, ...],
    sizes: dict[str, str],
    defaults: Mapping[str, int],
    *,
    top_k: int,
) -> Architecture:
    """Return the table of a mixture in which some layers may have one MLP; decoder_sparse_step becomes their list."""
    dense, sparse = sparse_layers(config)
    experts = {_experts_key(config): "experts"}
    if not dense:
        return _mixture(config, attention, mlp, sizes | experts, defaults, top_k=top_k)
    config = {**config, "decoder_sparse_step": 1, "mlp_only_layers": list(dense)}
    mlp = (
        *(replace(weight, layers=sparse) for weight in mlp),
        *(replace(weight, layers=dense) for weight in gated_mlp(axis="dense_ffn")),
    )
    sizes = sizes | {"intermediate_size": "dense_ffn"} | experts
    table = _mixture(config, attention, mlp, sizes, defaults, top_k=top_k)
    return replace(table, layer_sets={"mlp_only_layers": dense})


def _experts() -> tuple[Weight, ...]:
    return (*linear("mlp.gate", "experts", "normed"), *gated_mlp("mlp.experts.{expert}"))


def _experts_key(config: Config) -> str:
    """Return the key that the config has: older ones have num_experts, transformers 5 has num_local_experts."""
    return "num_experts" if "num_experts" in config else "num_local_experts"
