"""Reading a source: every byte once for its hash and for NaN, then rows at their offsets (numpy and xxhash).

Nothing here is mapped: what is truncated underway is an error, not the end of the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import local
from types import MappingProxyType
from typing import Protocol

import numpy as np
import xxhash

from growth.algebra.expansion import Booleans
from growth.arrays.casting import INFINITY, NUMPY_DTYPES, Array, bytes_view, value_of
from growth.arrays.tensor_info import ITEM_SIZE, TensorInfo
from growth.checkpoints.chunks import ComposedInfo, Fill, paths
from growth.errors import CheckpointError
from growth.runtime.workers import Progress, ProgressCounter, WorkerPool

CHUNK = 1 << 19  # bytes that are hashed at a time: of what a core's cache holds, half


class Files:
    """The files of a checkpoint's tensors, read by `pread`: nothing is mapped, nothing is kept.

    Each thread holds the one file open that it reads from, however many there are.
    """

    def __init__(self, tensors: Mapping[str, TensorInfo]):
        found = {path for info in tensors.values() for path in paths(info)}
        self._begun = {path: _identity(path) for path in sorted(found)}
        self._thread = local()

    def held(self, info: TensorInfo) -> OpenFile:
        """The open file that holds a tensor.

        Raises:
            CheckpointError: it cannot be opened.
        """
        assert info.path is not None
        held: OpenFile | None = getattr(self._thread, "held", None)
        if held is None or (held.path is not info.path and held.path != info.path):
            self._thread.held = held = OpenFile(info.path)
        return held

    def filling(self, info: TensorInfo) -> Fill:
        """What fills memory with the bytes of a tensor's rows, from a first one to before a last.

        Raises:
            CheckpointError: it, as what it returns, where the file ends early or cannot be read.
        """
        if isinstance(info, ComposedInfo):
            return partial(info.fill, self.filling)
        held, begin, row_bytes = self.held(info), info.begin, info.row_bytes

        def fill_rows(start: int, stop: int, view: memoryview) -> None:
            fill(held, begin + start * row_bytes, view[: (stop - start) * row_bytes])

        return fill_rows

    def check_unchanged(self) -> None:
        """Raises CheckpointError where a file is not what it was at first: it was written to underway."""
        for path, begun in self._begun.items():
            if _identity(path) != begun:
                raise CheckpointError(f"{path} was changed while it was read. Try again when nothing writes to it.")


class OpenFile:
    """A file that is open for as long as somebody holds it."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be opened: {error.strerror}.") from None

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _identity(path: Path) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def fill(file: OpenFile, offset: int, view: memoryview) -> None:
    """Fill memory with a file's bytes from `offset` on.

    Raises:
        CheckpointError: the file ends early or cannot be read.
    """
    while len(view):
        try:
            count = os.preadv(file.descriptor, [view], offset)
        except OSError as error:
            raise CheckpointError(f"{file.path} cannot be read: {error.strerror}.") from None
        if count == 0:
            raise CheckpointError(
                f"{file.path} ended at byte {offset:,} while it was read: it was changed meanwhile. Try again when "
                "nothing writes to it."
            )
        offset, view = offset + count, view[count:]


def first_not_finite(values: memoryview, dtype: str) -> int | None:
    """The position of the first NaN or Inf among the values of a float type, if there is one.

    >>> first_not_finite(memoryview(np.array([1, -np.inf], np.float16)).cast("B"), "F16")
    1
    """
    if max_magnitude_bits(values, dtype) < INFINITY[dtype][1]:
        return None
    return int(np.argmax(_not_finite(values, dtype)))


def max_magnitude_bits(values: memoryview, dtype: str) -> int:
    """The bits, without the sign, of a value than which none is larger: infinity's or more where not all are finite.

    Bits that any value has are enough where they are less than infinity's: none has more. Else two maxima tell it:
    as integers without a sign, the largest are the negative values; as integers with one, the positive ones.
    """
    unsigned, infinity = INFINITY[dtype]
    bits = np.frombuffer(values, unsigned)
    sign = 1 << (8 * bits.itemsize - 1)
    together = int(np.bitwise_or.reduce(bits)) & (sign - 1)
    if together < infinity:
        return together
    return max(int(bits.max()) - sign, int(bits.view(f"i{bits.itemsize}").max()))


def count_not_finite(values: memoryview, dtype: str) -> int:
    """How many NaN and Inf there are."""
    return int(_not_finite(values, dtype).sum())


def _not_finite(values: memoryview, dtype: str) -> Booleans:
    """Where the bits without the sign are not below infinity's."""
    unsigned, infinity = INFINITY[dtype]
    return np.asarray(np.left_shift(np.frombuffer(values, unsigned), 1) >= infinity << 1)


@dataclass(frozen=True)
class TensorSummary:
    """What is known of a tensor that was read from end to end.

    xxh3_128: of its bytes.
    largest: no value's magnitude is above it.
    """

    xxh3_128: str
    largest: float


class RowObserver(Protocol):
    """Looks at the rows of a tensor while these are scanned, in whichever process that is.

    multiple: it is given so many rows at a time, or a multiple of them; fewer at the end.
    """

    multiple: int

    def add(self, start: int, rows: Array) -> None:
        """Looks at rows from `start` on, in their stored dtype."""


def scan(
    pool: WorkerPool,
    files: Files,
    tensors: Mapping[str, TensorInfo],
    progress: Progress | None = None,
    observers: Mapping[str, RowObserver] = MappingProxyType({}),
) -> dict[str, TensorSummary]:
    """Reads tensors of float types from end to end, the largest first.

    observers: by the name of a tensor, what looks at its rows, so that they need not be read for it again.

    Raises:
        CheckpointError: a tensor is not finite, or a file ends early.
    """
    infos = sorted(tensors.values(), key=lambda info: -info.bytes)
    meter = ProgressCounter("check source", sum(info.bytes for info in infos), progress)
    found = pool.run([partial(_summary, files, info, meter, observers.get(info.name)) for info in infos], meter)
    return dict(sorted((info.name, summary) for info, summary in zip(infos, found, strict=True)))


def not_finite(info: TensorInfo, where: str = "") -> CheckpointError:
    """The error of a source tensor that holds NaN or Inf."""
    return CheckpointError(
        f"Tensor '{info.name}' in {info.path} holds NaN or Inf{where}. A model grown from it would be broken: repair "
        "the source, or take an earlier checkpoint."
    )


def _summary(files: Files, info: TensorInfo, meter: ProgressCounter, observer: RowObserver | None) -> TensorSummary:
    digest, largest = xxhash.xxh3_128(), 0
    for start, part in pieces(files, info, multiple=observer.multiple if observer else 1):
        largest = max(largest, max_magnitude_bits(part, info.dtype))
        if largest >= INFINITY[info.dtype][1]:
            at = int(np.argmax(_not_finite(part, info.dtype)))
            value = start * info.row_bytes // ITEM_SIZE[info.dtype] + at
            raise not_finite(info, f" (first at value {value:,})")
        digest.update(part)
        if observer is not None:
            observer.add(start, np.frombuffer(part, NUMPY_DTYPES[info.dtype]).reshape(-1, *info.shape[1:]))
        meter.add(len(part))
    return TensorSummary(digest.hexdigest(), float(value_of(largest, info.dtype)))


def pieces(files: Files, info: TensorInfo, size: int = CHUNK, *, multiple: int = 1) -> Iterator[tuple[int, memoryview]]:
    """A tensor's bytes, rows of about `size` bytes at a time with the first one's number, each in the same memory.

    multiple: the rows of a piece are a multiple of this, but for the last one's.
    """
    rows = info.shape[0] if info.shape else 1
    step = max(1, size // max(1, info.row_bytes) // multiple) * multiple
    buffer, fill_rows = bytes_view(np.empty(min(step, rows) * info.row_bytes, np.uint8)), files.filling(info)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        part = buffer[: (stop - start) * info.row_bytes]
        fill_rows(start, stop, part)
        yield start, part
