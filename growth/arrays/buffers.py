"""Memory to work in, and what else is made once and used for block after block."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np

from growth.arrays.casting import Array

T = TypeVar("T")
KEPT = 32  # things of which a thread does not forget the one that it used last


class Workspace:
    """Memory that one thread works in, made once and used for block after block.

    Memory that a process touches for the first time costs more than the arithmetic that is done in it.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}
        self._views: dict[tuple[str, tuple[int, ...], np.dtype[Any]], Array] = {}
        self._kept: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is made for a key; the same again, unless many other things were asked for since."""
        kept: T = self._kept.pop(key) if key in self._kept else make()
        self._kept[key] = kept
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return kept

    def take(self, use: str, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """An array of any content, in the memory kept for this use; the same one whenever the same is asked for."""
        key = use, tuple(shape), dtype
        if key not in self._views:
            needed = math.prod(shape) * dtype.itemsize
            if use not in self._buffers or needed > len(self._buffers[use]):
                self._buffers[use] = np.empty(needed, np.uint8)
                self._views = {other: view for other, view in self._views.items() if other[0] != use}
            self._views[key] = self._buffers[use][:needed].view(dtype).reshape(shape)
        return self._views[key]
