"""An operator: `{op: mlp_ratio, ratio: 8}` in a recipe, `mlp_ratio(8)` in Python."""

from growth.operators import Operator, widen
from growth.operators.base import Growth
from growth.operators.registry import Factor, Summary, register


@register(Summary("`mlp_ratio`", "widens the MLP to a ratio of the residual stream", "yes"), example={"ratio": 8})
def mlp_ratio(ratio: Factor) -> Operator:
    """Widen the MLP to a ratio of the residual stream; the function is preserved.

    ratio: neurons of the MLP per channel of the residual stream.
    """

    def operator(growth: Growth) -> Growth:
        return widen("ffn", to=round(ratio * growth.sizes["residual"]))(growth)

    return operator
