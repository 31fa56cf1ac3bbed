"""Stacks: stock classes keep in one parameter what files keep in a tensor for each expert."""

from __future__ import annotations

Shape = tuple[int, ...]


def offsets(count: int, shape: Shape, whole: Shape) -> list[Shape]:
    """Where each of some tensors of one shape begins in the parameter that they lie in, in this order.

    Experts follow one another along a dimension of their own; what an expert has several of, along the next.

    >>> offsets(4, (3, 5), (2, 6, 5))
    [(0, 0, 0), (0, 3, 0), (1, 0, 0), (1, 3, 0)]
    >>> offsets(1, (3, 5), (3, 5))
    [(0, 0)]
    """
    if len(whole) == len(shape):
        return [(0,) * len(shape)]
    high, *others = shape
    beside = whole[1] // high
    return [(n // beside, n % beside * high, *(0 for _ in others)) for n in range(count)]
