"""Sizes of axes as recipes count them, and the new sizes that `to`, `factor` and `multiple` ask for."""

import math
from fractions import Fraction
from typing import Any

from growth.architectures.config import LARGEST_AXIS, LARGEST_DEPTH
from growth.errors import RecipeError
from growth.operators.base import Growth

SIZE_KEYS = {"to": "a size", "factor": "a ratio", "multiple": "the next multiple of it"}


def one_size(step: Any) -> Any:
    """Check that a recipe's step states one size, or lists its layers.

    Raises:
        ValueError: none, or several.
    """
    given = [getattr(step, key, None) for key in SIZE_KEYS]
    if given.count(None) != 2 and not isinstance(getattr(step, "order", None), list):
        known = " or ".join(f"'{key}' ({meaning})" for key, meaning in SIZE_KEYS.items() if hasattr(step, key))
        raise ValueError(f"give exactly one of {known}")
    return step


def counted_units(growth: Growth, axis: str) -> tuple[str, int]:
    """Return what a recipe counts along an axis, in words, and how many there are: ("query heads", 32) for `heads`.

    The axis itself counts KV heads (`growth.sizes["heads"]`), so its name and its size do not belong in a message.
    """
    units = growth.sizes[axis] * (growth.sizes["queries"] if axis == "heads" else 1)
    return {"heads": "query heads", "queries": "query heads per KV head"}.get(axis, axis), units


def new_units(growth: Growth, axis: str, to: int | None, factor: float | None, multiple: int | None = None) -> int:
    """Return the new size of an axis in its own units: KV heads, where the recipe counts query heads.

    Raises:
        RecipeError: an unknown axis, a smaller size, or a number of query heads that KV heads do not divide.
    """
    if axis == "rotary":
        raise RecipeError(
            "Cannot widen rotary channels: their number sets the frequencies of all of them, so the function would "
            "change. Widen heads, or head_dim (its new channels are not rotary, or lie between the old ones with "
            "rope_pairs: spread)."
        )
    if axis not in growth.axes:
        raise RecipeError(f"Cannot widen '{axis}': the axes of this family are {', '.join(growth.axes)}.")
    traits, (label, old) = growth.axes[axis], counted_units(growth, axis)
    new = grown_size(label, old, to, factor, multiple)
    queries = growth.sizes["queries"] if axis == "heads" else 1
    if traits.refusal and new != old and new > traits.max_size * queries:
        raise RecipeError(f"Cannot widen {label} from {old} to {new}: {traits.refusal}")
    if new % queries:
        low = new - new % queries
        raise RecipeError(
            f"Cannot widen {label} from {old} to {new}: each KV head has {queries} query heads, and {new} is not a "
            f"multiple of {queries}. Nearest: {low} or {low + queries}."
        )
    return new // queries


def grown_size(what: str, old: int, to: int | None, factor: float | None, multiple: int | None = None) -> int:
    """Return the new size that `to`, `factor` or `multiple` (the next multiple of it) asks for.

    what: the name of the size in errors.

    Raises:
        RecipeError: none or several given, a factor that does not give a whole number, or a smaller size.
    """
    if [to, factor, multiple].count(None) != 2:
        raise RecipeError(f"Growing {what} needs exactly one of 'to' (a size), 'factor' (a ratio) and 'multiple'.")
    if factor is not None:
        to = _by_factor(what, old, factor)
    if multiple is not None:
        to = -(-old // multiple) * multiple
    assert to is not None
    largest = LARGEST_DEPTH if what == "layers" else LARGEST_AXIS
    if to > largest:
        raise RecipeError(f"Cannot grow {what} from {old} to {to:,}: at most {largest:,} are supported.")
    if to < old:
        raise RecipeError(
            f"Cannot shrink {what} from {old} to {to}: growth only makes models larger. Use {old} or more."
        )
    return to


def _by_factor(what: str, old: int, factor: float) -> int:
    if not 0 < factor < 2**31:
        raise RecipeError(f"Cannot grow {what} by a factor of {factor}: use a ratio of 1 or more.")
    exact = old * Fraction(factor).limit_denominator(1000)
    if exact.denominator != 1:
        low = math.floor(exact)
        raise RecipeError(
            f"Cannot grow {what} from {old} by a factor of {factor:g}: {float(exact):g} is not a whole number. "
            f"Use to: {max(low, old)} or to: {low + 1}."
        )
    return int(exact)
