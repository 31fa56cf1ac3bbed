"""Rows to values: the gather and the multiplications of a plan, a block of rows at a time (torch).

Every value is computed in float32 at least (float64 where source or output is) and rounded once.
What a value is does not depend on how the work is divided: random ones depend on the seed, the tensor's name
and the row alone, means are summed in blocks of fixed rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from growth.checkpoint import TensorInfo
from growth.errors import CheckpointError
from growth.reading import Files, each_thread
from growth.row import Cancelling, Dimension, Level, Row

DTYPES: Mapping[str, torch.dtype] = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
GRANULE = 64  # rows that share a random stream, or a partial sum; blocks start at multiples of it
SAMPLED_ROWS = 256  # from which the size of fresh values is estimated
FEW_RUNS = 16  # above which it is worth a look whether a dimension repeats a shorter one
MANY_RUNS = 64  # above which indices are gathered one by one
BLOCK_BYTES = 2 << 20  # of source or output that a thread works on at a time: what a core's cache holds
BLOCKS_BYTES = 8 << 20  # and that all threads do: memory must not grow with the number of cores


class Workspace:
    """Memory that one thread works in, made once and used for block after block.

    Memory that a process touches for the first time costs more than the arithmetic that is done in it.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[tuple[str, tuple[int, ...], torch.dtype], Tensor] = {}

    def take(self, use: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of any content, in the memory kept for this use."""
        key = use, tuple(shape), dtype
        if key not in self._views:
            needed = math.prod(shape) * dtype.itemsize
            if needed > len(self._buffers.get(use, ())):
                self._buffers[use] = torch.empty(needed, dtype=torch.uint8)
                self._views = {other: view for other, view in self._views.items() if other[0] != use}
            self._views[key] = self._buffers[use][:needed].view(dtype).view(key[1])
        return self._views[key]


Run = tuple[int, int, int]  # new rows start to stop, and the first of the old rows that they copy


class Source(Protocol):
    """Where rows of source tensors come from."""

    def fill(self, info: TensorInfo, rows: Tensor, runs: Sequence[Run]) -> None:
        """Fills some of `rows`, in the tensor's dtype, with runs of its rows."""


class Memory:
    """A source of tensors in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = tensors

    def fill(self, info: TensorInfo, rows: Tensor, runs: Sequence[Run]) -> None:
        """Fills some of `rows` with runs of a tensor's rows."""
        tensor = self._tensors[info.name]
        for start, stop, old in runs:
            rows[start:stop].copy_(tensor[old : old + stop - start])


class Disk:
    """A source of tensors in files."""

    def __init__(self, files: Files):
        self._files = files

    def fill(self, info: TensorInfo, rows: Tensor, runs: Sequence[Run]) -> None:
        """Fills some of `rows` with runs of a tensor's rows.

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """
        view, width = bytes_view(rows), info.row_bytes
        for start, stop, old in runs:
            self._files.fill(info, old, old + stop - start, view[start * width : stop * width])


def read_rows(source: Source, info: TensorInfo, start: int, stop: int) -> Tensor:
    """Rows start to stop of a tensor, in its stored dtype and in memory of their own."""
    rows = torch.empty((stop - start, *info.shape[1:]), dtype=DTYPES[info.dtype])
    source.fill(info, rows, [(0, stop - start, start)])
    return rows


def bytes_view(values: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, in its own memory."""
    array: Any = (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()
    return memoryview(array.reshape(-1).view(np.uint8))


@dataclass(frozen=True)
class Statistics:
    """What a row must know of its whole source tensor before any part of it can be grown.

    mean, deviation: of the values, where fresh ones or noise are drawn to their size.
    row_means: over the rows that a LayerNorm's space runs over: (keys, *columns).
    """

    mean: float = 0.0
    deviation: float = 0.0
    row_means: Tensor | None = None


def measure(row: Row, source: Source) -> Statistics:
    """Reads what `grow_rows` needs to know of the whole source tensor; mostly nothing."""
    if row.zero or row.is_copy or row.drawn is not None:
        return Statistics()
    mean, deviation = _typical(row, source) if row.draws else (0.0, 0.0)
    level = row.dimensions[0].level
    return Statistics(mean, deviation, None if level is None else _row_means(row, source, level))


def grow_rows(
    row: Row, source: Source, statistics: Statistics, seed: int, start: int = 0, stop: int | None = None
) -> Tensor:
    """Rows `start` to `stop` of an output tensor, in its dtype.

    `start` is a multiple of `GRANULE`.
    """
    return Grower(row, source, seed, statistics, Workspace()).rows(start, row.shape[0] if stop is None else stop)


def grow_tensor(row: Row, source: Source, seed: int) -> Tensor:
    """A whole output tensor, in its dtype."""
    return grow_rows(row, source, measure(row, source), seed)


def compute_dtype(row: Row) -> torch.dtype:
    """What a row's products and sums are computed in."""
    return torch.float64 if "F64" in (row.dtype, row.source.dtype) else torch.float32


@dataclass(frozen=True, eq=False)
class Grower:
    """One output tensor, grown a block of rows at a time."""

    row: Row
    source: Source
    seed: int
    statistics: Statistics
    workspace: Workspace

    @cached_property
    def dtype(self) -> torch.dtype:
        """What products and sums are computed in."""
        return compute_dtype(self.row)

    def factor(self, start: int, stop: int) -> float | Tensor | None:
        """What rows start to stop are multiplied by before their columns are: a number, or one for each row.

        None where there is more to do with them. Means along columns are of scaled rows, so where there are any all
        rows of the tensor are treated alike.
        """
        if self.even is not None and self.columns:
            return 1.0  # the columns have it
        if self.levels_columns:
            return None
        number = self._factor(start, stop)
        first = self.row.dimensions[0]
        if number is not None or first.level is not None or self.row.offset or not self.columns:
            return number
        return torch.from_numpy(first.scale[start:stop]).to(self.dtype)

    @cached_property
    def levels_columns(self) -> bool:
        """Whether means are taken along columns."""
        return any(columns.dimension.level is not None for columns in self.columns)

    def _factor(self, start: int, stop: int) -> float | None:
        first = self.row.dimensions[0]
        scale = first.scale[start:stop]
        if self.row.offset or (scale != scale[0]).any():
            return None
        if first.level is not None and first.level.coefficient[start:stop].any():
            return None
        return float(scale[0])

    def adds(self, start: int, stop: int) -> bool:
        """Whether anything but old values is in rows start to stop."""
        adds_here, adds_where_fresh = self._additions
        return adds_here or (adds_where_fresh and bool(self.row.dimensions[0].fresh[start:stop].any()))

    @cached_property
    def _additions(self) -> tuple[bool, bool]:
        """Whether anything is added in all rows, and in those that are fresh."""
        row = self.row
        fills = row.draws or row.constant is not None
        fresh_columns = any(dimension.fresh.any() for dimension in row.dimensions[1:])
        return row.is_noisy or row.offset != 0 or (fills and fresh_columns), fills

    def can_overflow(self, largest: float) -> bool:
        """Whether a value could leave the range of its type.

        largest: magnitude of the source's values, which that of a mean over them does not exceed.
        """
        return self.adds(0, self.row.shape[0]) or not largest * self.reach < self.limit

    @cached_property
    def reach(self) -> float:
        """How many times the magnitude of the source's largest value an old value has at most."""
        return math.prod(dimension.reach for dimension in self.row.dimensions)

    @cached_property
    def limit(self) -> float:
        """What stays finite in the output's type however it is rounded."""
        return torch.finfo(DTYPES[self.row.dtype]).max * 0.99

    @cached_property
    def columns(self) -> tuple[Columns, ...]:
        """What is done along the other dimensions; a coefficient that all rows have is the first one's too."""
        steps = [(axis, d) for axis, d in enumerate(self.row.dimensions) if axis and not d.is_identity]
        if self.even is not None and self.even != 1 and steps:
            axis, dimension = steps[0]
            steps[0] = axis, dimension.scaled(self.even)
        return tuple(Columns(axis, dimension, self.dtype) for axis, dimension in steps)

    @cached_property
    def even(self) -> float | None:
        """The one coefficient of all rows; None where they differ, or where there is more to do with them."""
        first = self.row.dimensions[0]
        return None if first.level is not None else self._factor(0, len(first))

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the output, in its dtype, in the workspace's memory or memory of its own."""
        row = self.row
        dtype = DTYPES[row.dtype]
        if row.zero:
            zeros = self.workspace.take("result", (stop - start, *row.shape[1:]), dtype)
            return zeros.fill_(0.0 - row.offset)
        if row.drawn is not None:
            return (_drawn(row, self.seed, start, stop) * row.drawn).to(dtype)
        values = self.stored(start, stop)
        factor = self.factor(start, stop)
        if factor is None:
            values, factor = self.scaled(values, start, stop), 1.0
        adds = self.adds(start, stop)
        result = self.dtype if adds else dtype
        if not self.columns and isinstance(factor, float) and factor != 1:
            values = _times(values, factor, self.workspace.take("result", values.shape, result), self.workspace)
        for number, columns in enumerate(self.columns, 1):
            last = number == len(self.columns)
            into = columns.into(values, self.workspace, result if last else self.dtype, "result" if last else "")
            columns.fill(into, values, factor, self.workspace)
            values, factor = into, 1.0
        if adds:
            values = self.converted(values, self.dtype, "adding")
            self.add(values, start, stop)
        return self.converted(values, dtype, "output")

    def converted(self, values: Tensor, dtype: torch.dtype, use: str) -> Tensor:
        """The values in another type."""
        if values.dtype == dtype:
            return values
        return self.workspace.take(use, values.shape, dtype).copy_(values)

    def stored(self, start: int, stop: int) -> Tensor:
        """The source's rows that are rows start to stop of the output, as they are stored; zero where fresh."""
        info = self.row.source
        values = self.workspace.take("stored", (stop - start, *info.shape[1:]), DTYPES[info.dtype])
        runs = [(a - start, b - start, old) for a, b, old in self.row.dimensions[0].runs_between(start, stop)]
        for a, b, old in runs:
            if old < 0:
                values[a:b] = 0
        self.source.fill(info, values, [run for run in runs if run[2] >= 0])
        return values

    def scaled(self, stored: Tensor, start: int, stop: int) -> Tensor:
        """Rows times their coefficients, plus what keeps the mean where a LayerNorm expects it."""
        first, offset = self.row.dimensions[0], self.row.offset
        values = self.workspace.take("scaled", stored.shape, self.dtype).copy_(stored)
        if offset:
            values += offset
        _scale(values, first.scale[start:stop], 0)
        if first.level is not None:
            assert self.statistics.row_means is not None
            _add_means(values, self.statistics.row_means, first.level, 0, slice(start, stop), self.workspace)
        return values

    def add(self, values: Tensor, start: int, stop: int) -> None:
        """Adds what is not the source's: noise, fresh values, constants, and takes off what the model adds."""
        row = self.row
        if row.is_noisy:
            values += _cancelling_noise(row, self.statistics.deviation, self.seed, start, stop).to(values.dtype)
        if row.draws:
            _fill_fresh(values, row, self.statistics, self.seed, start, stop)
        if row.constant is not None:
            values[torch.from_numpy(row.dimensions[0].fresh[start:stop])] = row.constant
        if row.offset:
            values -= row.offset


# ------------------------------------------------- columns


# new indices start to stop, their one coefficient, the old values they copy if any, and their own place
Piece = tuple[int, int, float | None, Tensor | None, Tensor]


class Columns:
    """The gather and the multiplication along one dimension behind the first.

    Columns with one coefficient go from the source's type to the output's in one operation, the others by way of
    the type of the computation; the values are the same.
    """

    def __init__(self, axis: int, dimension: Dimension, dtype: torch.dtype):
        self.axis, self.dimension, self.dtype = axis, dimension, dtype
        self.times, self.one = dimension.repeated if len(dimension.pieces) > FEW_RUNS else (1, dimension)
        self.scale = torch.from_numpy(self.one.scale).to(dtype)
        self._exact: dict[tuple[int, torch.dtype], Tensor | None] = {}
        self._views: dict[tuple[int, int], tuple[Tensor, Tensor, tuple[Tensor, Tensor, list[Piece]]]] = {}
        self.by_index = len(self.one.pieces) > MANY_RUNS
        self.pieces = [] if self.by_index else self.one.pieces
        if self.by_index:
            self.index = torch.from_numpy(np.maximum(self.one.source, 0))
            self.fresh = torch.from_numpy(np.flatnonzero(self.one.fresh))

    def into(self, values: Tensor, workspace: Workspace, dtype: torch.dtype, use: str) -> Tensor:
        """Memory for the new indices of some rows."""
        shape = [len(self.dimension) if n == self.axis else length for n, length in enumerate(values.shape)]
        return workspace.take(use or f"axis {self.axis}", shape, dtype)

    def fill(self, into: Tensor, values: Tensor, factor: float | Tensor, workspace: Workspace) -> None:
        """Fills `into` with the new indices of some rows, all of which are multiplied by `factor` first.

        factor: one number, or one for each row.
        """
        axis, level = self.axis + (self.times > 1), self.one.level
        into, values, pieces = self.views(into, values)
        if isinstance(factor, Tensor):
            factor = factor.view(-1, *([1] * (values.ndim - 1)))
        means = None if level is None else _means_along(values, level, axis, self.dtype) * factor
        if self.by_index:
            chosen = values.index_select(axis, self.index).to(self.dtype).index_fill_(axis, self.fresh, 0)
            chosen *= factor
            _multiply(chosen, self.scale, axis)
            if level is not None and means is not None:
                _add_means(chosen, means, level, axis, slice(None), workspace)
            into.copy_(chosen)
            return
        for a, b, scale, before, part in pieces:
            if before is None and scale is not None:
                part.zero_()
            elif before is None or not self.at_once(before, part, a, b, scale, factor, workspace):
                part.copy_(self.computed(before, part, factor, means, workspace, a, b, axis))

    def views(self, into: Tensor, values: Tensor) -> tuple[Tensor, Tensor, list[Piece]]:
        """The two with what repeats as a dimension of its own, and their pieces; kept, since memory is used again."""
        key = id(into), id(values)
        if key not in self._views:
            new, old, axis = into, values, self.axis
            if self.times > 1:
                axis += 1
                new, old = (t.view(*t.shape[: self.axis], self.times, -1, *t.shape[axis:]) for t in (into, values))
            pieces: list[Piece] = [
                (a, b, scale, None if at < 0 else old.narrow(axis, at, b - a), new.narrow(axis, a, b - a))
                for a, b, at, scale in self.pieces
            ]
            self._views[key] = into, values, (new, old, pieces)
        return self._views[key][2]

    def at_once(
        self,
        before: Tensor,
        part: Tensor,
        a: int,
        b: int,
        scale: float | None,
        factor: float | Tensor,
        workspace: Workspace,
    ) -> bool:
        """Fills new indices a to b from old values in one operation, where one is enough; says whether it was.

        torch multiplies half types in float32 and rounds once. So one product of what they hold as it is comes out
        as it does by way of float32.
        """
        if isinstance(factor, Tensor):
            exact = _exactly(factor, part.dtype) if scale == 1 and before.dtype == part.dtype else None
        elif scale is not None and 1 in (scale, factor):
            _times(before, scale * factor, part, workspace)
            return True
        else:
            exact = self.exact(a, b, part) if factor == 1 and before.dtype == part.dtype else None
        if exact is not None:
            torch.mul(before, exact, out=part)
        return exact is not None

    def exact(self, a: int, b: int, like: Tensor) -> Tensor | None:
        """The coefficients of new indices a to b in a tensor's type, where it holds them and no mean is added."""
        key = a, like.dtype
        if key not in self._exact:
            plain = self.one.level is None or not self.one.level.coefficient[a:b].any()
            held = _exactly(self.scale[a:b], like.dtype) if plain else None
            behind = like.ndim - 1 - self.axis - (self.times > 1)
            self._exact[key] = None if held is None else held.view(-1, *([1] * behind))
        return self._exact[key]

    def computed(
        self,
        before: Tensor | None,
        part: Tensor,
        factor: float | Tensor,
        means: Tensor | None,
        workspace: Workspace,
        a: int,
        b: int,
        axis: int,
    ) -> Tensor:
        """New indices a to b, which copy old ones or none, in the type of the computation."""
        computed = workspace.take("computed", part.shape, self.dtype)
        if before is None:
            computed.zero_()
        else:
            computed.copy_(before)
            if isinstance(factor, Tensor) or factor != 1:
                computed *= factor
            _multiply(computed, self.scale[a:b], axis)
        if self.one.level is not None and means is not None:
            _add_means(computed, means, self.one.level, axis, slice(a, b), workspace)
        return computed


def _exactly(values: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The values in another type, where it holds them as they are."""
    held = values.to(dtype)
    return held if torch.equal(held.to(values.dtype), values) else None


def _times(values: Tensor, factor: float, into: Tensor, workspace: Workspace) -> Tensor:
    """Fills `into` with values times a factor, computed in float32 at least and rounded once."""
    if factor == 1:
        into.copy_(values)
    elif values.dtype == into.dtype:  # for half types torch multiplies by a number in float32
        torch.mul(values, float(np.float32(factor)) if into.dtype.itemsize < 8 else factor, out=into)
    else:
        wide = torch.promote_types(torch.promote_types(values.dtype, into.dtype), torch.float32)
        into.copy_(workspace.take("wide", values.shape, wide).copy_(values).mul_(factor))
    return into


# ------------------------------------------------- means that a LayerNorm must find


def _row_means(row: Row, source: Source, level: Level) -> Tensor:
    """Means over a space that runs over rows, read a few rows at a time: (keys, *columns).

    Rows are summed in the type of the computation by `GRANULE`, and those sums in float64.
    """
    info, dtype = row.source, compute_dtype(row)
    rows, columns = info.shape[0], info.shape[1:]
    total = torch.zeros((level.outer * level.inner, *columns), dtype=torch.float64)
    outer = torch.arange(level.outer)[:, None, None] * level.inner
    keys = (outer + torch.arange(level.inner)).expand(level.outer, level.size, level.inner).reshape(-1)
    workspace = Workspace()
    for start, stop in blocks(rows, info.row_bytes):
        values = workspace.take("stored", (stop - start, *columns), DTYPES[info.dtype])
        source.fill(info, values, [(0, stop - start, start)])
        if len(total) > 1:
            total.index_add_(0, keys[start:stop], values.double())
            continue
        for part in torch.split(values, GRANULE):
            total += part.sum(0, keepdim=True, dtype=dtype)
    return (total / level.size).to(dtype)


def _means_along(values: Tensor, level: Level, axis: int, dtype: torch.dtype) -> Tensor:
    """The means over the space that a level keeps, of each row: (rows, …, keys, …)."""
    before, after = values.shape[:axis], values.shape[axis + 1 :]
    split = (level.outer, level.size, level.inner)
    shape = split if level.outer * level.inner > 1 else split[1:2]  # torch sums a last dimension fastest
    sums = values.reshape(*before, *shape, *after).sum(axis + (len(shape) > 1), dtype=dtype)
    return sums.reshape(*before, level.outer * level.inner, *after) / level.size


def _add_means(values: Tensor, means: Tensor, level: Level, axis: int, part: slice, workspace: Workspace) -> None:
    """Adds coefficient times mean to each index of an axis that has one."""
    coefficient, keys = level.coefficient[part], level.keys[part]
    places = np.flatnonzero(coefficient)
    if not len(places):
        return
    if means.shape[axis] == 1 and len(places) == len(coefficient):  # all of them have the one mean
        shape = [1] * values.ndim
        shape[axis] = -1
        factors = torch.from_numpy(coefficient).to(values.dtype).view(shape)
        values += torch.mul(means, factors, out=workspace.take("means", values.shape, values.dtype))
        return
    chosen = means.to(values.dtype).index_select(axis, torch.from_numpy(keys[places]))
    _scale(chosen, coefficient[places], axis)
    values.index_add_(axis, torch.from_numpy(places), chosen)


def _scale(values: Tensor, scale: np.ndarray, axis: int) -> None:
    if not (scale == 1).all():
        _multiply(values, torch.from_numpy(scale).to(values.dtype), axis)


def _multiply(values: Tensor, scale: Tensor, axis: int) -> None:
    shape = [1] * values.ndim
    shape[axis] = -1
    values *= scale.view(shape)


def blocks(rows: int, row_bytes: int) -> list[tuple[int, int]]:
    """Row ranges of about `BLOCK_BYTES`, or this thread's part of `BLOCKS_BYTES`, from multiples of `GRANULE`.

    >>> blocks(130, 1 << 15)
    [(0, 64), (64, 128), (128, 130)]
    """
    size = each_thread(BLOCK_BYTES, BLOCKS_BYTES)
    step = max(1, size // max(1, row_bytes) // GRANULE) * GRANULE
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


# ------------------------------------------------- random values


def _random(name: str, seed: int, granule: int, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform values of mean 0 and deviation 1 for one granule of rows, from a counter-based generator.

    Each is one of 65,536 evenly spaced values, none of which is 0.
    """
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest(), "little")
    words = np.random.Philox(key=key, counter=[0, 0, 0, granule]).random_raw(-(-math.prod(shape) // 4))
    values = words.astype("<u8", copy=False).view("<i2")[: math.prod(shape)].astype(np.float32)
    values += np.float32(0.5)
    values *= np.float32(math.sqrt(12 / ((1 << 32) - 1)))
    return values.reshape(shape)


def _drawn(row: Row, seed: int, start: int, stop: int) -> Tensor:
    """Random values times the row's coefficients, in float64."""
    parts = [_random(row.target, seed, n, (b - a, *row.shape[1:])) for n, a, b in _granules(start, stop)]
    drawn = torch.from_numpy(np.concatenate(parts)).double()
    for axis, dimension in enumerate(row.dimensions):
        _scale(drawn, dimension.scale[start:stop] if axis == 0 else dimension.scale, axis)
    return drawn


def _granules(start: int, stop: int) -> list[tuple[int, int, int]]:
    assert start % GRANULE == 0
    return [(n, n * GRANULE, min((n + 1) * GRANULE, stop)) for n in range(start // GRANULE, -(-stop // GRANULE))]


def _typical(row: Row, source: Source) -> tuple[float, float]:
    """Mean and standard deviation of the source, from rows spread evenly over it."""
    info = row.source
    rows = info.shape[0]
    chosen = range(0, rows, max(1, rows // SAMPLED_ROWS) if len(info.shape) > 1 else 1)
    stored = torch.empty((len(chosen), *info.shape[1:]), dtype=DTYPES[info.dtype])
    source.fill(info, stored, [(place, place + 1, at) for place, at in enumerate(chosen)])
    values = stored.double()
    return float(values.mean()), float(values.std(correction=0))


def _fill_fresh(values: Tensor, row: Row, statistics: Statistics, seed: int, start: int, stop: int) -> None:
    """Sets what has a fresh index: coefficients times the mean (a norm's gain) or times random values."""
    first, *others = row.dimensions
    if row.fresh_mean:
        mask = torch.from_numpy(_fresh_mask(first.fresh[start:stop], others))
        filling = torch.full_like(values, statistics.mean + row.offset, dtype=torch.float64)
        for axis, scale in enumerate((first.scale[start:stop], *(dimension.scale for dimension in others))):
            _scale(filling, scale, axis)
        values[mask] = filling[mask].to(values.dtype)
        return
    by_rows = all(not dimension.fresh.any() for dimension in others)
    silences = any((dimension.scale == 0).any() for dimension in row.dimensions)
    for granule, a, b in _granules(start, stop):
        if by_rows and not first.fresh[a:b].any():
            continue
        drawn = torch.from_numpy(_random(row.target, seed, granule, (b - a, *row.shape[1:]))).to(values.dtype)
        drawn *= statistics.deviation
        for axis, scale in enumerate((first.scale[a:b], *(dimension.scale for dimension in others))):
            _scale(drawn, scale, axis)
        part = values[a - start : b - start]
        if by_rows and not silences and first.fresh[a:b].all():
            part.copy_(drawn)
            continue
        mask = torch.from_numpy(_fresh_mask(first.fresh[a:b], others))
        mask = mask & (drawn != 0)  # what a coefficient of 0 silences stays as it is
        part[mask] = drawn[mask]


def _fresh_mask(first: np.ndarray, others: list[Dimension]) -> np.ndarray:
    mask = first
    for dimension in others:
        mask = mask[..., None] | dimension.fresh
    return mask


def _cancelling_noise(row: Row, deviation: float, seed: int, start: int, stop: int) -> Tensor:
    """Noise whose sum over the copies of each unit, weighted as they are written, is zero."""
    total = torch.zeros((stop - start, *row.shape[1:]), dtype=torch.float64)
    for axis, noise in enumerate(row.noise):
        if noise is None:
            continue
        if axis == 0:
            drawn = _noise_of_rows(row, noise, seed, start, stop)
        else:
            drawn = _noise(row, noise, axis, seed, start, stop)
        for other, factors in enumerate(row.dimensions):
            if other != axis:
                part = slice(start, stop) if other == 0 else slice(None)
                _scale(drawn, np.where(factors.fresh, 0.0, factors.scale)[part], other)
        total += drawn * (deviation * noise.amplitude)
    if row.twins:
        total += _twin_noise(row, seed, start, stop) * (deviation * row.twin_noise)
    return total


def _noise(row: Row, noise: Cancelling, axis: int, seed: int, start: int, stop: int) -> Tensor:
    """Noise that cancels along a dimension behind the first."""
    parts = [
        _random(f"{row.target}/noise{axis}", seed, n, (b - a, *row.shape[1:])) for n, a, b in _granules(start, stop)
    ]
    return _projected(torch.from_numpy(np.concatenate(parts)).double(), noise, axis)


def _noise_of_rows(row: Row, noise: Cancelling, seed: int, start: int, stop: int) -> Tensor:
    """Noise that cancels over rows: each row has a stream of its own, so that its fellows can be drawn anywhere."""
    fellows = np.flatnonzero(np.isin(noise.group, noise.group[start:stop]))
    parts = [_random(f"{row.target}/noise0", seed, int(n), (1, *row.shape[1:])) for n in fellows]
    group = np.unique(noise.group[fellows], return_inverse=True)[1]
    among = Cancelling(group, noise.share[fellows], noise.amplitude)
    projected = _projected(torch.from_numpy(np.concatenate(parts)).double(), among, 0)
    return projected[np.searchsorted(fellows, start) : np.searchsorted(fellows, stop - 1) + 1]


def _twin_noise(row: Row, seed: int, start: int, stop: int) -> Tensor:
    """This tensor's noise minus the mean over its twins', so that it vanishes where all are averaged."""

    def drawn(name: str) -> Tensor:
        parts = [_random(f"{name}/twin", seed, n, (b - a, *row.shape[1:])) for n, a, b in _granules(start, stop)]
        return torch.from_numpy(np.concatenate(parts)).double()

    noise = drawn(row.target) - sum(drawn(twin) for twin in row.twins) / len(row.twins)
    for axis, dimension in enumerate(row.dimensions):
        part = slice(start, stop) if axis == 0 else slice(None)
        _scale(noise, np.where(dimension.fresh, 0.0, dimension.scale)[part], axis)
    return noise


def _projected(drawn: Tensor, noise: Cancelling, axis: int) -> Tensor:
    """drawn minus its component along `share` within each group; zero on fresh units."""
    share = torch.from_numpy(noise.share)
    group = torch.from_numpy(noise.group)
    shape = [1] * drawn.ndim
    shape[axis] = -1
    groups = int(group.max()) + 1
    energy = torch.zeros(groups, dtype=torch.float64).index_add_(0, group, share**2)
    along = drawn.new_zeros([groups if a == axis else n for a, n in enumerate(drawn.shape)])
    along.index_add_(axis, group, drawn * share.view(shape))
    ratio = torch.where(energy > 0, 1 / energy.clamp_min(1e-300), 0.0)
    along *= ratio.view(shape)
    projected = drawn - along.index_select(axis, group) * share.view(shape)
    return projected * (share != 0).view(shape)


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a float type.

    Raises:
        CheckpointError: a type that cannot grow.
    """
    if dtype not in NAMES:
        raise CheckpointError(f"{dtype} cannot grow: only {', '.join(map(str, NAMES))} can.")
    return NAMES[dtype]
