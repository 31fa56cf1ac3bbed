"""reuse: the published, lossy ways to start a larger model from a smaller one, for comparison."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import StrictBool

from growth.algebra.expansion import FRESH, Expansion, Integers
from growth.operators.base import Growth, Layer, Operator
from growth.operators.deepen import layer_order
from growth.operators.proposals import proposing
from growth.operators.registry import Size, Summary, check_choice, register
from growth.operators.sizes import grown_size, new_units

Method = Literal["submatrix", "tile"]
Position = Literal["edge", "middle"]


@register(
    Summary(
        "`reuse`",
        "reuses weights as published for Gopher, Phi-2 and ModernBERT, for comparison",
        "no, and the plan says so",
    ),
    example={"to": {"ffn": 10240}},
    lossy=True,
)
def reuse(
    *,
    to: Mapping[str, Size],
    layers: Size | None = None,
    method: Method = "tile",
    at: Position = "middle",
    fan_in: StrictBool = False,
) -> Operator:
    """Reuse weights as they are, in published ways that do not preserve the function.

    to: new sizes by axis, e.g. `{residual: 2560, ffn: 10240, head_dim: 80}`; `heads` counts query heads.
    layers: number of layers, copied in Gopher's order (Rae et al. 2021, appendix G.3.3); by default the source's.
    method: `tile` repeats the old weights until the new ones are full (ModernBERT, Warner et al. 2024, 2.2, after
        Phi-2); `submatrix` embeds them in larger random matrices.
    at: where the old weights are placed: `edge` (the first units) or `middle`. Within a head they always come first,
        because the rotary channels do.
    fan_in: normalise the weights that read a widened axis: by n / N if copies are summed (`tile`), by sqrt(n / N) if
        the other values are random (`submatrix`).

    Raises (when applied):
        RecipeError: an unknown axis, method or position, or a smaller size.

    >>> import growth
    >>> plan = growth.plan(growth.reuse(to={"ffn": 640}, layers=8), "examples/phi-mini")
    >>> plan.preserving, plan.config["intermediate_size"], [layer.source for layer in plan.growth.layers]
    (False, 640, [0, 1, 2, 2, 3, 4, 4, 5])
    """

    def apply(growth: Growth, /, **to: int) -> Growth:
        check_choice("reuse", method=(method, Method), at=(at, Position))
        sizes = ", ".join(f"{axis} {size}" for axis, size in to.items())
        for axis, size in to.items():
            new = new_units(growth, axis, size, None, key=axis)
            position = "edge" if growth.axes[axis].uncopyable else at
            growth = growth.expanded(axis, _reused(growth.sizes[axis], new, method, position, fan_in))
        if layers is not None:
            sources = layer_order("gopher", len(growth.layers), grown_size("layers", len(growth.layers), layers, None))
            growth = growth.deepened(tuple(Layer(source) for source in sources))
            sizes += f", {layers} layers"
        what = f"reuse weights for {sizes}, {method} from the {at}{', fan-in normalised' if fan_in else ''}"
        return growth.noted(what, False, "old weights beside random or repeated ones compute something else (lossy)")

    return proposing(apply, **to)


def _reused(old: int, new: int, method: Method, at: Position, fan_in: bool) -> Expansion:
    ratio = old / new
    scale = (ratio if method == "tile" else np.sqrt(ratio)) if fan_in else 1.0
    return Expansion(old, source_units(old, new, method, at), np.ones(new), np.full(new, scale))


def source_units(old: int, new: int, method: Method, at: Position) -> Integers:
    """Return the old unit of each new one.

    >>> source_units(4, 6, "tile", "middle"), source_units(4, 6, "submatrix", "middle")
    (array([3, 0, 1, 2, 3, 0]), array([-1,  0,  1,  2,  3, -1]))
    """
    position = np.arange(new) - (0 if at == "edge" else (new - old) // 2)
    if method == "tile":
        return position % old
    return np.where((position >= 0) & (position < old), position, FRESH)
