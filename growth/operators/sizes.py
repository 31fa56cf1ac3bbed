"""New sizes: what `to`, `factor` and `multiple` ask for."""

import math
from fractions import Fraction
from typing import Any

from growth.architectures.config import LARGEST_AXIS, LARGEST_DEPTH
from growth.errors import RecipeError


def one_size(step: Any) -> Any:
    """Check that a recipe's step states one size, or lists its layers.

    Raises:
        ValueError: none, or several.
    """
    given = [getattr(step, key, None) for key in ("to", "factor", "multiple")]
    if given.count(None) != 2 and not isinstance(getattr(step, "order", None), list):
        raise ValueError("give either 'to' (a size) or 'factor' (a ratio)")
    return step


def grown_size(what: str, old: int, to: int | None, factor: float | None, multiple: int | None = None) -> int:
    """Return the new size that `to`, `factor` or `multiple` (the next multiple of it) asks for.

    what: the name of the size in errors.

    Raises:
        RecipeError: none or several given, a factor that does not give a whole number, or a smaller size.
    """
    if [to, factor, multiple].count(None) != 2:
        raise RecipeError(f"Growing {what} needs one of 'to' (a size), 'factor' (a ratio) and 'multiple'.")
    if factor is not None:
        to = _by_factor(what, old, factor)
    if multiple is not None:
        to = -(-old // multiple) * multiple
    assert to is not None
    largest = LARGEST_DEPTH if what == "layers" else LARGEST_AXIS
    if to > largest:
        raise RecipeError(f"Cannot grow {what} from {old} to {to:,}: at most {largest:,} are supported.")
    if to < old:
        raise RecipeError(f"Cannot shrink {what} from {old} to {to}: growth only makes models larger.")
    return to


def _by_factor(what: str, old: int, factor: float) -> int:
    if not 0 < factor < 2**31:
        raise RecipeError(f"Cannot grow {what} by a factor of {factor}: a ratio of 1 or more is needed.")
    exact = old * Fraction(factor).limit_denominator(1000)
    if exact.denominator != 1:
        low = math.floor(exact)
        raise RecipeError(
            f"Cannot grow {what} from {old} by a factor of {factor:g}: {float(exact):g} is not a whole number. "
            f"Say to: {max(low, old)} or to: {low + 1}."
        )
    return int(exact)
