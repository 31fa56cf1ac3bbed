"""deepen: more layers, as identities (exact) or as plain copies (lossy)."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from pydantic import StrictInt

from growth.errors import RecipeError
from growth.operators.base import Growth, Layer, Operator
from growth.operators.proposals import Proposal, Unfit, proposing
from growth.operators.registry import Factor, Size, Summary, check_choice, register
from growth.operators.sizes import grown_size, one_size

Order = Literal["interleave", "stack", "append", "prepend", "middle", "gopher"]
LayerInit = Literal["identity", "copy"]


@register(
    Summary(
        "`deepen`",
        "more layers, `order: interleave`, `stack`, `append`, `prepend`, `middle`, `gopher` or a list",
        "yes with `init: identity`; `init: copy` is lossy",
    ),
    example={"factor": 2},
    check=one_size,
)
def deepen(
    *,
    to: Size | None = None,
    factor: Factor | None = None,
    order: Order | list[StrictInt] = "interleave",
    init: LayerInit = "identity",
) -> Operator:
    """Grow the number of layers.

    If `order` is a list and `init` is `identity`, the list must name every source layer in ascending order; repeated
    mentions of a layer are the new layers.

    to, factor: the new number of layers, or a ratio.
    order: which source layer each new layer copies, and where it goes: `interleave` spreads the copies evenly and puts
        each directly after its original; `stack` repeats the whole model on top (Gong et al. 2019); `append`, `prepend`
        and `middle` put copies of the last, first and middle layers beside them; `gopher` makes layer i of N a copy of
        source layer round(i L / N), where L is the number of source layers, clamped to the last one (Rae et al. 2021,
        appendix G.3.3); or a list with a source layer for each new layer.
    init: `identity` zeroes the last weights of the new layers' residual branches, so that the residual stream passes
        through unchanged (exact; LLaMA-Pro, Wu et al. 2024); `copy` leaves them as they are, which changes the function
        (lossy).

    Raises (when applied):
        RecipeError: fewer layers, an unknown order or source layer, or with `identity` a list that does not have all
            the source's layers in order.
    """

    def apply(
        growth: Growth, /, to: int | None, factor: float | None, order: Order | Sequence[int], init: LayerInit
    ) -> Growth:
        check_choice("deepen", init=(init, LayerInit))
        depth = len(growth.layers)
        sources = _sources(order, depth, to, factor)
        what = f"deepen {depth} → {len(sources)} layers, {order if isinstance(order, str) else 'listed'}, {init}"
        if init == "copy":
            same = sources == list(range(depth))
            why = "nothing changes" if same else "a layer that runs twice computes something else (lossy)"
            return growth.deepened(tuple(Layer(source) for source in sources)).noted(what, same, why)
        original = _originals(sources, depth, last=order == "prepend")
        if len(original) < depth:
            raise Unfit(
                f"deepen: order {sources} does not list source layer {len(original)} after the layers before it, so "
                "identity layers cannot preserve the function: these need every source layer in ascending order.",
                [Proposal({"init": "copy"})],
            )
        layers = tuple(Layer(source, index not in original) for index, source in enumerate(sources))
        return growth.deepened(layers).noted(what, True, "new layers end in zero and pass the residual stream on")

    return proposing(apply, to=to, factor=factor, order=order, init=init)


def _sources(order: Order | Sequence[int], depth: int, to: int | None, factor: float | None) -> list[int]:
    if not isinstance(order, str):
        return _listed(list(order), depth, to, factor)
    if order not in get_args(Order):
        known = ", ".join(get_args(Order))
        raise RecipeError(f"deepen has no order '{order}': use one of {known}, or a list of layers.")
    return layer_order(order, depth, grown_size("layers", depth, to, factor))


def _listed(sources: list[int], depth: int, to: int | None, factor: float | None) -> list[int]:
    if to is not None or factor is not None:
        new = grown_size("layers", depth, to, factor)
        if new != len(sources):
            raise RecipeError(
                f"deepen: order lists {len(sources)} layers, but the size asked for is {new}. Leave out one of the two."
            )
    grown_size("layers", depth, len(sources), None)
    for source in sources:
        if not 0 <= source < depth:
            raise RecipeError(
                f"deepen: order lists source layer {source}, but the source has layers 0 to {depth - 1}. List only "
                "these layers."
            )
    return sources


def layer_order(order: Order, depth: int, new: int) -> list[int]:
    """Return the source layer of each of `new` layers.

    >>> layer_order("interleave", 3, 4), layer_order("stack", 3, 5), layer_order("prepend", 3, 5)
    ([0, 0, 1, 2], [0, 1, 2, 0, 1], [0, 1, 0, 1, 2])
    >>> layer_order("gopher", 2, 4)
    [0, 0, 1, 1]
    """
    old, extra = np.arange(depth), new - depth
    match order:
        case "interleave":
            sources = np.arange(new) * depth // new
        case "gopher":
            # to 2 L layers with L even, round((2 L - 1) / 2) is L, one past the end
            sources = np.minimum(np.rint(np.arange(new) * depth / new).astype(int), depth - 1)
        case "stack":
            sources = np.concatenate([old, np.arange(extra) % depth])
        case "append":
            sources = np.concatenate([old, np.arange(-extra, 0) % depth])
        case "prepend":
            sources = np.concatenate([np.arange(extra) % depth, old])
        case "middle":
            start = max((depth - extra) // 2, 0)
            stop = min(start + extra, depth)
            sources = np.concatenate([old[:stop], np.resize(old[start:stop], extra), old[stop:]])
    return [int(source) for source in sources]


def _originals(sources: list[int], depth: int, *, last: bool) -> set[int]:
    """Return the positions of the source's own layers, in order: the first (or last) possible ones."""
    direction = -1 if last else 1
    places = iter(list(enumerate(sources))[::direction])
    found = (next((at for at, source in places if source == layer), None) for layer in range(depth)[::direction])
    return {at for at in found if at is not None}
