"""break_symmetry: make copies diverge that would train identically forever (docs/copies.md)."""

import numpy as np

from growth.algebra.expansion import FRESH, Expansion, counts
from growth.algebra.split import Kind
from growth.errors import RecipeError
from growth.operators.base import Growth, Operator
from growth.operators.fit import is_divisible
from growth.operators.registry import Summary, check_choice, register


@register(Summary("`break_symmetry`", "makes copies diverge: divides the weights that read them", "yes"))
def break_symmetry(*, method: Kind = "random") -> Operator:
    """Make the copies from earlier steps diverge in training; the function is preserved.

    Place it anywhere after a `widen` step that makes copies with `shares: equal`, or copies of `experts`.

    method: `random` divides each weight that reads copies among them at random, and `mask` gives it to one of them, as
        `shares:` of `widen` does. The outputs of an expert's copies are averaged, so their last weights are divided.

    Raises (when applied):
        RecipeError: there are no copies.

    >>> import growth
    >>> copies = growth.widen("ffn", factor=2, init="tile", shares="equal")
    >>> plan = growth.plan([copies, growth.break_symmetry()], "examples/phi-mini")
    >>> plan.preserving, plan.growth.splits
    (True, {'ffn': 'random'})
    """

    def operator(growth: Growth) -> Growth:
        check_choice("break_symmetry", method=(method, Kind))
        shared = [name for name in growth.expansions if _applies(growth, name) and _is_shared(growth.expansions[name])]
        copied = [name for name in shared if is_divisible(name, growth, growth.source)]
        if not copied:
            raise RecipeError(
                "break_symmetry finds no copies that share a signal and can be told apart. Place it after a widen step "
                "with init: tile or sample and shares: equal."
            )
        what = f"break symmetry of {', '.join(copied)}, {method}"
        left = [name for name in shared if name not in copied]
        why = "the parts of each weight add up to it"
        why += f"; copies along {', '.join(left)} must be read in equal shares and stay alike" if left else ""
        return growth.split(method, *copied).noted(what, True, why)

    return operator


def _applies(growth: Growth, name: str) -> bool:
    """Whether copies along an axis share a signal that can be divided.

    The experts of an upcycled model do not: each token goes to some of them, in unequal parts.
    """
    axis = growth.axes[name]
    return not axis.external or (bool(axis.equal_copies) and growth.mixing is None)


def _is_shared(expansion: Expansion) -> bool:
    """Whether several copies of a unit are read."""
    read = np.where(expansion.read == 0, FRESH, expansion.source)
    return bool((counts(read, expansion.size) > 1).any())
