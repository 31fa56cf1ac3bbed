"""upcycle: a dense model's MLPs become the experts of a mixture (Sparse Upcycling, Komatsuzaki et al. 2023)."""

import math
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, StrictFloat, StrictInt

from growth.algebra.expansion import Expansion
from growth.architectures.config import LARGEST_TABLE
from growth.architectures.mixtures import experts_axis
from growth.errors import RecipeError
from growth.operators.base import Growth, Operator
from growth.operators.dense_to_moe import Upcycling
from growth.operators.proposals import Proposal, Unfit, proposing
from growth.operators.registry import Size, Summary, check_choice, register
from growth.operators.sizes import check_axes

Router = Literal["random", "zero"]
Part = Annotated[StrictInt | StrictFloat, Field(ge=0, le=1)]


@register(
    Summary(
        "`upcycle`",
        "turns the MLPs of a dense model into the experts of a mixture (llama, mistral → mixtral, "
        "qwen2 → qwen2_moe, qwen3 → qwen3_moe, youtu → deepseek_v3, ernie4_5 → ernie4_5_moe, olmo2 → flex_olmo, "
        "hunyuan_v1_dense → hunyuan_v1_moe, cohere2 → cohere2_moe): whole, or divided into fine-grained experts "
        "(`granularity`), with a shared expert (`shared`), or partly random (`reinit`: Drop-Upcycling)",
        "yes, unless `reinit`",
    ),
    example={"experts": 8, "top_k": 2},
)
def upcycle(
    *,
    experts: Size,
    top_k: Size,
    granularity: Size = 1,
    shared: Part = 0.0,
    reinit: Part = 0.0,
    router: Router = "random",
    router_std: Annotated[StrictInt | StrictFloat, Field(ge=0, le=10)] = 0.02,
    seed: int = 0,
) -> Operator:
    """Turn a dense model into the mixture of experts of its family; the function is preserved.

    Every expert starts as the dense MLP and the weights of the chosen experts sum to 1, so the function is the same
    whichever are chosen. A random router sends different tokens to different experts, which makes them diverge.
    Identical experts give the router no gradient at first; from the second step on they differ, and it has one.

    What could never be trained is refused. With `top_k: 1` the weight of the chosen expert is a softmax over one, so
    the router has no gradient. A router of zeros sends all tokens to the first experts in equal parts: these stay
    identical, the others are never chosen, and the router has no gradient.

    experts: number of experts of the mixture.
    top_k: number of experts for each token, at least 2.
    granularity: number of experts that each copy of the dense MLP is divided into (He et al. 2024, arXiv 2410.07524);
        it divides `experts`, `top_k` and the size of the MLP. The parts of a copy share a row of the router, so all of
        them are chosen together, and their last weights are multiplied by their number, because each has that part of
        the copy's weight. With `top_k` equal to `granularity`, the active experts have as many parameters as the dense
        MLP.
    shared: the part of the MLP's output that the shared expert computes, which all tokens pass through (in mixtures
        that have one, such as qwen2_moe and deepseek_v3); the chosen experts compute the rest. If the shared expert
        has a gate, of zeros, its last weight is divided by the weight that this gate gives it, 1/2. With 0, the shared
        expert contributes nothing at first; with 1, the others contribute nothing.
    reinit: the fraction of every expert's units that start at random instead of as copies, different ones in each
        expert and layer; lossy (Drop-Upcycling, Nakamura et al. 2025, arXiv 2502.19261, which recommends 0.5). Random
        values have the standard deviation of the dense weight. `param_groups` and `Rewarm` count these units as fresh
        where they are given the plan; growth.json does not record them.
    router: only `random`; `zero` is refused.
    router_std: standard deviation of the router's initial values, above 0.
    seed: the random seed of `reinit`.

    Raises (when applied):
        RecipeError: impossible sizes, a router that cannot be trained, a family without such a mixture, or a model that
            is already a mixture.

    >>> import growth
    >>> from transformers import Qwen3Config, Qwen3ForCausalLM
    >>> sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    >>> model = Qwen3ForCausalLM(Qwen3Config(**sizes, num_attention_heads=2, num_key_value_heads=1))
    >>> plan = growth.plan(growth.upcycle(experts=4, top_k=2), model)
    >>> plan.preserving, plan.config["model_type"], plan.config["num_experts"]
    (True, 'qwen3_moe', 4)
    """

    def apply(
        growth: Growth, /, experts: int, top_k: int, granularity: int, router: Router, router_std: float
    ) -> Growth:
        if "experts" in growth.axes:
            raise RecipeError("upcycle: the model is already a mixture of experts. Use widen with axis: experts.")
        check_axes(growth, "upcycle, which makes experts of ffn", "ffn")
        mixing = Upcycling(
            growth.source.model_type, top_k, router_std, granularity, float(shared), float(reinit), seed * bool(reinit)
        )
        _check_mixture(mixing)
        _check_sizes(experts, top_k)
        _check_router(router, router_std, top_k)
        _check_granularity(growth, experts, top_k, granularity)
        parts = np.tile(np.arange(granularity), experts // granularity)
        ffn = growth.sizes["ffn"] // granularity
        own = {"ffn": Expansion.identity(ffn)} if granularity > 1 else {}
        mixed = replace(
            growth,
            axes={**growth.axes, "experts": experts_axis(granularity), "ffn": replace(growth.axes["ffn"], size=ffn)},
            expansions={
                **growth.expansions,
                **own,
                "experts": Expansion(granularity, parts, np.ones(experts), np.ones(experts)),
            },
            mixing=mixing,
        )
        return mixed.noted(_what(mixing, experts, router), reinit == 0, _why(mixing))

    return proposing(apply, experts=experts, top_k=top_k, granularity=granularity, router=router, router_std=router_std)


def _what(mixing: Upcycling, experts: int, router: str) -> str:
    said = [f"upcycle to {experts} experts", f"top {mixing.top_k}"]
    said += [f"{mixing.parts} to an MLP"] if mixing.parts > 1 else []
    said += [f"{mixing.shared:.0%} of the output shared"] if mixing.shared else []
    said += [f"{mixing.reinit:.0%} of the units redrawn"] if mixing.reinit else []
    return ", ".join([*said, f"{router} router"])


def _why(mixing: Upcycling) -> str:
    said = "every expert is the dense MLP"
    if mixing.parts > 1:
        said = f"every {mixing.parts} experts are the dense MLP, share a row of the router and are chosen together,"
    if mixing.reinit:
        return f"{said.rstrip(',')} except for the units that are redrawn (lossy)"
    rest = f", the shared expert computes {mixing.shared:.0%} of the output" if mixing.shared else ""
    return f"{said} and the weights of those chosen sum to 1{rest}; the router makes experts diverge"


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


def _check_granularity(growth: Growth, experts: int, top_k: int, granularity: int) -> None:
    """Refuse parts that are not equal, or of which a token would not go to all."""
    if granularity == 1:
        return
    if not growth.expansions["ffn"].is_identity:
        raise RecipeError(
            f"upcycle: granularity = {granularity} divides the MLP of the source, and a step before it widens ffn. "
            "Place upcycle before that step."
        )
    whole = {"experts": experts, "top_k": top_k, "ffn": growth.sizes["ffn"]}
    left = [f"{name} = {number}" for name, number in whole.items() if number % granularity]
    if left:
        common = math.gcd(*whole.values())
        raise Unfit(
            f"upcycle: granularity = {granularity} must divide experts, top_k and ffn, and does not divide "
            f"{' and '.join(left)}.",
            [Proposal({"granularity": number}) for number in range(min(granularity, common), 0, -1)],
        )


def _check_mixture(mixing: Upcycling) -> None:
    shared = mixing.mixture.shared
    if not mixing.shared:
        return
    if shared is None:
        raise RecipeError(
            f"upcycle: shared = {mixing.shared:g} needs a mixture with a shared expert, and "
            f"{mixing.mixture.model_type} has none. Leave out shared."
        )
    if mixing.parts > 1 and shared.size == mixing.mixture.expert_size:
        raise RecipeError(
            f"upcycle: the shared expert of a {mixing.mixture.model_type} is as large as every other, so it cannot "
            f"hold the MLP that granularity = {mixing.parts} divides. Leave out granularity or shared."
        )
