"""break_symmetry: make copies diverge that would train identically for ever (docs/design.md, 2.2)."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, StrictFloat, StrictInt

from growth.algebra.expansion import counts
from growth.algebra.split import Kind
from growth.errors import RecipeError
from growth.operators.base import Growth, Noise, Operator
from growth.operators.registry import Summary, check_choice, register

Method = Literal["shares", "mask", "noise"]


@register(
    Summary(
        "`break_symmetry`",
        "makes copies diverge: divides the weights that read them, or adds noise that cancels over them",
        "yes",
    )
)
def break_symmetry(
    *,
    method: Method = "shares",
    snr_db: Annotated[StrictInt | StrictFloat, Field(ge=0, le=120)] = 20.0,
) -> Operator:
    """Make the copies diverge that earlier steps made; the function is preserved.

    It stands after a `widen` with copies; other steps may come between.

    method: `shares` divides each weight that reads copies among them at random, and `mask` gives it to one of them, as
        `shares:` of `widen` does; `noise` adds noise to every weight that reads copies, and the noise cancels over the
        copies of each unit (HyperCloning, Samragh et al. 2024, 3.2).
    snr_db: how many decibels the noise is below the weight; of `noise` only.

    Raises (when applied):
        RecipeError: there are no copies, or the ratio is not between 0 and 120 dB.
    """

    def operator(growth: Growth) -> Growth:
        check_choice("break_symmetry", method=(method, Method))
        if not 0 <= snr_db <= 120:
            raise RecipeError(f"break_symmetry: snr_db = {snr_db} is not between 0 and 120 decibels.")
        copied = [
            name
            for name, expansion in growth.expansions.items()
            if _applies(growth, name, method) and counts(expansion.source, expansion.size).max() > 1
        ]
        if not copied:
            raise RecipeError("break_symmetry finds no copies: place it after a widen with init tile or sample.")
        what = f"break symmetry of {', '.join(copied)} by {method}"
        if method == "noise":
            why = "the noise cancels over the copies of a unit"
            return replace(growth, noise=Noise(snr_db)).noted(f"{what}, {snr_db} dB", True, why)
        kind: Kind = "random" if method == "shares" else "mask"
        return growth.split(kind, *copied).noted(what, True, "the parts of each weight add up to it")

    return operator


def _applies(growth: Growth, name: str, method: str) -> bool:
    """Whether copies along an axis share a signal that the method can divide unequally.

    The experts of an upcycled model do not: each token goes to some of them, in unequal parts, and noise would not
    cancel.
    """
    axis = growth.axes[name]
    return not axis.external or (bool(axis.equal_copies) and method == "noise" and growth.mixing is None)
