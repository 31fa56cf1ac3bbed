"""Learning rates of a grown model that follow from those of its source, by maximal update parametrisation (muP).

If a weight reads more units, its update moves what it writes further, unless the rate shrinks. muP states by how much,
so that a rate that was tuned on the source is right for the grown model (Yang et al. 2022, Tensor Programs V, arXiv
2203.03466, table 3). The rules below are written for the growth of a weight's fan-in and fan-out. With r the ratio of
sizes after and before, taken over axes of width (residual, ffn, heads, channels of heads; not tokens, positions and
experts):

    Adam    1 / r_in                    an update has the same size whatever the gradient's
    SGD     r_out / r_in                gradients shrink by r_out
    Muon    sqrt(r_out / r_in)          the spectral norm of an update (Yang, Simon and Bernstein 2023, arXiv
                                        2310.17813), over the factor that torch's Muon applies itself (`adjust_lr_fn`)

Embeddings, gains and biases read no width, so r_in is 1. What two weights make together is a product: keys read the
channels that queries write, so their rate is divided by the growth of head_dim. Stock models divide scores by
sqrt(head_dim), and Gemma multiplies embeddings by sqrt(hidden): these weights have a factor 1 / sqrt(r) each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from growth.architectures.base import Architecture, Weight, WeightPart
from growth.errors import ConfigError

Rule = Literal["adam", "sgd", "muon", "muon_match_rms_adamw"]
Sizes = Mapping[str, int]  # of axes, and the number of layers, as growth.json has them

# views that the model scales by the root of an axis
_SQUARE_ROOTS = ("query_scaled", "before_embed_scale", "before_rounded_embed_scale")


def mup_factors(
    table: Architecture, before: Sizes, after: Sizes, rule: Rule, *, depth: bool = False
) -> dict[str, float]:
    """The factor on the learning rate of each tensor of a grown model.

    table: of the grown model.
    depth: whether the rates in layers also shrink by the root of the growth in depth (Yang et al. 2023, Tensor Programs
        VI, arXiv 2310.02244: Depth-muP). Its theory also divides each branch by that root, which no growth that
        preserves the function does.

    With a rule of Muon, `hidden_matrices` have its factors and all others have Adam's. Of matrices that the model keeps
    in a stack, which Muon does not train, `rule="adam"` has the factors.

    Raises:
        ConfigError: an unknown rule, or growth in depth from no layers.
    """
    if rule not in get_args(Rule):
        raise ConfigError(f"mup='{rule}' is unknown: use one of {', '.join(get_args(Rule))}.")
    if depth and not before["layers"]:
        raise ConfigError(
            f"depth_mup=True divides rates by the root of the growth in depth, and the source has no layers "
            f"(the grown model has {after['layers']}). Leave out depth_mup."
        )
    untied = table.with_head(tied=False) if table.tied else table
    growth = math.sqrt(after["layers"] / before["layers"]) if depth else 1.0
    found: dict[str, float] = {}
    for weight in untied.weights:
        own: Rule = rule if rule == "sgd" or _is_hidden(table, weight) else "adam"
        factor = min(_factor(table, weight, part, before, after, own) for part in weight.parts)
        found |= dict.fromkeys(table.names(weight), factor / growth if weight.per_layer else factor)
    names = {weight.name for weight in table.weights}
    heads = [found[weight.name] for weight in untied.weights if weight.name not in names]
    if heads:  # one matrix is both: the head needs the smaller rate
        found[table.embedding] = min(found[table.embedding], *heads)
    return found


def hidden_matrices(table: Architecture) -> set[str]:
    """The tensors that read width and write width, which Muon trains."""
    return {name for weight in table.weights if _is_hidden(table, weight) for name in table.names(weight)}


def _is_hidden(table: Architecture, weight: Weight) -> bool:
    return all(all(_fans(table, part)) for part in weight.parts)


def _factor(table: Architecture, weight: Weight, part: WeightPart, before: Sizes, after: Sizes, rule: Rule) -> float:
    def ratio(spaces: Iterable[str]) -> float:
        axes = [table.axis(space) for space in spaces]
        return math.prod(after[axis] / before[axis] for axis in axes if axis in after)

    read, written = _fans(table, part)
    fan_in, fan_out = ratio(read), ratio(written)
    roots = math.prod(_root_ratio(table, space, before, after) for space in written)
    share = 1 / roots / ratio(space for space in written if space in part.reads)
    if rule == "sgd":
        return share**2 * fan_out / fan_in
    if rule == "adam":
        return share / fan_in
    return (
        share
        * math.sqrt(fan_out / fan_in)
        * _adjusted(table, weight, before, rule)
        / _adjusted(table, weight, after, rule)
    )


def _root_ratio(table: Architecture, space: str, before: Sizes, after: Sizes) -> float:
    """The root of the growth of the units by which the model scales a space; 1 if it does not scale it."""
    axis, *views = table.spaces.get(space, (space,))
    scales = [view for view in views if view in _SQUARE_ROOTS]
    if not scales:
        return 1.0
    counted = table.score_axes if "query_scaled" in scales else (axis,)
    old, new = (sum(sizes.get(name, table.axes[name].size) for name in counted) for sizes in (before, after))
    return math.sqrt(new / old)


def _fans(table: Architecture, part: WeightPart) -> tuple[list[str], list[str]]:
    """The spaces of width that a map reads, and those that it writes."""
    read: list[str] = []
    written: list[str] = []
    for spaces in part.dimensions:
        wide = [space for space in spaces if _is_width(table, space)]
        (read if wide and all(space in part.reads for space in wide) else written).extend(wide)
    return read, written


def _is_width(table: Architecture, space: str) -> bool:
    axis = table.axes.get(table.axis(space))
    return axis is not None and not axis.external


def _adjusted(table: Architecture, weight: Weight, sizes: Sizes, rule: Rule) -> float:
    """What torch's Muon multiplies its learning rate by for a matrix."""

    def length(spaces: Iterable[str]) -> int:
        return math.prod(sizes.get(table.axis(space), 1) for space in spaces)

    lengths = [length(spaces) for spaces in weight.parts[0].dimensions]
    lengths[weight.fused] = sum(length(part.dimensions[weight.fused]) for part in weight.parts)
    rows, columns = lengths
    return math.sqrt(max(1, rows / columns) if rule == "muon" else max(rows, columns))
