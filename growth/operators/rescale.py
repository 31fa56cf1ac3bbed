"""rescale: another eps of the norms, undone by another scale of the residual stream (docs/design.md, 2.3)."""

import math
from typing import Annotated

from pydantic import Field, StrictFloat

from growth.algebra.arithmetic import mean
from growth.algebra.expansion import Expansion
from growth.architectures.config import number
from growth.errors import RecipeError
from growth.operators.base import Growth, Operator
from growth.operators.registry import Summary, register

Eps = Annotated[StrictFloat, Field(gt=0, lt=1)]


@register(
    Summary(
        "`rescale`",
        "gives the norms another eps: the residual stream is scaled so that their outputs do not change",
        "yes",
    ),
    example={"norm_eps": 1e-6},
)
def rescale(*, norm_eps: Eps) -> Operator:
    """Give the norms another eps, and scale the residual stream accordingly; the function is preserved.

    A norm divides by the root of its mean square plus eps. With the stream times √(new eps / old eps), both parts of
    the sum are multiplied by the same factor. Norms elsewhere (of queries and keys, say) are scaled alike.

    norm_eps: the new eps.

    Raises (when applied):
        RecipeError: the family's norms cannot have another eps, or do not run over the residual stream.

    >>> import growth
    >>> plan = growth.plan(growth.rescale(norm_eps=1e-6), "examples/phi-mini")
    >>> plan.preserving, round(plan.config["layer_norm_eps"], 9)
    (True, 1e-06)
    """

    def operator(growth: Growth) -> Growth:
        if not 0 < norm_eps < 1:
            raise RecipeError(f"rescale: norm_eps is {norm_eps}; it must lie between 0 and 1.")
        source = growth.source
        if source.eps is None or not growth.axes["residual"].norm:
            raise RecipeError(f"rescale: {source.model_type} has no other eps: {source.no_rescale}. Leave out rescale.")
        own = number(source.config, source.eps, source.eps_default)
        if not own:
            raise RecipeError(f"rescale: {source.eps} is 0, and no scale makes up for that. Leave out rescale.")
        before = own * mean(growth.expansions["residual"].write ** 2)
        what = f"rescale {source.eps} {before:g} → {norm_eps:g}"
        if math.isclose(before, norm_eps):
            return growth.noted(what, True, "nothing changes")
        scaled = Expansion.identity(growth.sizes["residual"]).scaled(math.sqrt(norm_eps / before))
        why = "the residual stream is scaled, and the mean square in every norm grows as eps does"
        return growth.expanded("residual", scaled).noted(what, True, why)

    return operator
