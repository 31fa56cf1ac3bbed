"""reuse: the published, lossy ways to start a larger model from a smaller one, for comparison."""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from growth.algebra.expansion import FRESH, Expansion, Integers
from growth.errors import RecipeError
from growth.operators.base import Growth, Layer
from growth.operators.deepen import layer_order
from growth.operators.sizes import Operator, grown_size
from growth.operators.widen import resolve

Method = Literal["submatrix", "tile"]
Place = Literal["edge", "middle"]


def reuse(
    *,
    to: Mapping[str, int],
    layers: int | None = None,
    method: Method = "tile",
    at: Place = "middle",
    fan_in: bool = False,
) -> Operator:
    """An operator that reuses weights as they are; it does not preserve the function.

    to: sizes of the axes, e.g. {"residual": 2560, "ffn": 10240, "head_dim": 80}.
    layers: number of layers; they are copied in Gopher's order (Rae et al. 2021, appendix G.3.3).
    method: `submatrix` sets the old weights into larger random ones; `tile` repeats them until the new
        ones are full (ModernBERT, Warner et al. 2024, 2.2, after Phi-2).
    at: where the old weights stand: at the first units, or in the middle. The channels of a head always
        start with the old ones, because those that turn come first.
    fan_in: normalise what reads a widened axis: by n / N where copies add up, by sqrt(n / N) where random
        rest does.

    Raises (when applied):
        RecipeError: an unknown axis, method or place, or a smaller size.
    """

    def operator(growth: Growth) -> Growth:
        for name, value, known in (("method", method, Method), ("at", at, Place)):
            if value not in get_args(known):
                raise RecipeError(f"reuse has no {name} '{value}': use one of {', '.join(get_args(known))}.")
        sizes = ", ".join(f"{axis} {size}" for axis, size in to.items())
        for axis, size in to.items():
            name, new = resolve(growth, axis, size, None)
            place = "edge" if growth.axes[name].fixed else at
            growth = growth.expanded(name, _reused(growth.sizes[name], new, method, place, fan_in))
        if layers is not None:
            sources = layer_order("gopher", len(growth.layers), grown_size("layers", len(growth.layers), layers, None))
            growth = growth.deepened(tuple(Layer(source) for source in sources))
            sizes += f", {layers} layers"
        what = f"reuse weights for {sizes}, {method} from the {at}{', fan-in normalised' if fan_in else ''}"
        return growth.noted(what, False, "old weights beside random or repeated ones compute something else (lossy)")

    return operator


def _reused(old: int, new: int, method: Method, at: Place, fan_in: bool) -> Expansion:
    ratio = old / new
    scale = (ratio if method == "tile" else np.sqrt(ratio)) if fan_in else 1.0
    return Expansion(old, source_units(old, new, method, at), np.ones(new), np.full(new, scale))


def source_units(old: int, new: int, method: Method, at: Place) -> Integers:
    """The old unit of each new one.

    >>> source_units(4, 6, "tile", "middle"), source_units(4, 6, "submatrix", "middle")
    (array([3, 0, 1, 2, 3, 0]), array([-1,  0,  1,  2,  3, -1]))
    """
    position = np.arange(new) - (0 if at == "edge" else (new - old) // 2)
    if method == "tile":
        return position % old
    return np.where((position >= 0) & (position < old), position, FRESH)
