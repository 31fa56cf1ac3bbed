"""break_symmetry: copies that would train alike for ever are told apart, the function kept (docs/design.md, 2.2)."""

from dataclasses import replace
from typing import Literal, get_args

from growth.algebra.arithmetic import amplitude
from growth.algebra.draws import Draws
from growth.algebra.expansion import counts, random_shares
from growth.errors import RecipeError
from growth.operators.base import Growth, Noise
from growth.operators.sizes import Operator

Method = Literal["shares", "noise"]


def _shares(growth: Growth, name: str, method: str) -> bool:
    """Whether copies along an axis share a signal that the method can divide unequally.

    The experts of an upcycled model do not: tokens go to some of them, in unequal parts, and noise would not cancel.
    """
    axis = growth.axes[name]
    return not axis.outer or (bool(axis.alike) and method == "noise" and growth.mixing is None)


def break_symmetry(*, method: Method = "shares", snr_db: float = 20.0, seed: int = 0) -> Operator:
    """An operator that tells apart the copies made by the operators before it.

    method: `shares` reads unequal shares of the copies, their standard deviation `snr_db` below the equal
        share; `noise` adds noise to every weight that reads copies, `snr_db` below the weight, which cancels
        over the copies of each unit (HyperCloning, Samragh et al. 2024, 3.2).
    snr_db: signal-to-noise ratio, in decibels.
    seed: of the shares. Noise is drawn from the growth's own seed.

    Raises (when applied):
        RecipeError: nothing has been copied, or the ratio is below 0 dB.
    """

    def operator(growth: Growth) -> Growth:
        if method not in get_args(Method):
            raise RecipeError(f"break_symmetry has no method '{method}': use one of {', '.join(get_args(Method))}.")
        if not 0 <= snr_db <= 120:
            raise RecipeError(f"break_symmetry: snr_db = {snr_db} is not between 0 and 120 decibels.")
        copied = [
            name
            for name, expansion in growth.expansions.items()
            if _shares(growth, name, method) and counts(expansion.source, expansion.size).max() > 1
        ]
        if not copied:
            raise RecipeError("break_symmetry finds no copies: place it after a widen with init tile or sample.")
        what = f"break symmetry of {', '.join(copied)} by {method}, {snr_db} dB"
        if method == "noise":
            return replace(growth, noise=Noise(snr_db)).noted(what, True, "the noise cancels over the copies of a unit")
        expansions = dict(growth.expansions)
        for name in copied:
            old = expansions[name]
            uniform = Draws(seed, f"{name}/shares").uniform(len(old))
            shares = random_shares(old.source, old.size, uniform, amplitude(snr_db))
            expansions[name] = old.with_shares(shares)
        return replace(growth, expansions=expansions).noted(what, True, "the shares of a unit's copies sum to 1")

    return operator
