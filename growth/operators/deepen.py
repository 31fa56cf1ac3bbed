"""deepen: more layers, copied or random, as identities (exact) or not (lossy)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import Field, StrictFloat, StrictInt

from growth.errors import ConfigError, RecipeError
from growth.operators.base import Growth, InitStd, Layer, Operator
from growth.operators.proposals import Proposal, Unfit, proposing
from growth.operators.registry import Factor, Size, Summary, check_choice, register
from growth.operators.sizes import grown_size, one_size

Order = Literal["interleave", "stack", "append", "prepend", "middle", "gopher"]
LayerInit = Literal["identity", "copy", "fresh", "random"]
Std = Literal["stock", "mup"] | Annotated[StrictInt | StrictFloat, Field(gt=0, le=10)]
WHY = {
    "identity": "new layers output zero and leave the residual stream unchanged",
    "copy": "a layer that runs twice computes something else (lossy)",
    "fresh": "new layers are random inside, output zero and leave the residual stream unchanged",
    "random": "random layers change the residual stream (lossy)",
}


@register(
    Summary(
        "`deepen`",
        "more layers, `order: interleave`, `stack`, `append`, `prepend`, `middle`, `gopher` or a list",
        "yes with `init: identity` (copies) and `init: fresh` (random inside); `copy` and `random` are lossy",
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
    init_std: Std = "stock",
    block: Size | None = None,
) -> Operator:
    """Grow the number of layers.

    If `order` is a list and `init` is not `copy`, the list must name every source layer in ascending order; repeated
    mentions of a layer are the new layers.

    A source may have no layers at all: an embedding, a final norm and a head. Its first layers are `fresh` or `random`,
    and their kinds (sliding windows, layers without RoPE, dense layers of a mixture) are those that its config implies
    for the new number of layers.

    to, factor: the new number of layers, or a ratio.
    order: which source layer each new layer copies, and where it goes; of that layer, a random layer takes only the
        kind (window, RoPE, experts). `interleave` spreads the copies evenly and puts each directly after its original;
        `stack` repeats the whole model on top (Gong et al. 2019); `append`, `prepend` and `middle` put copies of the
        last, first and middle layers beside them; `gopher` makes layer i of N a copy of source layer round(i L / N),
        where L is the number of source layers, clamped to the last one (Rae et al. 2021, appendix G.3.3); or a list
        with a source layer for each new layer.
    init: the new layers. `identity` copies old ones and zeroes the last weights of their residual branches, so that the
        residual stream passes through unchanged (exact; LLaMA-Pro, Wu et al. 2024); `copy` leaves these weights as they
        are, which changes the function (lossy). `fresh` is random inside, as the stock class would initialise it, and
        ends in zero (exact); `random` has random last weights too (lossy).
    init_std: the standard deviation of the matrices of `fresh` and `random` layers: `stock` (the config's
        `initializer_range`), `mup` (that times sqrt(old fan-in / new fan-in) if the recipe also widens what the matrix
        reads, as muP scales hidden weights; Yang et al. 2022, Tensor Programs V, table 8), or a number. Gains of norms
        are 1 and biases 0.
    block: with `order: middle`, layers are added in blocks of this size, each a copy of the middle one of the blocks so
        far (the earlier of two), directly after it: MIDAS (Saunshi et al. 2024), one block per stage. Without it, the
        layers nearest to the middle are copied together.

    Raises (when applied):
        RecipeError: fewer layers, an unknown order or source layer, a source without layers that are to be copied, a
            list that lacks the source's layers in order (except with `copy`), or blocks that do not fit.

    >>> import growth
    >>> plan = growth.plan(growth.deepen(to=8), "examples/phi-mini")
    >>> plan.preserving, [layer.source for layer in plan.growth.layers]
    (True, [0, 0, 1, 2, 3, 3, 4, 5])
    """

    def apply(
        growth: Growth,
        /,
        to: int | None,
        factor: float | None,
        order: Order | Sequence[int],
        init: LayerInit,
        init_std: InitStd,
        block: int | None,
    ) -> Growth:
        check_choice("deepen", init=(init, LayerInit))
        std = init_std if init in ("fresh", "random") else None
        depth = len(growth.layers)
        if std is not None:
            _check_drawn(growth, init)
        if not depth:
            return _first_layers(growth, to, factor, order, init, std)
        sources = _sources(order, depth, to, factor, block, min(growth.source.leading, depth - 1))
        same = sources == list(range(depth))
        what = _described(depth, len(sources), order if isinstance(order, str) else "listed", init, std, block)
        why = "nothing changes" if same and init in ("copy", "random") else WHY[init]
        if init == "copy":
            return _deepened(growth, tuple(Layer(source) for source in sources)).noted(what, same, why)
        original = _originals(sources, depth, last=order == "prepend")
        if len(original) < depth:
            raise Unfit(
                f"deepen: order {sources} does not list source layer {len(original)} after the layers before it, so "
                f"init: {init} cannot keep the source's layers: it needs every source layer in ascending order.",
                [Proposal({"init": "copy"})],
            )
        new = Layer(0, init != "random", std)
        layers = tuple(
            Layer(source) if index in original else replace(new, source=source) for index, source in enumerate(sources)
        )
        return _deepened(growth, layers).noted(what, same or init != "random", why)

    return proposing(apply, to=to, factor=factor, order=order, init=init, init_std=init_std, block=block)


def _deepened(growth: Growth, layers: tuple[Layer, ...]) -> Growth:
    """Return a growth followed by a map of layers.

    Raises:
        RecipeError: the config counts leading layers of a kind, and the result has others in front of one.
    """
    grown = growth.deepened(layers)
    try:
        for key in growth.source.layer_counts:
            growth.source.leading_layers(key, [layer.source for layer in grown.layers])
    except ConfigError as error:
        raise Unfit(f"deepen: {error}", [Proposal({"order": order}) for order in get_args(Order)]) from None
    return grown


def _described(old: int, new: int, order: str, init: LayerInit, std: InitStd | None, block: int | None = None) -> str:
    blocks = f" in blocks of {block}" if block else ""
    drawn = "" if std in (None, "stock") else f", init_std {std}"
    return f"deepen {old} → {new} layers, {order}{blocks}, {init}{drawn}"


def _first_layers(
    growth: Growth,
    to: int | None,
    factor: float | None,
    order: Order | Sequence[int],
    init: LayerInit,
    std: InitStd | None,
) -> Growth:
    """Return the growth of a source without layers."""
    if std is None:
        raise Unfit(
            f"deepen: the source has no layers, and init: {init} copies them.",
            [Proposal({"init": "fresh"})],
            [Proposal({"init": "random"})],
        )
    if not isinstance(order, str):
        raise RecipeError(f"deepen: order lists layers {list(order)} of a source that has none. Use to: {len(order)}.")
    if factor is not None:
        raise RecipeError(f"deepen: {factor:g} times no layers are none. State the number of layers with 'to'.")
    count = grown_size("layers", 0, to, factor)
    layers = tuple(Layer(layer, init == "fresh", std) for layer in range(count))
    what = _described(0, count, "first layers", init, std)
    return growth.with_blank_layers(count).deepened(layers).noted(what, init == "fresh", WHY[init])


def _check_drawn(growth: Growth, init: LayerInit) -> None:
    """Refuse random layers where some of a layer's values are constants of the class, which no draw makes."""
    layered = [weight for weight in growth.source.weights if weight.per_layer]
    nothing_to_copy = growth.blank is not None or not growth.layers
    names = [weight.name for weight in layered if weight.is_scalar or (weight.borrowed and nothing_to_copy)]
    if names:
        raise Unfit(
            f"deepen: a layer of {growth.source.model_type} holds {', '.join(names)}, to which the class gives values "
            f"of its own, so init: {init} cannot make a layer.",
            [Proposal({"init": "identity"})],
        )


def _sources(
    order: Order | Sequence[int], depth: int, to: int | None, factor: float | None, block: int | None, leading: int
) -> list[int]:
    """Return the source layer of each new layer; all orders but a list leave the `leading` layers where they are."""
    if block is not None and order != "middle":
        raise RecipeError(f"deepen: block: {block} belongs to order: middle. Use that order, or leave out block.")
    if not isinstance(order, str):
        return _listed(list(order), depth, to, factor)
    if order not in get_args(Order):
        known = ", ".join(get_args(Order))
        raise RecipeError(f"deepen has no order '{order}': use one of {known}, or a list of layers.")
    new = grown_size("layers", depth, to, factor)
    if block is not None:
        return _middle_blocks(depth, new, block)
    following = layer_order(order, depth - leading, new - leading)
    return [*range(leading), *(leading + source for source in following)]


def _middle_blocks(depth: int, new: int, block: int) -> list[int]:
    """Return the source layer of each of `new` layers, of which blocks were repeated one after the other."""
    if depth % block or new % block:
        raise Unfit(
            f"deepen: cannot grow {depth} layers to {new} in blocks of {block}: both must be multiples of the block.",
            [Proposal({"block": math.gcd(depth, new)})],
        )
    blocks = list(range(depth // block))
    while len(blocks) * block < new:
        middle = (len(blocks) - 1) // 2
        blocks.insert(middle + 1, blocks[middle])
    return [number * block + layer for number in blocks for layer in range(block)]


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
