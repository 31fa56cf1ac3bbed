"""Mixtures of experts: mixtral, qwen2_moe, qwen3_moe, olmoe.

A router's softmax runs over all experts, and the outputs of the top few are averaged with the router's weights,
normalised or not. Copies of an expert have its logit. So with k copies of each expert and top-k grown by k as well, the
copies of the experts chosen before are chosen, each with a k-th of the old weight.
"""

from collections.abc import Sequence
from dataclasses import replace

from growth.architectures.base import Architecture, Axis, Weight, WeightPart, family, weight
from growth.architectures.blocks import LAYER, SIZES, Norms, attention_bias, gated_mlp, implied_head_dim
from growth.architectures.config import Config, flag, of_layers, size
from growth.architectures.families.llama import decoder
from growth.errors import ConfigError

BLOCK = f"{LAYER}.mlp"
CHOSEN = "the router's softmax runs over all experts, so their weights stay only if each is copied equally often."


@family
def mixtral(config: Config) -> Architecture:
    """Return the table of a Mixtral."""
    experts = f"{LAYER}.block_sparse_moe.experts.{{expert}}"
    mlp = (
        weight(f"{LAYER}.block_sparse_moe.gate.weight", "experts normed", ("normed",)),
        weight(f"{experts}.w1.weight", "ffn normed", ("normed",)),
        weight(f"{experts}.w3.weight", "ffn normed", ("normed",)),
        weight(f"{experts}.w2.weight", "residual ffn", ("ffn",), branch_end=True),
    )
    axes = (Axis("ffn", size(config, "intermediate_size")), experts_axis(size(config, "num_local_experts", 8)))
    sizes = SIZES | {"num_local_experts": "experts"}
    return _mixture(config, mlp, axes, sizes, top_k=2, default_kv=8, theta=1e6, default_eps=1e-5)


@family
def qwen2_moe(config: Config) -> Architecture:
    """Return the table of a Qwen1.5-MoE or Qwen2-MoE: a gated expert that all tokens share, beside the others."""
    dense, sparse = sparse_layers(config)
    shared = (
        *(replace(w, parts=_on(w, "shared_ffn")) for w in gated_mlp(f"{BLOCK}.shared_expert")),
        weight(f"{BLOCK}.shared_expert_gate.weight", "1 normed", ("normed",)),
    )
    mlp = (*_experts(), *shared)
    bias = flag(config, "qkv_bias", True)
    axes = (
        Axis("ffn", size(config, "moe_intermediate_size", 1408)),
        Axis("shared_ffn", size(config, "shared_expert_intermediate_size", 5632)),
        *_dense_axis(config, dense),
        experts_axis(_number_of_experts(config, 60)),
    )
    sizes = _sizes(config, dense) | {"shared_expert_intermediate_size": "shared_ffn"}
    built = _mixture(config, _by_layer(mlp, dense, sparse), axes, sizes, top_k=4, default_kv=16, bias=(bias, False))
    return _with_layers(built, dense, layer_types=_qwen2_moe_layer_types(config))


@family
def qwen3_moe(config: Config) -> Architecture:
    """Return the table of a Qwen3-MoE."""
    dense, sparse = sparse_layers(config)
    axes = (
        Axis("ffn", size(config, "moe_intermediate_size", 768)),
        *_dense_axis(config, dense),
        experts_axis(_number_of_experts(config, 128)),
    )
    built = _mixture(
        config,
        _by_layer(_experts(), dense, sparse),
        axes,
        _sizes(config, dense),
        top_k=8,
        default_kv=4,
        bias=attention_bias(config),
        qk_norm=True,
    )
    return _with_layers(built, dense)


@family
def olmoe(config: Config) -> Architecture:
    """Return the table of an OLMoE: a norm over all queries, and one over all keys."""
    axes = (Axis("ffn", size(config, "intermediate_size", 2048)), experts_axis(_number_of_experts(config, 64)))
    sizes = SIZES | {_experts_key(config): "experts"}
    hidden, attended = size(config, "hidden_size"), size(config, "num_attention_heads") * implied_head_dim(config)
    if hidden != attended:
        raise ConfigError(
            f"OLMoE norms hidden_size = {hidden} channels of all queries together, and its heads have {attended}. "
            "Grow residual together with heads, queries or head_dim so that they agree."
        )
    return _mixture(
        config,
        _experts(),
        axes,
        sizes,
        top_k=8,
        default_kv=None,
        bias=attention_bias(config),
        qk_norm=True,
        qk_norm_across=True,
        default_eps=1e-5,
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
    mlp: tuple[Weight, ...],
    axes: tuple[Axis, ...],
    sizes: dict[str, str],
    *,
    top_k: int,
    default_kv: int | None,
    bias: tuple[bool, bool] = (False, False),
    qk_norm: bool = False,
    qk_norm_across: bool = False,
    theta: float = 1e4,
    default_eps: float = 1e-6,
) -> Architecture:
    chosen = size(config, "num_experts_per_tok", top_k)
    experts = next(axis.size for axis in axes if axis.name == "experts")
    if chosen > experts:
        raise ConfigError(
            f"config.json has num_experts_per_tok = {chosen} and only {experts} experts. Correct one of the two."
        )
    built = decoder(
        {**config, "num_experts_per_tok": chosen},
        bias=bias,
        default_kv=default_kv,
        qk_norm=qk_norm,
        qk_norm_across=qk_norm_across,
        bases=(("", "rope_theta", theta),),
        head_dim=implied_head_dim(config),
        norms=Norms(eps_default=default_eps),
        mlp=mlp,
        axes=axes,
        sizes=sizes,
    )
    return replace(built, ratios={"num_experts_per_tok": "experts"})


def _experts() -> tuple[Weight, ...]:
    router = weight(f"{BLOCK}.gate.weight", "experts normed", ("normed",))
    return (router, *gated_mlp(f"{BLOCK}.experts.{{expert}}"))


def _by_layer(mlp: tuple[Weight, ...], dense: Sequence[int], sparse: Sequence[int]) -> tuple[Weight, ...]:
    """Return the weights of experts in the sparse layers and of an MLP in the dense ones."""
    if not dense:
        return mlp
    plain = (replace(w, parts=_on(w, "dense_ffn"), layers=tuple(dense)) for w in gated_mlp(BLOCK))
    return (*(replace(w, layers=tuple(sparse)) for w in mlp), *plain)


def _on(row: Weight, axis: str) -> tuple[WeightPart, ...]:
    """Return the parts of an MLP's weight with another axis in place of ffn."""
    return tuple(
        replace(
            part,
            pattern=part.pattern.replace("ffn", axis),
            reads=tuple(axis if space == "ffn" else space for space in part.reads),
        )
        for part in row.parts
    )


def _dense_axis(config: Config, dense: Sequence[int]) -> tuple[Axis, ...]:
    return (Axis("dense_ffn", size(config, "intermediate_size")),) if dense else ()


def _sizes(config: Config, dense: Sequence[int]) -> dict[str, str]:
    """Return config keys and the axes whose product they are."""
    sizes = {name: axes for name, axes in SIZES.items() if name != "intermediate_size"}
    sizes |= {"moe_intermediate_size": "ffn", _experts_key(config): "experts"}
    return sizes | ({"intermediate_size": "dense_ffn"} if dense else {})


def _number_of_experts(config: Config, default: int) -> int:
    return size(config, _experts_key(config), default)


def _experts_key(config: Config) -> str:
    """Return the key that the config has: older ones have num_experts, transformers 5 has num_local_experts."""
    return "num_experts" if "num_experts" in config else "num_local_experts"


def _with_layers(built: Architecture, dense: tuple[int, ...], layer_types: Sequence[str] | None = None) -> Architecture:
    """Return the table with its lists of layers; decoder_sparse_step becomes a list of dense layers."""
    config = {**built.config, "decoder_sparse_step": 1, "mlp_only_layers": list(dense)} if dense else built.config
    lists = {} if layer_types is None else {"layer_types": layer_types}
    return replace(built, config=config, layer_lists=lists, layer_sets={"mlp_only_layers": dense} if dense else {})


def _qwen2_moe_layer_types(config: Config) -> list[str]:
    stated = of_layers(config, "layer_types")
    if stated is not None:
        return stated
    windows = flag(config, "use_sliding_window", False)
    last, depth = size(config, "max_window_layers", 28, least=0), size(config, "num_hidden_layers")
    return [
        "sliding_attention" if windows and layer % 2 == 0 and layer < last else "full_attention"
        for layer in range(depth)
    ]
