"""The type of operators, their composition, and the reading of `to` and `factor`."""

import math
from collections.abc import Callable
from fractions import Fraction

from growth.architectures.config import LARGEST_AXIS, LARGEST_DEPTH
from growth.errors import RecipeError
from growth.operators.base import Growth

Operator = Callable[[Growth], Growth]


def chain(*operators: Operator) -> Operator:
    """The operators one after the other, as one operator.

    >>> from growth.operators import chain, deepen, widen
    >>> grow = chain(widen("residual", to=2560), deepen(to=32))
    """

    def chained(growth: Growth) -> Growth:
        for operator in operators:
            growth = operator(growth)
        return growth

    return chained


def grown_size(what: str, old: int, to: int | None, factor: float | None, multiple: int | None = None) -> int:
    """The new size that `to`, `factor` or `multiple` (the next multiple of it) asks for.

    Raises:
        RecipeError: none or several given, a factor that gives no whole number, or a smaller size.
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
        raise RecipeError(f"Cannot grow {what} from {old} to {to:,}: no model has above {largest:,}.")
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
