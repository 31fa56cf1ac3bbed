"""Fit: whether a family has a model of the sizes and layers that a growth leads to."""

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce

from growth.algebra.expansion import Expansion
from growth.algebra.spaces import SCALES, VIEWS
from growth.algebra.split import Split
from growth.architectures.base import Architecture
from growth.errors import ConfigError, RecipeError
from growth.operators.base import Growth


def check_fit(growth: Growth) -> None:
    """Check that the family has a model of the growth's result, as far as sizes and layers decide it.

    Raises:
        ConfigError: a geometry that the family cannot have.
        RecipeError: something that the family does not have (identity layers, a bias on its logits, experts).
    """
    source = growth.source if growth.mixing is None else growth.mixing.table(growth.source)
    growth = replace(growth.covering(source), source=source)
    check_applicable(growth, source)
    check_divided(growth, source)
    target = source.family(growth.config)
    target.refuse_enormous()
    check_sizes(target, growth)


def check_applicable(growth: Growth, source: Architecture) -> None:
    """Check that the family's mathematics allows the growth.

    Raises:
        RecipeError: it has no bias on its logits, or no layer of it can be the identity.
    """
    if growth.tokens.logit_bias is not None and not any(weight.is_head_bias for weight in source.weights):
        raise RecipeError(f"{source.model_type} has no bias on its logits: leave out logit_bias.")
    if source.no_identity and any(layer.silent for layer in growth.layers):
        raise RecipeError(f"Cannot add identity layers: {source.no_identity}")
    leading = min(source.leading, len(growth.layers))
    moved = any(layer.new or layer.source != at for at, layer in enumerate(growth.layers[:leading]))
    if growth.preserving and growth.blank is None and moved:
        raise RecipeError(
            f"deepen: the first {leading} layers of this {source.model_type} must stay the first ones, because "
            f"{source.leading_reason}. List them first in order, or use order: append."
        )


def check_divided(growth: Growth, source: Architecture) -> None:
    """Refuse a split along an axis whose readers must all take forced shares: its copies would stay identical.

    Raises:
        RecipeError: there is such an axis.
    """
    for axis, kind in growth.splits.items():
        if growth.expansions[axis].copied.any() and not is_divisible(axis, growth, source):
            raise RecipeError(
                f"Cannot divide weights among the copies along {axis} ({kind}): {source.model_type} must read them in "
                "equal shares, because some units have more copies than others. Use init: pad, an integer ratio, or "
                "shares: equal, with which copies stay identical."
            )


def is_divisible(axis: str, growth: Growth, source: Architecture) -> bool:
    """Return whether any weight that reads the copies along an axis can be divided among them; experts are averaged."""
    shared = [weight for weight in source.weights if not weight.reads_units]
    reads = [(weight, space) for weight in shared for part in weight.parts for space in part.reads]
    here = [(weight, space) for weight, space in reads if source.axis(space) == axis]
    return not here or any(
        Split.of("mask", expansion_of(space, growth, source)) for weight, space in here if weight.norm_inputs is None
    )


def expansion_of(space: str, growth: Growth, source: Architecture) -> Expansion:
    """Return the expansion of a space: that of its axis, seen through the views of the space."""
    return seen(space, growth.expansions, source)


def seen(space: str, expansions: Mapping[str, Expansion], source: Architecture) -> Expansion:
    """Return the expansion of a space, from those of axes; an axis without one has not grown.

    Copies of experts are chosen together, so weights that add their outputs read them in equal shares.
    """
    if space.isdecimal():
        return Expansion.identity(int(space))
    axis, *views = source.spaces.get(space, (space,))

    def through(expansion: Expansion, view: str) -> Expansion:
        return expansion.scaled(scale(view, axis, expansions, source)) if view in SCALES else VIEWS[view](expansion)

    equal = source.axes[axis].shares_gradient
    return reduce(through, views, expansions[axis].read_equally() if equal else expansions[axis])


def scale(view: str, axis: str, expansions: Mapping[str, Expansion], source: Architecture) -> float:
    """Return the factor of a view that is nothing but a factor; for queries, all channels of a score count."""
    axes = source.score_axes if view == "query_scaled" else (axis,)
    grown = [expansions.get(name) or Expansion.identity(source.axes[name].size) for name in axes]
    return SCALES[view](sum(each.size for each in grown), sum(map(len, grown)))


def check_sizes(target: Architecture, growth: Growth) -> None:
    """Check that a table read from the grown config has the sizes of the growth.

    Raises:
        ConfigError: the family's config cannot express them.
    """
    found: Mapping[str, int] = {name: axis.size for name, axis in target.axes.items()}
    if target.depth != len(growth.layers) or found != growth.sizes:
        raise ConfigError(
            f"The config of {target.model_type} cannot express the sizes {growth.sizes}. Choose other sizes, or grow "
            "further axes along with these."
        )
