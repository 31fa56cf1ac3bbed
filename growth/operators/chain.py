"""The type of operators, their composition, and the reading of `to` and `factor`."""

import math
from collections.abc import Callable
from fractions import Fraction

from growth.errors import RecipeError
from growth.growth import Growth

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


def grown_size(what: str, old: int, to: int | None, factor: float | None) -> int:
    """The new size that `to` or `factor` asks for.

    Raises:
        RecipeError: both or neither given, a factor that gives no whole number, or a smaller size.
    """
    if (to is None) == (factor is None):
        raise RecipeError(f"Growing {what} needs either 'to' (a size) or 'factor' (a ratio), and not both.")
    if to is None:
        assert factor is not None
        if not 0 < factor < 2**31:
            raise RecipeError(f"Cannot grow {what} by a factor of {factor}: a ratio of 1 or more is needed.")
        exact = old * Fraction(factor).limit_denominator(1000)
        if exact.denominator != 1:
            low = math.floor(exact)
            raise RecipeError(
                f"Cannot grow {what} from {old} by a factor of {factor:g}: {float(exact):g} is not a whole number. "
                f"Say to: {max(low, old)} or to: {low + 1}."
            )
        to = int(exact)
    if to < old:
        raise RecipeError(f"Cannot shrink {what} from {old} to {to}: growth only makes models larger.")
    return to
