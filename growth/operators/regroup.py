"""regroup: more KV heads, each with fewer query heads; the function is preserved."""

import numpy as np

from growth.algebra.expansion import Expansion
from growth.errors import RecipeError
from growth.operators.base import ATTENTION, Growth, Operator
from growth.operators.registry import Size, Summary, register
from growth.operators.sizes import check_axes


@register(
    Summary(
        "`regroup`",
        "more KV heads for the same query heads: copies every KV head and divides its query heads among the copies",
        "yes; refused where a norm runs over all heads, with ALiBi, and where each KV head is stored together with its "
        "query heads",
    ),
    example={"factor": 3},
)
def regroup(*, factor: Size) -> Operator:
    """Copy every KV head and divide its query heads among the copies, for a target with fewer query heads per KV head.

    Query heads keep their order and their values, and each attends to a copy of the keys and values that it attended
    to. If the factor does not divide the query heads of a KV head, the last copy gets fresh query heads, which are not
    read yet. `widen` with `axis: heads` or `queries` can follow.

    factor: number of KV heads that each one becomes.

    Raises (when applied):
        RecipeError: a family whose heads cannot be regrouped.

    >>> import growth
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    >>> model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=1))
    >>> growth.plan(growth.regroup(factor=2), model).config["num_key_value_heads"]
    2
    """

    def operator(growth: Growth) -> Growth:
        check_axes(growth, "regroup heads", *ATTENTION)
        heads, queries = growth.sizes["heads"], growth.sizes["queries"]
        each = -(-queries // factor)
        told = f"regroup KV heads {heads} → {heads * factor}, query heads of each {queries} → {each}"
        if factor == 1:
            return growth.noted(told, True, "nothing changes")
        _check_heads(growth, told.removeprefix("regroup "))
        of_one = Expansion.padding(queries, each * factor, silent="read")
        grown = growth.regrouped(
            Expansion.copies(heads, np.repeat(np.arange(heads), factor)),
            Expansion(queries, np.arange(each), np.ones(each), np.ones(each)),
            Expansion.identity(heads).times(of_one),
        )
        return grown.noted(told, True, "each query head attends to a copy of the keys and values that it attended to")

    return operator


def _check_heads(growth: Growth, change: str) -> None:
    axes, weights = [growth.axes[name] for name in ATTENTION], growth.source.weights
    together = any("heads" in weight.within for weight in weights)
    reasons = {axis.refusal: bool(axis.refusal) for axis in axes} | {
        "query heads have slopes of their own (ALiBi).": any(axis.fixed for axis in axes),
        "one norm runs over the keys of all heads.": any("heads" in group for group in growth.source.norms),
        "each KV head is stored together with its query heads.": together,
    }
    reason = next((reason for reason, applies in reasons.items() if applies), None)
    if reason:
        raise RecipeError(f"Cannot regroup {change}: {reason} Keep the number of query heads per KV head.")
