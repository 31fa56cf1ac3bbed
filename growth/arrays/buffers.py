"""Buffers and other objects that a worker makes once and uses for one block after another."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np

from growth.arrays.casting import Array

T = TypeVar("T")
KEPT = 32  # objects that a workspace keeps, besides buffers


def shared_zeros(shape: Sequence[int]) -> Array:
    """Zeros in float64 that this process and those forked from it share."""
    size = math.prod(shape)
    return np.frombuffer(mmap.mmap(-1, max(8 * size, 1)), np.float64, size).reshape(shape)


class Workspace:
    """Memory that one thread works in.

    It is used again for every block, because a process pays more for touching new memory than for the arithmetic done
    in it.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}
        self._views: dict[tuple[str, tuple[int, ...], np.dtype[Any]], Array] = {}
        self._kept: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """The object that was made for a key, made now if it was never made or was dropped for more recent ones."""
        kept: T = self._kept.pop(key) if key in self._kept else make()
        self._kept[key] = kept
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return kept

    def take(self, use: str, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """An uninitialised array in the memory kept for a use; equal arguments give the same array."""
        key = use, tuple(shape), dtype
        if key not in self._views:
            needed = math.prod(shape) * dtype.itemsize
            if use not in self._buffers or needed > len(self._buffers[use]):
                self._buffers[use] = np.empty(needed, np.uint8)
                self._views = {other: view for other, view in self._views.items() if other[0] != use}
            self._views[key] = self._buffers[use][:needed].view(dtype).reshape(shape)
        return self._views[key]
