"""upcycle: a dense model's MLPs become the experts of a mixture (Komatsuzaki et al. 2023, Sparse Upcycling)."""

import math
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from growth.algebra.expansion import Expansion
from growth.architectures.config import LARGEST_TABLE
from growth.architectures.families.moe import experts_axis
from growth.errors import RecipeError
from growth.operators.base import Growth, Upcycling
from growth.operators.sizes import Operator

Router = Literal["random", "zero"]


def upcycle(*, experts: int, top_k: int, router: Router = "random", router_std: float = 0.02) -> Operator:
    """An operator that turns a dense model into the mixture of its family; the function is preserved.

    Every expert starts as the dense MLP, and the weights of the chosen ones sum to 1, so whichever are chosen
    compute it. A random router sends different tokens to different experts, which tells them apart. What could not be
    trained is refused: with top_k = 1 the softmax over the one chosen weight is 1, so the router has no gradient; and a
    router of zeros sends all tokens to the first experts with equal weights, so these stay copies of one another, the
    others are never chosen, and the router has no gradient either.

    experts, top_k: how many there are, and how many of them a token is sent to, at least 2.
    router: random, the only one that can be trained.
    router_std: the standard deviation of the router's initial values, above 0.

    Raises (when applied):
        RecipeError: sizes that are no mixture, a router that cannot be trained, or a model that is a mixture already.
    """

    def operator(growth: Growth) -> Growth:
        if "experts" in growth.axes:
            raise RecipeError("upcycle: the model is a mixture already. Use widen with axis: experts.")
        _check_sizes(experts, top_k)
        _check_router(router, router_std, top_k)
        copies = Expansion(1, np.zeros(experts, np.int64), np.ones(experts), np.ones(experts))
        mixed = replace(
            growth,
            axes={**growth.axes, "experts": experts_axis(1)},
            expansions={**growth.expansions, "experts": copies},
            mixing=Upcycling(top_k, router_std),
        )
        what = f"upcycle to {experts} experts, top {top_k}, {router} router"
        why = "every expert is the dense MLP, and the weights of the chosen sum to 1; the router tells experts apart"
        return mixed.noted(what, True, why)

    return operator


def _check_sizes(experts: int, top_k: int) -> None:
    if not 1 <= top_k <= experts:
        raise RecipeError(f"upcycle: top_k = {top_k} is not between 1 and the number of experts, {experts}.")
    if experts > LARGEST_TABLE:
        raise RecipeError(f"upcycle: {experts:,} experts are more than any model has.")
    if top_k == 1:
        raise RecipeError(
            "upcycle: with top_k = 1 the weight of the chosen expert is a softmax over one, always 1, so the router "
            "would never have a gradient. Use top_k: 2 or more."
        )


def _check_router(router: str, router_std: float, top_k: int) -> None:
    if router not in get_args(Router):
        raise RecipeError(f"upcycle has no router '{router}': use one of {', '.join(get_args(Router))}.")
    if router == "zero" or not 0 < router_std < math.inf:
        given = "router: zero" if router == "zero" else f"router_std = {router_std}"
        raise RecipeError(
            f"upcycle: with {given} all tokens go to the first {top_k} experts in equal parts: these would stay equal, "
            "the others would never be chosen, and the router would never have a gradient. Use router: random and "
            "router_std: 0.02."
        )
