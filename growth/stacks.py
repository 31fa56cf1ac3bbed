"""Stacks: stock classes keep in one parameter what files keep in a tensor for each expert."""

from __future__ import annotations

from collections.abc import Sequence

Shape = tuple[int, ...]


def stack(names: Sequence[str], shape: Shape) -> tuple[Shape, list[Shape]]:
    """The shape of the parameter in which tensors of one shape lie in this order, and the offsets of each.

    Experts follow one another along a dimension of their own; what an expert has several of, along the next.

    >>> stack(["experts.0.gate", "experts.0.up", "experts.1.gate", "experts.1.up"], (3, 5))
    ((2, 6, 5), [(0, 0, 0), (0, 3, 0), (1, 0, 0), (1, 3, 0)])
    >>> stack(["head"], (3, 5))
    ((3, 5), [(0, 0)])
    """
    if len(names) == 1:
        return shape, [(0,) * len(shape)]
    high, *others = shape
    experts = len({_expert(name) for name in names})
    beside = len(names) // experts
    offsets = [(n // beside, n % beside * high, *(0 for _ in others)) for n in range(len(names))]
    return (experts, beside * high, *others), offsets


def _expert(name: str) -> str:
    """The number of the expert in a tensor's name: the last one."""
    return [part for part in name.split(".") if part.isdigit()][-1]
