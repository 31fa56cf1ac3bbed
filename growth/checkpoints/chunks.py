"""Tensors whose bytes are in several places, as shards of several processes leave them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from growth.arrays.tensor_info import TensorInfo


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
class ChunkedInfo(TensorInfo):
    """A tensor in several chunks, which cover it without overlap."""

    chunks: tuple[Chunk, ...] = ()


def chunks(info: TensorInfo) -> tuple[Chunk, ...]:
    """The chunks of a tensor; a tensor in one place is one chunk."""
    return info.chunks if isinstance(info, ChunkedInfo) else (Chunk((0,) * len(info.shape), info),)


def joined(name: str, dtype: str, shape: tuple[int, ...], found: list[Chunk]) -> TensorInfo:
    """The tensor that chunks make up."""
    if len(found) == 1:
        return found[0].info
    return ChunkedInfo(name, dtype, shape, found[0].info.path, 0, tuple(found))


def paths(info: TensorInfo) -> set[Path]:
    """The files that hold a tensor's bytes."""
    return {chunk.info.path for chunk in chunks(info) if chunk.info.path is not None}
