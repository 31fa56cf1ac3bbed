"""Experts as DeepSeek has them: chosen in groups, some for all tokens, and behind layers with a dense MLP.

Experts that all tokens pass through are one MLP of as many times the size of one expert. The router chooses groups of
experts first, and then experts of these. Copies of a group have its score. So with k copies of all experts, in k times
as many groups of the same size, exactly the copies of what was chosen before are chosen.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from growth.architectures.base import Architecture, Weight, linear, weight
from growth.architectures.blocks import GATED, gated_mlp
from growth.architectures.config import Config, flag, of_layers, size
from growth.architectures.mixtures import added, in_layers, mixture
from growth.errors import ConfigError

HIGHEST = "the router chooses the experts with the highest scores, which stay only if each is copied equally often."
FILLED = (
    "each token goes to {} experts, but the topk_group = {} groups that are chosen hold {}: the others are chosen by "
    "position. Let more groups be chosen."
)
EXPERT_SIZES = {
    "moe_intermediate_size": "ffn",
    "n_routed_experts": "experts",
    "n_shared_experts": "shared_experts",
}
NUMBERS = {"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"}  # what other families call them
GROUP_KEYS = ("n_group", "topk_group")
DENSE = "first_k_dense_replace"
Layers = tuple[tuple[Weight, ...], dict[str, str]]  # the MLPs of all layers, and their sizes by config key


def corrected_router(bias: str = "mlp.gate.e_score_correction_bias", gate: str = "mlp.gate") -> tuple[Weight, ...]:
    """Return a router whose scores a bias corrects for the choice of experts; their weights are the bare scores."""
    return (*linear(gate, "experts", "normed"), weight(bias, "experts"))


def shared_and_routed(
    config: Config,
    *,
    softmax: bool = False,
    normalised: bool = True,
    shared_bias: bool = False,
    name: str = "mlp",
    projections: tuple[str, str, str] = GATED,
) -> tuple[Weight, ...]:
    """Return the MLPs of experts that tokens are routed to, and the MLP that stands for those of all tokens.

    softmax: whether the scores of all experts sum to 1.
    normalised: whether the weights of those chosen are made to, if the config does not state it.
    name: of the module that holds them. projections: the names of those of one expert.
    """
    routed = gated_mlp(f"{name}.experts.{{expert}}", projections)
    whole = softmax or flag(config, "norm_topk_prob", normalised)
    together = gated_mlp(f"{name}.shared_experts", bias=shared_bias, axis="(shared_experts ffn)")
    return (*(routed if whole else added(routed)), *together)


# ------------------------------------------------- dense layers


def leading_dense(
    config: Config, sparse: tuple[Weight, ...], default: int, *, bias: bool = False, key: str = DENSE
) -> Layers:
    """Return the MLPs of layers of which the leading ones are dense.

    sparse: the weights of a layer with experts. default: the number if the config does not state it.
    bias: whether dense MLPs have biases. key: of the number of dense layers.
    """
    return with_dense(config, sparse, range(size(config, key, default, least=0)), bias=bias)


def counted(table: Architecture, default: int, key: str = DENSE) -> Architecture:
    """Return a table with the number of leading dense layers."""
    return replace(table, layer_counts={key: size(table.config, key, default, least=0)})


def listed_dense(
    config: Config,
    sparse: tuple[Weight, ...],
    kinds: list[str],
    *,
    bias: bool = False,
    sizes: Mapping[str, str] = EXPERT_SIZES,
    mlp: Callable[..., tuple[Weight, ...]] = gated_mlp,
) -> Layers:
    """Return the MLPs of layers whose kinds are listed. Other arguments are those of `with_dense`."""
    unknown = set(kinds) - {"dense", "sparse"}
    if unknown:
        raise ConfigError(f"config.json has mlp_layer_types {sorted(unknown)}; only 'dense' and 'sparse' are known.")
    dense = [layer for layer, kind in enumerate(kinds) if kind == "dense"]
    return with_dense(config, sparse, dense, bias=bias, sizes=sizes, mlp=mlp)


def called(sizes: Mapping[str, str], names: Mapping[str, str] = NUMBERS) -> dict[str, str]:
    """Return sizes by the config keys that a family has in place of DeepSeek's."""
    return {names.get(key, key): axes for key, axes in sizes.items()}


def mlp_layer_types(config: Config, dense: int) -> list[str]:
    """Return mlp_layer_types as stated, or as many leading dense layers and sparse ones behind them."""
    depth = size(config, "num_hidden_layers")
    return of_layers(config, "mlp_layer_types", spare=not depth) or (["dense"] * dense + ["sparse"] * depth)[:depth]


def with_dense(
    config: Config,
    sparse: tuple[Weight, ...],
    dense: Collection[int],
    *,
    bias: bool = False,
    sizes: Mapping[str, str] = EXPERT_SIZES,
    mlp: Callable[..., tuple[Weight, ...]] = gated_mlp,
) -> Layers:
    """Return the MLPs of layers of which some are dense.

    bias: whether dense MLPs have biases.
    sizes: of a layer with experts, by config key. mlp: a dense MLP, as `gated_mlp`.
    """
    layers = range(size(config, "num_hidden_layers"))
    first, others = (tuple(layer for layer in layers if (layer in dense) is kind) for kind in (True, False))
    if not dense:
        return sparse, dict(sizes)
    if first and not others:
        return mlp(bias=bias), {"intermediate_size": "ffn"}
    plain = mlp(bias=bias, axis="dense_ffn")
    return (*in_layers(sparse, others), *in_layers(plain, first)), {**sizes, "intermediate_size": "dense_ffn"}


# ------------------------------------------------- the choice of experts


def chosen_in_groups(
    table: Architecture,
    top_k: int | None,
    groups: tuple[int | None, int | None] | None = (1, 1),
    *,
    others_weigh: bool = True,
) -> Architecture:
    """Return a table as that of a mixture in which a token goes to some experts of some groups, if it is one.

    top_k: the number of experts if the config does not state it.
    groups: the same of the number of groups, and of those that are chosen; None if the router has no groups.
    others_weigh: whether experts of other groups, which fill up the choice where the chosen groups hold too few, have a
        weight.

    Raises:
        ConfigError: more are chosen than there are, or groups are not equal.
    """
    if "experts" not in table.axes:
        return table
    chosen = mixture(table, top_k)
    experts, config = chosen.axes["experts"], chosen.config
    chosen = chosen.with_axes(replace(experts, equal_copies=HIGHEST))
    if groups is None:
        return chosen
    count, best = (size(config, key, default) for key, default in zip(GROUP_KEYS, groups, strict=True))
    if experts.size % count or best > count:
        raise ConfigError(
            f"config.json has {experts.size} experts in n_group = {count} groups, of which topk_group = {best} are "
            "chosen: groups must be equal, and enough. Correct these numbers."
        )
    tokens_to, held = config[chosen.chosen_key], best * experts.size // count
    if others_weigh and best < count and tokens_to > held:
        why = FILLED.format(tokens_to, best, held)
        chosen = chosen.with_axes(replace(experts, refusal=why, fixed=experts.size))
    grow = dict.fromkeys(GROUP_KEYS, "experts") if best < count else {}
    stated = dict(zip(GROUP_KEYS, (count, best), strict=True))
    return replace(chosen, config={**config, **stated}, ratios={**chosen.ratios, **grow})


def without_prediction_layers(table: Architecture, default: int = 0) -> Architecture:
    """Return a table whose model has no layers of multi-token prediction; files keep them behind the others.

    default: their number if the config does not state it.
    """
    key = "num_nextn_predict_layers"
    number = size(table.config, key, default, least=0)
    behind = {f"model.layers.{table.depth + layer}.": "eh_proj.weight" for layer in range(number)}
    return replace(table, config={**table.config, key: 0} if number else table.config, prediction=behind)
