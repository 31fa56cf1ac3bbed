"""Rows to values: the gather and the multiplications of a plan, a block of rows at a time (numpy).

Every value is computed in float32 at least (float64 where source or output is) and rounded once.
What a value is does not depend on how the work is divided: random ones depend on the seed, the tensor's name
and the row alone, means are summed in blocks of fixed rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np

from growth.casting import DTYPES, LARGEST, Array, Step, bytes_view, cast, casting
from growth.checkpoint import TensorInfo
from growth.expansion import Booleans, Floats, Integers, runs
from growth.reading import Files
from growth.row import TINY, Cancelling, Dimension, Level, Row, between, stretches

GRANULE = 64  # rows that share a random stream
SUMMED = 16  # rows that are summed in the type of the computation; their sums are in float64
SAMPLED_ROWS = 256  # from which the size of fresh values is estimated
FEW_RUNS = 16  # above which it is worth a look whether a dimension repeats a shorter one
MANY_RUNS = 64  # above which indices are gathered one by one
BLOCK_BYTES = 512 << 10  # of source or output that are worked on at a time: all that it takes stays in a cache


# what overflows is looked for, and refused, where values are written
silently = np.errstate(over="ignore", invalid="ignore")


class Workspace:
    """Memory that one thread works in, made once and used for block after block.

    Memory that a process touches for the first time costs more than the arithmetic that is done in it.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}
        self._views: dict[tuple[str, tuple[int, ...], np.dtype[Any]], Array] = {}

    def take(self, use: str, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """An array of any content, in the memory kept for this use; the same one whenever the same is asked for."""
        key = use, tuple(shape), dtype
        if key not in self._views:
            needed = math.prod(shape) * dtype.itemsize
            if needed > len(self._buffers.get(use, ())):
                self._buffers[use] = np.empty(needed, np.uint8)
                self._views = {other: view for other, view in self._views.items() if other[0] != use}
            self._views[key] = self._buffers[use][:needed].view(dtype).reshape(shape)
        return self._views[key]


Run = tuple[int, int, int]  # new rows start to stop, and the first of the old rows that they copy


class Source(Protocol):
    """Where rows of source tensors come from."""

    def fill(self, info: TensorInfo, start: int, rows: Array) -> None:
        """Fills `rows`, in the tensor's dtype, with its rows from `start` on."""


class Memory:
    """A source of tensors in memory."""

    def __init__(self, tensors: Mapping[str, Array]):
        self._tensors = tensors

    def fill(self, info: TensorInfo, start: int, rows: Array) -> None:
        """Fills `rows` with a tensor's rows from `start` on."""
        rows[...] = self._tensors[info.name][start : start + len(rows)]


class Disk:
    """A source of tensors in files."""

    def __init__(self, files: Files):
        self._files = files

    def fill(self, info: TensorInfo, start: int, rows: Array) -> None:
        """Fills `rows` with a tensor's rows from `start` on.

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """
        self._files.fill(info, start, start + len(rows), bytes_view(rows))


def read_rows(source: Source, info: TensorInfo, start: int, stop: int) -> Array:
    """Rows start to stop of a tensor, in its stored dtype and in memory of their own."""
    rows = np.empty((stop - start, *info.shape[1:]), DTYPES[info.dtype])
    source.fill(info, start, rows)
    return rows


@dataclass(frozen=True)
class Statistics:
    """What a row must know of its whole source tensor before any part of it can be grown.

    mean, deviation: of the values, where fresh ones or noise are drawn to their size.
    row_means: over the rows that a LayerNorm's space runs over: (keys, *columns).
    """

    mean: float = 0.0
    deviation: float = 0.0
    row_means: Array | None = None


@silently
def measure(row: Row, source: Source) -> Statistics:
    """Reads what a `Grower` needs to know of the whole source tensor; mostly nothing."""
    if row.zero or row.is_copy or row.drawn is not None:
        return Statistics()
    mean, deviation = _typical(row, source) if row.draws else (0.0, 0.0)
    level = row.dimensions[0].level
    return Statistics(mean, deviation, None if level is None else _row_means(row, source, level))


def grow_tensor(row: Row, source: Source, seed: int) -> Array:
    """A whole output tensor, in its dtype and in memory of its own."""
    grower = Grower(row, source, seed, measure(row, source), Workspace())
    result = np.empty(row.shape, DTYPES[row.dtype])
    for start, stop in blocks_of(row):
        result[start:stop] = grower.rows(start, stop)
    return result


def compute_dtype(row: Row) -> np.dtype[Any]:
    """What a row's products and sums are computed in."""
    return np.dtype(np.float64 if "F64" in (row.dtype, row.source.dtype) else np.float32)


@dataclass(frozen=True, eq=False)
class Grower:
    """One output tensor, grown a block of rows at a time."""

    row: Row
    source: Source
    seed: int
    statistics: Statistics
    workspace: Workspace
    _known: dict[tuple[str, int], tuple[Array, Array, Step]] = field(default_factory=dict, init=False)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """What products and sums are computed in."""
        return compute_dtype(self.row)

    @cached_property
    def added(self) -> list[tuple[int, int]]:
        """Ranges of rows that hold anything but old values."""
        row = self.row
        fills = row.draws or row.constant is not None
        fresh_columns = any(dimension.fresh.any() for dimension in row.dimensions[1:])
        if row.is_noisy or row.offset != 0 or (fills and fresh_columns):
            return [(0, row.shape[0])]
        return stretches(row.dimensions[0].fresh) if fills else []

    @cached_property
    def computed(self) -> list[tuple[int, int]]:
        """Ranges of rows that change their type before columns are looked at, since they are multiplied or added to."""
        first, rows = self.row.dimensions[0], np.zeros(self.row.shape[0], np.bool_)
        if self.row.dtype != self.row.source.dtype or not self.columns_multiply_once:
            rows[:] = True
        if self.factors is not None:
            rows |= first.scale != 1
        if first.level is not None:
            rows |= first.level.coefficient != 0
        for start, stop in self.added:
            rows[start:stop] = True
        return stretches(rows)

    @property
    def columns_multiply_once(self) -> bool:
        """Whether columns are multiplied along one dimension at most, and no mean is added."""
        levels = any(columns.one.level is not None for columns in self.columns)
        return not levels and sum(not columns.moves for columns in self.columns) <= 1

    def can_overflow(self, largest: float) -> bool:
        """Whether a value could leave the range of its type.

        largest: magnitude of the source's values, which that of a mean over them does not exceed.
        """
        return bool(self.added) or not largest * self.reach < LARGEST[self.row.dtype] * 0.99

    @cached_property
    def reach(self) -> float:
        """How many times the magnitude of the source's largest value an old value has at most."""
        return math.prod(dimension.reach for dimension in self.row.dimensions)

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
        if first.level is not None or self.row.offset or (first.scale != first.scale[0]).any():
            return None
        return float(first.scale[0])

    @cached_property
    def factors(self) -> Array | None:
        """Coefficients of rows, in the shape in which they multiply them; None where all are 1 or the columns' too."""
        scale = self.row.dimensions[0].scale
        if (self.even is not None and self.columns) or (scale == 1).all():
            return None
        return _shaped(scale.astype(self.dtype), len(self.row.shape), 0)

    @silently
    def rows(self, start: int, stop: int) -> Array:
        """Rows `start` to `stop` of the output, in its dtype, in the workspace's memory or memory of its own."""
        row = self.row
        dtype = DTYPES[row.dtype]
        if row.zero:
            zeros = self.workspace.take("zeros", (stop - start, *row.shape[1:]), self.dtype)
            zeros.fill(0.0 - row.offset)
            return self.converted(zeros, dtype, "output")
        if row.drawn is not None:
            drawn = _drawn(row, self.seed, start, stop) * row.drawn
            return cast(drawn, np.empty(drawn.shape, dtype))
        values = self.stored(start, stop)
        if between(self.computed, start, stop):
            values = self.converted(values, self.dtype, "computed")
            self.scale_rows(values, start, stop)
        for columns in self.columns:
            values = columns.gathered(values, self.workspace)
        if between(self.added, start, stop):
            self.add(values, start, stop)
        return self.converted(values, dtype, "output")

    def converted(self, values: Array, dtype: np.dtype[Any], use: str) -> Array:
        """The values in another type, in the workspace's memory for this use."""
        if values.dtype == dtype:
            return values
        if (use, id(values)) not in self._known:  # which holds the values: no other array gets their id
            into = self.workspace.take(use, values.shape, dtype)
            self._known[use, id(values)] = values, into, casting(values, into)
        _, into, step = self._known[use, id(values)]
        step()
        return into

    def stored(self, start: int, stop: int) -> Array:
        """The source's rows that are rows start to stop of the output, as they are stored; zero where fresh."""
        info = self.row.source
        values = self.workspace.take("stored", (stop - start, *info.shape[1:]), DTYPES[info.dtype])
        for a, b, old in self.row.dimensions[0].runs_between(start, stop):
            if old < 0:
                values[a - start : b - start] = 0
            else:
                self.source.fill(info, old, values[a - start : b - start])
        return values

    def scale_rows(self, values: Array, start: int, stop: int) -> None:
        """Rows times their coefficients, plus what keeps the mean where a LayerNorm expects it."""
        level = self.row.dimensions[0].level
        if self.row.offset:
            values += self.dtype.type(self.row.offset)
        if self.factors is not None:
            values *= self.factors[start:stop]
        if level is not None:
            assert self.statistics.row_means is not None
            _add_means(values, self.statistics.row_means, level, 0, start, stop)

    def add(self, values: Array, start: int, stop: int) -> None:
        """Adds what is not the source's: noise, fresh values, constants, and takes off what the model adds."""
        row = self.row
        if row.is_noisy:
            values += _cancelling_noise(row, self.statistics.deviation, self.seed, start, stop).astype(values.dtype)
        if row.draws:
            _fill_fresh(values, row, self.statistics, self.seed, start, stop)
        if row.constant is not None:
            values[row.dimensions[0].fresh[start:stop]] = row.constant
        if row.offset:
            values -= self.dtype.type(row.offset)


# ------------------------------------------------- columns


class Columns:
    """The gather and the multiplication along one dimension behind the first."""

    def __init__(self, axis: int, dimension: Dimension, dtype: np.dtype[Any]):
        self.axis, self.dimension, self.dtype = axis, dimension, dtype
        self.times, self.one = dimension.repeated if len(dimension.pieces) > FEW_RUNS else (1, dimension)
        self.scale = np.where(self.one.fresh, 1, self.one.scale).astype(dtype)
        self.moves = bool((self.scale == 1).all())
        self.by_index = len(self.one.pieces) > MANY_RUNS
        self.index = np.maximum(self.one.source, 0)
        self._known: dict[int, tuple[Array, Array, list[Step]]] = {}

    def gathered(self, values: Array, workspace: Workspace) -> Array:
        """The new indices of some rows: old values times their coefficients, zero where fresh; and what keeps a mean.

        In the type that the values have; products are computed in the type of the computation.
        """
        if id(values) not in self._known:  # a block takes the same steps in the same memory as the one before
            shape = [len(self.dimension) if n == self.axis else length for n, length in enumerate(values.shape)]
            into = workspace.take(f"axis {self.axis}", shape, values.dtype)
            self._known[id(values)] = values, into, self.steps(values, into, workspace)
        _, into, steps = self._known[id(values)]
        for step in steps:
            step()
        return into

    def steps(self, values: Array, into: Array, workspace: Workspace) -> list[Step]:
        """What fills `into`."""
        axis = self.axis
        if self.times > 1:  # what repeats is a dimension of its own
            axis += 1
            into, values = (a.reshape(*a.shape[: self.axis], self.times, -1, *a.shape[axis:]) for a in (into, values))
        level = self.one.level
        fill = self.by_indices if self.by_index else self.by_pieces
        steps = fill(values, into, axis, workspace)
        if level is not None:
            steps.append(lambda: _add_means(into, _means_along(values, level, axis), level, axis, 0, len(self.one)))
        return steps

    def by_indices(self, values: Array, into: Array, axis: int, workspace: Workspace) -> list[Step]:
        """One index at a time."""
        gather = partial(np.take, values, self.index, axis, out=into, mode="clip")
        steps: list[Step] = [gather, partial(into.__setitem__, _along(axis, self.one.fresh), 0)]
        whole = [(0, len(self.one), 0)]
        return steps if self.moves else steps + self.products(into, into, whole, axis, workspace)

    def by_pieces(self, values: Array, into: Array, axis: int, workspace: Workspace) -> list[Step]:
        """What stays as it is is moved, the rest multiplied."""
        steps: list[Step] = []
        multiplied = []
        for a, b, old, stays in self.one.pieces:
            part = into[_along(axis, slice(a, b))]
            if old < 0:
                steps.append(partial(part.fill, 0))
            elif stays:
                steps.append(partial(np.copyto, part, values[_along(axis, slice(old, old + b - a))]))
            else:
                multiplied.append((a, b, old))
        return steps + self.products(values, into, multiplied, axis, workspace) if multiplied else steps

    def products(
        self, values: Array, into: Array, pieces: Sequence[Run], axis: int, workspace: Workspace
    ) -> list[Step]:
        """Old values times the coefficients of new indices: (start, stop, first old index) each."""
        if values.dtype != self.dtype:
            return self.products_in_half(values, into, pieces, axis, workspace)
        steps: list[Step] = []
        for a, b, old in pieces:
            here, there = _along(axis, slice(old, old + b - a)), _along(axis, slice(a, b))
            factors = _shaped(self.scale[a:b], values.ndim, axis)
            steps.append(partial(np.multiply, values[here], factors, out=into[there]))
        return steps

    def products_in_half(
        self, values: Array, into: Array, pieces: Sequence[Run], axis: int, workspace: Workspace
    ) -> list[Step]:
        """The same by way of the type of the computation: each stretch widened once, all products rounded at once."""
        copies: dict[tuple[int, int], list[int]] = {}  # where new indices begin that copy a stretch
        for a, b, at in pieces:
            copies.setdefault((at, at + b - a), []).append(a)
        shape = [sum(b - a for a, b, _ in pieces) if n == axis else length for n, length in enumerate(into.shape)]
        wide = workspace.take("wide", shape, self.dtype)
        steps: list[Step] = []
        order: list[Integers] = []
        end = 0
        for number, ((start, stop), begins) in enumerate(copies.items()):
            stored, size, times = values[_along(axis, slice(start, stop))], stop - start, len(begins)
            old = workspace.take(f"old {number}", stored.shape, self.dtype)
            steps.append(casting(stored, old))
            part = wide[_along(axis, slice(end, end + times * size))]
            part = part.reshape(*part.shape[:axis], times, size, *part.shape[axis + 1 :])
            new = np.add.outer(begins, np.arange(size))
            factors = self.scale[new].reshape(times, size, *[1] * (into.ndim - axis - 1))
            steps.append(partial(np.multiply, np.expand_dims(old, axis), factors, out=part))
            order.append(new.ravel())
            end += times * size
        places = np.concatenate(order)
        if np.array_equal(places, np.arange(into.shape[axis])):  # nothing stays, and all are in order
            return [*steps, casting(wide, into)]
        half = workspace.take("half", shape, into.dtype)
        steps.append(casting(wide, half))
        for a, b in runs(places):
            new_indices = slice(int(places[a]), int(places[a]) + b - a)
            steps.append(partial(np.copyto, into[_along(axis, new_indices)], half[_along(axis, slice(a, b))]))
        return steps


def _along(axis: int, part: slice | Booleans | Integers) -> tuple[Any, ...]:
    """The index that selects some indices of an axis."""
    return (*[slice(None)] * axis, part)


def _shaped(factors: Array, ndim: int, axis: int) -> Array:
    """Factors of an axis, as they multiply arrays."""
    return factors.reshape([-1 if n == axis else 1 for n in range(ndim)])


def _scale(values: Array, scale: Floats, axis: int) -> None:
    if not (scale == 1).all():
        values *= _shaped(scale.astype(values.dtype, copy=False), values.ndim, axis)


# ------------------------------------------------- means that a LayerNorm must find


def _row_means(row: Row, source: Source, level: Level) -> Array:
    """Means over a space that runs over rows, read a few rows at a time: (keys, *columns).

    Rows are summed in the type of the computation by `SUMMED`, and those sums in float64.
    """
    info, dtype = row.source, compute_dtype(row)
    rows, columns = info.shape[0], info.shape[1:]
    total = np.zeros((level.outer * level.inner, *columns), np.float64)
    keys = np.arange(level.outer)[:, None, None] * level.inner + np.arange(level.inner)
    keys = np.broadcast_to(keys, (level.outer, level.size, level.inner)).reshape(-1)
    workspace = Workspace()
    for start, stop in blocks(rows, info.row_bytes, SUMMED):
        values = workspace.take("stored", (stop - start, *columns), DTYPES[info.dtype])
        source.fill(info, start, values)
        wide = cast(values, workspace.take("wide", values.shape, dtype))
        if len(total) == 1:
            whole = (stop - start) // SUMMED
            for sums in wide[: whole * SUMMED].reshape(whole, SUMMED, *columns).sum(1):
                total += sums
            total += wide[whole * SUMMED :].sum(0)
            continue
        for _, a, b in _granules(start, stop, SUMMED):
            found, sums = _sums(wide[a - start : b - start], keys[a:b], 0)
            total[found] += sums
    return (total / level.size).astype(dtype)


def _sums(values: Array, keys: Integers, axis: int) -> tuple[Integers, Array]:
    """The keys that indices of an axis have, and the sums over those that have the same, in order."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    return keys[order[starts]], np.add.reduceat(np.take(values, order, axis), starts, axis=axis)


def _means_along(values: Array, level: Level, axis: int) -> Array:
    """The means over the space that a level keeps, of each row: (rows, …, keys, …)."""
    before, after = values.shape[:axis], values.shape[axis + 1 :]
    split = values.reshape(*before, level.outer, level.size, level.inner * math.prod(after))
    # along the last dimension numpy adds in pairs, which loses nothing
    sums = split[..., 0].sum(-1) if split.shape[-1] == 1 else split.sum(-2, dtype=np.float64)
    means: Array = (sums.reshape(*before, level.outer * level.inner, *after) / level.size).astype(values.dtype)
    return means


def _add_means(values: Array, means: Array, level: Level, axis: int, start: int, stop: int) -> None:
    """Adds coefficient times mean to each index of an axis, from start to stop, that has one."""
    places = between(level.ranges, start, stop)
    if len(places) > MANY_RUNS:
        coefficients = _shaped(level.coefficient[start:stop].astype(values.dtype), values.ndim, axis)
        values += (means if means.shape[axis] == 1 else np.take(means, level.keys[start:stop], axis)) * coefficients
        return
    for a, b in places:
        of_each = means if means.shape[axis] == 1 else np.take(means, level.keys[a:b], axis)
        part = values[_along(axis, slice(a - start, b - start))]
        part += of_each * values.dtype.type(level.coefficient[a])


def blocks_of(row: Row, first: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
    """Ranges of an output's rows that hold those from first to stop, and are grown one at a time.

    The first may begin before: random values are drawn from multiples of `GRANULE` rows on.
    """
    multiple = GRANULE if row.draws or row.drawn is not None else 1
    begin, end = first // multiple * multiple, row.shape[0] if stop is None else stop
    found = blocks(end - begin, max(row.row_bytes, row.source.row_bytes), multiple)
    return [(begin + a, begin + b) for a, b in found]


def blocks(rows: int, row_bytes: int, multiple: int) -> list[tuple[int, int]]:
    """Row ranges of about `BLOCK_BYTES` that begin at multiples of a number of rows.

    >>> blocks(130, 1 << 13, GRANULE)
    [(0, 64), (64, 128), (128, 130)]
    """
    step = max(1, BLOCK_BYTES // max(1, row_bytes) // multiple) * multiple
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


# ------------------------------------------------- random values


def _random(name: str, seed: int, granule: int, shape: tuple[int, ...]) -> Floats:
    """Uniform values of mean 0 and deviation 1 for one granule of rows, from a counter-based generator.

    Each is one of 65,536 evenly spaced values, none of which is 0.
    """
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest(), "little")
    words = np.random.Philox(key=key, counter=[0, 0, 0, granule]).random_raw(-(-math.prod(shape) // 4))
    values = words.astype("<u8", copy=False).view("<i2")[: math.prod(shape)].astype(np.float32)
    values += np.float32(0.5)
    values *= np.float32(math.sqrt(12 / ((1 << 32) - 1)))
    return values.reshape(shape)


def _drawn(row: Row, seed: int, start: int, stop: int) -> Floats:
    """Random values times the row's coefficients, in float64."""
    parts = [_random(row.target, seed, n, (b - a, *row.shape[1:])) for n, a, b in _granules(start, stop)]
    drawn = np.concatenate(parts).astype(np.float64)
    for axis, dimension in enumerate(row.dimensions):
        _scale(drawn, dimension.scale[start:stop] if axis == 0 else dimension.scale, axis)
    return drawn


def _granules(start: int, stop: int, size: int = GRANULE) -> list[tuple[int, int, int]]:
    assert start % size == 0
    return [(n, n * size, min((n + 1) * size, stop)) for n in range(start // size, -(-stop // size))]


def _typical(row: Row, source: Source) -> tuple[float, float]:
    """Mean and standard deviation of the source, from rows spread evenly over it."""
    info = row.source
    rows = info.shape[0]
    step = max(1, rows // SAMPLED_ROWS) if len(info.shape) > 1 else 1
    parts = [(at, at + 1) for at in range(0, rows, step)] if step > 1 else [(0, rows)]
    stored = np.concatenate([read_rows(source, info, *part) for part in parts])
    values = cast(stored, np.empty(stored.shape, np.float64))
    return float(values.mean()), float(values.std())


def _fill_fresh(values: Array, row: Row, statistics: Statistics, seed: int, start: int, stop: int) -> None:
    """Sets what has a fresh index: coefficients times the mean (a norm's gain) or times random values."""
    first, *others = row.dimensions
    if row.fresh_mean:
        mask = _fresh_mask(first.fresh[start:stop], others)
        filling = np.full(values.shape, statistics.mean + row.offset, np.float64)
        for axis, scale in enumerate((first.scale[start:stop], *(dimension.scale for dimension in others))):
            _scale(filling, scale, axis)
        values[mask] = filling[mask]
        return
    by_rows = all(not dimension.fresh.any() for dimension in others)
    silences = any((dimension.scale == 0).any() for dimension in row.dimensions)
    for granule, a, b in _granules(start, stop):
        if by_rows and not first.fresh[a:b].any():
            continue
        drawn = _random(row.target, seed, granule, (b - a, *row.shape[1:])).astype(values.dtype, copy=False)
        drawn *= values.dtype.type(statistics.deviation)
        for axis, scale in enumerate((first.scale[a:b], *(dimension.scale for dimension in others))):
            _scale(drawn, scale, axis)
        part = values[a - start : b - start]
        if by_rows and not silences and first.fresh[a:b].all():
            part[...] = drawn
            continue
        mask = _fresh_mask(first.fresh[a:b], others) & (drawn != 0)  # what a coefficient of 0 silences stays as it is
        part[mask] = drawn[mask]


def _fresh_mask(first: Booleans, others: Sequence[Dimension]) -> Booleans:
    mask = first
    for dimension in others:
        mask = mask[..., None] | dimension.fresh
    return mask


def _cancelling_noise(row: Row, deviation: float, seed: int, start: int, stop: int) -> Floats:
    """Noise whose sum over the copies of each unit, weighted as they are written, is zero."""
    total = np.zeros((stop - start, *row.shape[1:]))
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


def _noise(row: Row, noise: Cancelling, axis: int, seed: int, start: int, stop: int) -> Floats:
    """Noise that cancels along a dimension behind the first."""
    parts = [
        _random(f"{row.target}/noise{axis}", seed, n, (b - a, *row.shape[1:])) for n, a, b in _granules(start, stop)
    ]
    return _projected(np.concatenate(parts).astype(np.float64), noise, axis)


def _noise_of_rows(row: Row, noise: Cancelling, seed: int, start: int, stop: int) -> Floats:
    """Noise that cancels over rows: each row has a stream of its own, so that its fellows can be drawn anywhere."""
    fellows = np.flatnonzero(np.isin(noise.group, noise.group[start:stop]))
    parts = [_random(f"{row.target}/noise0", seed, int(n), (1, *row.shape[1:])) for n in fellows]
    group = np.unique(noise.group[fellows], return_inverse=True)[1]
    among = Cancelling(group, noise.share[fellows], noise.amplitude)
    projected = _projected(np.concatenate(parts).astype(np.float64), among, 0)
    return projected[np.searchsorted(fellows, start) : np.searchsorted(fellows, stop - 1) + 1]


def _twin_noise(row: Row, seed: int, start: int, stop: int) -> Floats:
    """This tensor's noise minus the mean over its twins', so that it vanishes where all are averaged."""

    def drawn(name: str) -> Floats:
        parts = [_random(f"{name}/twin", seed, n, (b - a, *row.shape[1:])) for n, a, b in _granules(start, stop)]
        return np.concatenate(parts).astype(np.float64)

    noise = drawn(row.target) - sum(drawn(twin) for twin in row.twins) / len(row.twins)
    for axis, dimension in enumerate(row.dimensions):
        part = slice(start, stop) if axis == 0 else slice(None)
        _scale(noise, np.where(dimension.fresh, 0.0, dimension.scale)[part], axis)
    return noise


def _projected(drawn: Floats, noise: Cancelling, axis: int) -> Floats:
    """drawn minus its component along `share` within each group; zero on fresh units."""
    share, ndim = noise.share, drawn.ndim
    energy = np.bincount(noise.group, share**2)
    ratio = np.where(energy > 0, 1 / np.maximum(energy, TINY), 0.0)
    _, along = _sums(drawn * _shaped(share, ndim, axis), noise.group, axis)
    along *= _shaped(ratio, ndim, axis)
    projected = drawn - np.take(along, noise.group, axis) * _shaped(share, ndim, axis)
    return np.asarray(projected * _shaped(share != 0, ndim, axis))
