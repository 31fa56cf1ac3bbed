"""Work divided into shares of about the same size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def even_shares(items: Iterable[T], size: Callable[[T], int], count: int) -> list[list[T]]:
    """Divide items among `count` shares: the largest first, each to the share with the least so far.

    >>> even_shares([5, 1, 4, 2], int, 2)
    [[5, 1], [4, 2]]
    """
    shares: list[list[T]] = [[] for _ in range(count)]
    filled = [0] * count
    for item in sorted(items, key=size, reverse=True):
        least = filled.index(min(filled))
        shares[least].append(item)
        filled[least] += size(item)
    return shares
