"""Mixtures of experts: mixtral, qwen2_moe, qwen3_moe, olmoe.

A router's softmax runs over all experts, and the outputs of the top few are averaged with the router's weights,
normalised or not. Copies of an expert have its logit. So with k copies of each expert and top-k grown by k as well, the
copies of the experts chosen before are chosen, each with a k-th of the old weight.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, Axis, Weight, family, linear
from growth.architectures.blocks import Attention, Norms, attention_bias, check_square, gated_mlp, layer_types
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import SIZES, decoder
from growth.errors import ConfigError

CHOSEN = "the router's softmax runs over all experts, so their weights stay only if each is copied equally often."


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
    return _mixture(table, top_k=2)


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
        sizes=_sizes(config, dense, moe_intermediate_size="ffn", shared_expert_intermediate_size="shared_ffn"),
        defaults={"heads": 16, "ffn": 1408, "shared_ffn": 5632, "experts": 60},
        layer_types=layer_types(config, has_window),
    )
    return _mixture(table, top_k=4, dense=dense)


@family
def qwen3_moe(config: Config) -> Architecture:
    """Return the table of a Qwen3-MoE."""
    dense, sparse = sparse_layers(config)
    table = decoder(
        config,
        Attention(bias=attention_bias(config), qk_norm="shared"),
        _by_layer(_experts(), dense, sparse),
        sizes=_sizes(config, dense, moe_intermediate_size="ffn"),
        defaults={"heads": 4, "ffn": 768, "experts": 128},
    )
    return _mixture(table, top_k=8, dense=dense)


@family
def olmoe(config: Config) -> Architecture:
    """Return the table of an OLMoE: a norm over all queries, and one over all keys."""
    check_square(config, "OLMoE norms")
    table = decoder(
        config,
        Attention(bias=attention_bias(config), qk_norm="across"),
        _experts(),
        Norms(eps_default=1e-5),
        sizes={**SIZES, _experts_key(config): "experts"},
        defaults={"ffn": 2048, "experts": 64},
    )
    return _mixture(table, top_k=8)


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


def _mixture(table: Architecture, top_k: int, dense: tuple[int, ...] = ()) -> Architecture:
    """Return a table as that of a mixture, in whose config decoder_sparse_step becomes a list of the dense layers.

    top_k: num_experts_per_tok if the config does not state it.
    """
    experts, chosen = table.axes["experts"].size, size(table.config, "num_experts_per_tok", top_k)
    if chosen > experts:
        raise ConfigError(
            f"config.json has num_experts_per_tok = {chosen} and only {experts} experts. Correct one of the two."
        )
    stated = {"decoder_sparse_step": 1, "mlp_only_layers": list(dense)} if dense else {}
    return replace(
        table.with_axes(experts_axis(experts)),
        config={**table.config, "num_experts_per_tok": chosen, **stated},
        ratios={"num_experts_per_tok": "experts"},
        layer_sets={"mlp_only_layers": dense} if dense else {},
    )


def _by_layer(mlp: tuple[Weight, ...], dense: tuple[int, ...], sparse: tuple[int, ...]) -> tuple[Weight, ...]:
    """Return the weights of experts in the sparse layers and of an MLP in the dense ones."""
    if not dense:
        return mlp
    plain = (replace(weight, layers=dense) for weight in gated_mlp(axis="dense_ffn"))
    return (*(replace(weight, layers=sparse) for weight in mlp), *plain)


def _sizes(config: Config, dense: tuple[int, ...], **of_experts: str) -> dict[str, str]:
    """Return config keys and the axes whose product they are."""
    usual = {key: axes for key, axes in SIZES.items() if axes != "ffn"}
    of_layers = {"intermediate_size": "dense_ffn"} if dense else {}
    return {**usual, **of_experts, **of_layers, _experts_key(config): "experts"}


def _experts() -> tuple[Weight, ...]:
    return (*linear("mlp.gate", "experts", "normed"), *gated_mlp("mlp.experts.{expert}"))


def _experts_key(config: Config) -> str:
    """Return the key that the config has: older ones have num_experts, transformers 5 has num_local_experts."""
    return "num_experts" if "num_experts" in config else "num_local_experts"
