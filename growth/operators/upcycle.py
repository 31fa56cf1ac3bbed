"""upcycle: a dense model's MLPs become the experts of a mixture (Komatsuzaki et al. 2023, Sparse Upcycling)."""

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from growth.architectures.moe import experts_axis
from growth.config import LARGEST_TABLE
from growth.errors import RecipeError
from growth.expansion import Expansion
from growth.growth import Growth, Mixing
from growth.operators.chain import Operator

Router = Literal["random", "zero"]


def upcycle(*, experts: int, top_k: int, router: Router = "random", router_std: float = 0.02) -> Operator:
    """An operator that turns a dense model into the mixture of its family; the function is preserved.

    Every expert starts as the dense MLP, and the weights of the chosen ones sum to 1, so whichever are chosen
    compute it. A random router sends different tokens to different experts, which tells them apart; a router of
    zeros sends all tokens to the first ones.

    experts, top_k: how many there are, and how many of them a token is sent to.
    router: its initial values, random of deviation `router_std`, or zero.

    Raises (when applied):
        RecipeError: sizes that are no mixture, or a model that is one already.
    """

    def operator(growth: Growth) -> Growth:
        if router not in get_args(Router):
            raise RecipeError(f"upcycle has no router '{router}': use one of {', '.join(get_args(Router))}.")
        if "experts" in growth.axes:
            raise RecipeError("upcycle: the model is a mixture already. Use widen with axis: experts.")
        if not 1 <= top_k <= experts:
            raise RecipeError(f"upcycle: top_k = {top_k} is not between 1 and the number of experts, {experts}.")
        if experts > LARGEST_TABLE:
            raise RecipeError(f"upcycle: {experts:,} experts are more than any model has.")
        copies = Expansion(1, np.zeros(experts, np.int64), np.ones(experts), np.ones(experts))
        mixed = replace(
            growth,
            axes={**growth.axes, "experts": experts_axis(1)},
            expansions={**growth.expansions, "experts": copies},
            mixing=Mixing(top_k, router_std if router == "random" else 0.0),
        )
        what = f"upcycle to {experts} experts, top {top_k}, {router} router"
        return mixed.noted(what, True, "every expert is the dense MLP, and the weights of the chosen sum to 1")

    return operator
