"""deepen: more layers, as identities (exact) or as plain copies (lossy)."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from growth.errors import RecipeError
from growth.operators.base import Growth, Layer
from growth.operators.sizes import Operator, grown_size

Order = Literal["interleave", "stack", "append", "prepend", "middle", "gopher"]
LayerInit = Literal["identity", "copy"]


def deepen(
    *,
    to: int | None = None,
    factor: float | None = None,
    order: Order | Sequence[int] = "interleave",
    init: LayerInit = "identity",
) -> Operator:
    """An operator that grows the number of layers.

    order: which source layer each new layer copies, and where it stands:
        `interleave` copies spread evenly, each behind its original;
        `stack` the whole model again on top (Gong et al. 2019);
        `append`, `prepend`, `middle` copies of the last, first, middle layers beside them;
        `gopher` round(i L / N) for layer i of N (Rae et al. 2021, appendix G.3.3), held within the source;
        a list of source layers, one for each layer of the result.
    init: `identity` zeroes what ends the residual branches of new layers, so that they pass the stream on
        (LLaMA-Pro, Wu et al. 2024); `copy` leaves them as they are, which changes the function.

    Raises (when applied):
        RecipeError: fewer layers, an unknown order or source layer, or a list in which the source's layers
            do not all occur in order while `init` is `identity`.
    """

    def operator(growth: Growth) -> Growth:
        depth = len(growth.layers)
        sources = _sources(order, depth, to, factor)
        original = _originals(sources, depth, last=order == "prepend")
        what = f"deepen {depth} → {len(sources)} layers, {order if isinstance(order, str) else 'listed'}, {init}"
        if init not in get_args(LayerInit):
            raise RecipeError(f"deepen has no init '{init}': use one of {', '.join(get_args(LayerInit))}.")
        if init == "copy":
            same = sources == list(range(depth))
            why = "nothing changes" if same else "a layer that runs twice computes something else (lossy)"
            return growth.deepened(tuple(Layer(source) for source in sources)).noted(what, same, why)
        if len(original) < depth:
            raise RecipeError(
                f"deepen: layer {len(original)} of the source has no place in order in {sources}, so identity layers "
                "cannot keep the function. List every source layer in ascending order, or say init: copy."
            )
        layers = tuple(Layer(source, index not in original) for index, source in enumerate(sources))
        return growth.deepened(layers).noted(what, True, "new layers end in zero and pass the stream on")

    return operator


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
            raise RecipeError(f"deepen lists {len(sources)} layers and asks for {new}: leave out one of the two.")
    grown_size("layers", depth, len(sources), None)
    for source in sources:
        if not 0 <= source < depth:
            raise RecipeError(f"deepen lists source layer {source}; the source has layers 0 to {depth - 1}.")
    return sources


def layer_order(order: Order, depth: int, new: int) -> list[int]:
    """The source layer of each of `new` layers.

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
            # 2 L layers: round((2 L - 1) / 2) is L where L is even, one past the end
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
    """Where the source's layers themselves stand, in order: at their first (or last) possible places."""
    places = list(enumerate(sources))
    wanted = list(range(depth))
    if last:
        places.reverse()
        wanted.reverse()
    original: set[int] = set()
    for place, source in places:
        if len(original) < depth and source == wanted[len(original)]:
            original.add(place)
    return original
