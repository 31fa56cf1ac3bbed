"""Rows to values: the gather and the multiplications of a plan, a block of rows at a time (numpy).

Every value is computed in float32 at least (float64 where source or output is) and rounded once.
What a value is does not depend on how the work is divided: random ones depend on the seed, the tensor's name
and the row alone, means are summed in blocks of fixed rows.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any, Protocol

import numpy as np

from growth.casting import DTYPES, LARGEST, Array, bytes_view, cast, multiplies
from growth.checkpoint import TensorInfo
from growth.columns import Block, Columns, InHalf, add_means, shaped
from growth.expansion import Booleans, Floats, Integers, even_runs
from growth.reading import Files
from growth.row import TINY, Cancelling, Dimension, Level, Row, between, stretches
from growth.workspace import Workspace

GRANULE = 64  # rows that share a random stream
SUMMED = 16  # rows that are summed in the type of the computation; their sums are in float64
SAMPLED_ROWS = 256  # from which the size of fresh values is estimated
PRODUCT_BYTES = 4 << 10  # of rows that are worth a product of their own
BLOCK_BYTES = 512 << 10  # of source or output that are worked on at a time: all that it takes stays in a cache


# what overflows is looked for, and refused, where values are written
silently = np.errstate(over="ignore", invalid="ignore")


class Source(Protocol):
    """Where rows of source tensors come from."""

    def fill(self, info: TensorInfo, start: int, rows: Array, first: int, stop: int) -> None:
        """Fills `rows[first:stop]`, in the tensor's dtype, with its rows from `start` on."""


class Memory:
    """A source of tensors in memory."""

    def __init__(self, tensors: Mapping[str, Array]):
        self._tensors = tensors

    def fill(self, info: TensorInfo, start: int, rows: Array, first: int, stop: int) -> None:
        """Fills `rows[first:stop]` with a tensor's rows from `start` on."""
        rows[first:stop] = self._tensors[info.name][start : start + stop - first]


class Disk:
    """A source of tensors in files."""

    def __init__(self, files: Files):
        self._files = files
        self._known: tuple[Array | None, list[memoryview]] = None, []

    def fill(self, info: TensorInfo, start: int, rows: Array, first: int, stop: int) -> None:
        """Fills `rows[first:stop]` with a tensor's rows from `start` on.

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """
        self._files.fill(info, start, start + stop - first, self._views(rows, first, stop))

    def _views(self, rows: Array, first: int, stop: int) -> list[memoryview]:
        """The bytes of some rows, in one piece where they lie so."""
        if rows.flags.c_contiguous:
            return [bytes_view(rows[first:stop])]
        known, views = self._known
        if known is not rows:  # most blocks have the memory of the one before
            views = [bytes_view(row) for row in rows]
            self._known = rows, views
        return views[first:stop]


def read_rows(source: Source, info: TensorInfo, start: int, stop: int) -> Array:
    """Rows start to stop of a tensor, in its stored dtype and in memory of their own."""
    rows = np.empty((stop - start, *info.shape[1:]), DTYPES[info.dtype])
    source.fill(info, start, rows, 0, stop - start)
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
    _blocks: dict[int, Block] = field(default_factory=dict, init=False)

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
    def widened(self) -> list[tuple[int, int]]:
        """Ranges of rows that are computed wide, all columns of them."""
        first, rows = self.row.dimensions[0], np.zeros(self.row.shape[0], np.bool_)
        if first.level is not None:
            rows |= first.level.coefficient != 0
        for start, stop in self.added:
            rows[start:stop] = True
        return stretches(np.ones_like(rows) if self.half is None else rows)

    @cached_property
    def half(self) -> InHalf | None:
        """How columns are multiplied in the half type that they stay in; None where all are better widened."""
        row = self.row
        if row.dtype != row.source.dtype or not multiplies(row.dtype):
            return None
        half = self.columns.in_half(DTYPES[row.dtype], rows_differ=self.factors is not None)
        return half if len(self.products) * PRODUCT_BYTES <= max(row.bytes, PRODUCT_BYTES) else None

    @cached_property
    def products(self) -> list[tuple[int, int, float]]:
        """Ranges of rows that have a coefficient, and this."""
        if self.factors is None:
            return []
        factors = self.factors.reshape(-1)
        return [(a, b, float(factors[a])) for a, b in even_runs(factors) if factors[a] != 1]

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
    def columns(self) -> Columns:
        """What is done along the other dimensions; a coefficient that all rows have is the first one's too."""
        changed = [(axis, d) for axis, d in enumerate(self.row.dimensions) if axis and not d.is_identity]
        if self.even is not None and changed:
            axis, dimension = changed[0]
            changed[0] = axis, dimension.scaled(self.even)
        return Columns(changed, self.dtype)

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
        if (self.even is not None and self.columns.dimensions) or (scale == 1).all():
            return None
        without_sign = scale.astype(self.dtype) + self.dtype.type(0)  # of zero
        return shaped(without_sign, len(self.row.shape), 0)

    @cached_property
    def row_means(self) -> Array | None:
        """The means over rows, their columns grown: (keys, *columns)."""
        if self.row.dimensions[0].level is None:
            return None
        means = self.statistics.row_means
        assert means is not None
        block = Block(self.columns, means.shape, self.dtype, Workspace())
        block.stored[...] = means
        block.gather()
        return block.widened()

    @silently
    def rows(self, start: int, stop: int) -> Array:
        """Rows `start` to `stop` of the output, in its dtype, in the workspace's memory or memory of its own."""
        row = self.row
        if row.zero:
            zeros = self.workspace.take("zeros", (stop - start, *row.shape[1:]), self.dtype)
            zeros.fill(0.0 - row.offset)
            return self.rounded(zeros)
        if row.drawn is not None:
            return self.rounded(_drawn(row, self.seed, start, stop) * row.drawn)
        if stop - start not in self._blocks:
            shape, dtype = (stop - start, *row.source.shape[1:]), DTYPES[row.source.dtype]
            self._blocks[stop - start] = Block(
                self.columns, shape, dtype, self.workspace, half=self.half, offset=row.offset
            )
        block = self._blocks[stop - start]
        self.read(block.stored, start, stop)
        block.gather()
        if self.half is not None and not between(self.widened, start, stop):
            return self.in_half(block, self.half, start, stop)
        values = block.widened()
        self.scale_rows(values, start, stop)
        if between(self.added, start, stop):
            self.add(values, start, stop)
        return self.rounded(values)

    def in_half(self, block: Block, half: InHalf, start: int, stop: int) -> Array:
        """Rows that are multiplied in their own type, all but the columns that have coefficients of their own."""
        if half.others is not None:
            values = block.others()
            if self.factors is not None:
                values *= self.factors[start:stop]
        if self.products:
            block.multiply(self.products_between(start, stop))
        elif half.common != 1:
            block.multiply([(0, stop - start, half.common)])
        if half.others is not None:
            block.put_others()
        return block.gathered

    def products_between(self, start: int, stop: int) -> list[tuple[int, int, float]]:
        """What of the products lies between two rows, counted from the first."""
        first = bisect_right(self.products, start, key=itemgetter(1))
        last = bisect_left(self.products, stop, key=itemgetter(0))
        return [(max(a, start) - start, min(b, stop) - start, factor) for a, b, factor in self.products[first:last]]

    def rounded(self, values: Array) -> Array:
        """The values in the output's type."""
        dtype = DTYPES[self.row.dtype]
        return values if values.dtype == dtype else cast(values, self.workspace.take("output", values.shape, dtype))

    def read(self, stored: Array, start: int, stop: int) -> None:
        """The source's rows that are rows start to stop of the output, as they are stored; zero where fresh."""
        for a, b, old in self.row.dimensions[0].runs_between(start, stop):
            if old < 0:
                stored[a - start : b - start] = 0
            else:
                self.source.fill(self.row.source, old, stored, a - start, b - start)

    def scale_rows(self, values: Array, start: int, stop: int) -> None:
        """Rows times their coefficients, plus what keeps the mean where a LayerNorm expects it."""
        if self.factors is not None:
            values *= self.factors[start:stop]
        if self.row_means is not None and (level := self.row.dimensions[0].level) is not None:
            add_means(values, self.row_means, level, 0, start, stop)

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


def _scale(values: Array, scale: Floats, axis: int) -> None:
    if not (scale == 1).all():
        values *= shaped(scale.astype(values.dtype, copy=False), values.ndim, axis)


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
        source.fill(info, start, values, 0, stop - start)
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
    _, along = _sums(drawn * shaped(share, ndim, axis), noise.group, axis)
    along *= shaped(ratio, ndim, axis)
    projected = drawn - np.take(along, noise.group, axis) * shaped(share, ndim, axis)
    return np.asarray(projected * shaped(share != 0, ndim, axis))
