"""upcycle: a dense model's MLPs become the experts of a mixture (Sparse Upcycling, Komatsuzaki et al. 2023)."""

import math
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, StrictFloat, StrictInt

from growth.algebra.expansion import Expansion
from growth.architectures.config import LARGEST_TABLE
from growth.architectures.families.moe import experts_axis
from growth.errors import RecipeError
from growth.operators.base import Growth, Operator
from growth.operators.dense_to_moe import Upcycling
from growth.operators.proposals import Proposal, Unfit, proposing
from growth.operators.registry import Size, Summary, check_choice, register

Router = Literal["random", "zero"]


@register(
    Summary(
        "`upcycle`",
        "turns the MLPs of a dense model into the experts of a mixture (llama, mistral → mixtral, "
        "qwen2 → qwen2_moe, qwen3 → qwen3_moe)",
        "yes",
    ),
    example={"experts": 8, "top_k": 2},
)
def upcycle(
    *,
    experts: Size,
    top_k: Size,
    router: Router = "random",
    router_std: Annotated[StrictInt | StrictFloat, Field(ge=0, le=10)] = 0.02,
) -> Operator:
    """Turn a dense model into the mixture of experts of its family; the function is preserved.

    Every expert starts as the dense MLP and the weights of the chosen experts sum to 1, so the function is the same
    whichever are chosen. A random router sends different tokens to different experts, which makes them diverge.

    What could never be trained is refused. With `top_k: 1` the weight of the chosen expert is a softmax over one, so
    the router has no gradient. A router of zeros sends all tokens to the first experts in equal parts: these stay
    identical, the others are never chosen, and the router has no gradient.

    experts: number of experts.
    top_k: number of experts for each token, at least 2.
    router: `random`. `zero` is refused.
    router_std: standard deviation of the router's initial values, above 0.

    Raises (when applied):
        RecipeError: impossible sizes, a router that cannot be trained, or a model that is already a mixture.
    """

    def apply(growth: Growth, /, experts: int, top_k: int, router: Router, router_std: float) -> Growth:
        if "experts" in growth.axes:
            raise RecipeError("upcycle: the model is already a mixture of experts. Use widen with axis: experts.")
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
        why = "every expert is the dense MLP and the weights of those chosen sum to 1; the router makes experts diverge"
        return mixed.noted(what, True, why)

    return proposing(apply, experts=experts, top_k=top_k, router=router, router_std=router_std)


def _check_sizes(experts: int, top_k: int) -> None:
    if not 1 <= top_k <= experts:
        raise RecipeError(f"upcycle: top_k = {top_k} is not between 1 and experts = {experts}. Correct one of the two.")
    if experts > LARGEST_TABLE:
        raise RecipeError(f"upcycle: experts = {experts:,}; at most {LARGEST_TABLE:,} are supported.")
    if top_k == 1:
        raise Unfit(
            "upcycle: with top_k = 1 the weight of the chosen expert is a softmax over one, always 1, so the router "
            "would never have a gradient.",
            [Proposal({"top_k": 2}), Proposal({"experts": 2, "top_k": 2})],
        )


def _check_router(router: str, router_std: float, top_k: int) -> None:
    check_choice("upcycle", router=(router, Router))
    if router == "zero" or not 0 < router_std < math.inf:
        given = "router: zero" if router == "zero" else f"router_std = {router_std}"
        raise Unfit(
            f"upcycle: with {given} all tokens go to the first {top_k} experts in equal parts: these would stay "
            "identical, the others would never be chosen, and the router would never have a gradient.",
            [Proposal({"router": "random", "router_std": 0.02})],
        )
