"""Tensors that are not one run of bytes in a file, such as the shards that several processes leave of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from growth.arrays.tensor_info import ITEM_SIZE, TensorInfo

Fill = Callable[[int, int, memoryview], None]  # fills memory with the bytes of rows, from a first to before a last
Reader = Callable[[TensorInfo], Fill]


@dataclass(frozen=True)
class ComposedInfo(TensorInfo, ABC):
    """A tensor that is made of other stored tensors while it is read."""

    @property
    @abstractmethod
    def parts(self) -> tuple[TensorInfo, ...]:
        """The stored tensors that it is made of."""

    @abstractmethod
    def fill(self, reader: Reader, start: int, stop: int, view: memoryview) -> None:
        """Fill memory with the bytes of rows `start` to `stop`.

        reader: what reads the rows of a part.
        """


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor: the index of its first value within the tensor, and where its bytes are."""

    offsets: tuple[int, ...]
    info: TensorInfo

    @property
    def box(self) -> tuple[slice, ...]:
        """The slices of the tensor that the chunk holds."""
        return tuple(slice(o, o + n) for o, n in zip(self.offsets, self.info.shape, strict=True))


@dataclass(frozen=True)
class ChunkedInfo(ComposedInfo):
    """A tensor in several chunks, which cover it without overlap."""

    chunks: tuple[Chunk, ...] = ()

    @property
    def parts(self) -> tuple[TensorInfo, ...]:
        """The chunks, as tensors."""
        return tuple(chunk.info for chunk in self.chunks)

    def fill(self, reader: Reader, start: int, stop: int, view: memoryview) -> None:
        """Fill memory with the bytes of rows, each chunk's in its place."""
        item = np.dtype((np.void, ITEM_SIZE[self.dtype]))
        rows = np.frombuffer(view, item).reshape(stop - start, *self.shape[1:])
        for chunk in self.chunks:
            high, *others = chunk.box
            low, top = max(start, high.start), min(stop, high.stop)
            if low < top:
                part: Any = np.empty((top - low, *chunk.info.shape[1:]), item)
                reader(chunk.info)(low - high.start, top - high.start, memoryview(part.view(np.uint8).reshape(-1)))
                rows[(slice(low - start, top - start), *others)] = part


def chunks(info: TensorInfo) -> tuple[Chunk, ...]:
    """The chunks of a tensor; any other tensor is one chunk."""
    return info.chunks if isinstance(info, ChunkedInfo) else (Chunk((0,) * len(info.shape), info),)


def joined(name: str, dtype: str, shape: tuple[int, ...], found: list[Chunk]) -> TensorInfo:
    """The tensor that chunks make up."""
    if len(found) == 1:
        return found[0].info
    return ChunkedInfo(name, dtype, shape, found[0].info.path, 0, tuple(found))


def paths(info: TensorInfo) -> set[Path]:
    """The files that hold a tensor's bytes."""
    if isinstance(info, ComposedInfo):
        return set().union(*map(paths, info.parts))
    return {info.path} if info.path is not None else set()
