"""Rows to values: the gather and the multiplications of a plan, a block of rows at a time (numpy).

Every value is computed in float32 at least (float64 where source or output is) and rounded once.
What a value is does not depend on how the work is divided: random ones depend on the seed, the tensor's name
and the row alone, means are summed in blocks of fixed rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np

from growth.casting import DTYPES, Array, bytes_view, cast
from growth.checkpoint import TensorInfo
from growth.columns import run, shaped
from growth.expansion import Booleans, Floats, Integers
from growth.making import Making
from growth.program import Place, Program, Programs
from growth.reading import Files, Watches
from growth.row import TINY, Cancelling, Dimension, Row
from growth.workspace import Workspace

GRANULE = 64  # rows that share a random stream
SUMMED = 16  # rows that are summed in the type of the computation; their sums are in float64
SAMPLED, SAMPLED_ROWS = 1 << 17, 64  # values, and rows at least, from which the size of fresh values is estimated
BLOCK_BYTES = 512 << 10  # of source or output that are worked on at a time: all that it takes stays in a cache


def silent() -> np.errstate:
    """Says nothing of what overflows: that is looked for, and refused, where values are written."""
    return np.errstate(over="ignore", invalid="ignore")


Fill = Callable[[int, Place], None]


class Source(Protocol):
    """Where rows of source tensors come from."""

    def filling(self, info: TensorInfo) -> Fill:
        """What fills a place with rows of a tensor, in its dtype, from a first one on."""


class Memory:
    """A source of tensors in memory."""

    def __init__(self, tensors: Mapping[str, Array]):
        self._tensors = tensors

    def filling(self, info: TensorInfo) -> Fill:
        """What fills a place with a tensor's rows."""
        tensor = self._tensors[info.name]

        def fill(start: int, place: Place) -> None:
            place.rows[...] = tensor[start : start + len(place.rows)]

        return fill


class Disk:
    """A source of tensors in files."""

    def __init__(self, files: Files):
        self._files = files

    def filling(self, info: TensorInfo) -> Fill:
        """What fills a place with a tensor's rows.

        Raises:
            CheckpointError: it, as what it returns, where the file ends early or cannot be read.
        """
        fill = self._files.filling(info)
        return lambda start, place: fill(start, start + len(place.rows), place.views)


def read_rows(source: Source, info: TensorInfo, start: int, stop: int) -> Array:
    """Rows start to stop of a tensor, in its stored dtype and in memory of their own."""
    rows = np.empty((stop - start, *info.shape[1:]), DTYPES[info.dtype])
    source.filling(info)(start, Place.of(rows))
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


@silent()
def measure(row: Row, source: Source, workspace: Workspace | None = None, means: Array | None = None) -> Statistics:
    """Reads what a `Grower` needs to know of the whole source tensor; mostly nothing.

    means: over its rows, if they are known (see `watches`).
    """
    if row.zero or row.is_copy or row.drawn is not None:
        return Statistics()
    mean, deviation = _typical(row, source) if row.draws else (0.0, 0.0)
    if row.dimensions[0].level is not None and means is None:
        means = _row_means(row, source, workspace or Workspace())
    return Statistics(mean, deviation, means)


def watches(rows: Iterable[Row]) -> Watches:
    """What looks, as the sources of some rows are read, at all that `measure` would read of them."""
    found = dict[str, list[Row]]()
    for row in rows:
        if row.dimensions[0].level is not None and not (row.zero or row.is_copy or row.drawn is not None):
            found.setdefault(row.source.name, []).append(row)
    return {name: partial(RowMeans, same[0]) for name, same in found.items() if len({*map(_space, same)}) == 1}


@silent()
def grow_tensor(row: Row, source: Source, seed: int) -> Array:
    """A whole output tensor, in its dtype and in memory of its own."""
    grower = Grower(row, source, seed, measure(row, source), Workspace())
    result = np.empty(row.shape, DTYPES[row.dtype])
    for start, stop in blocks_of(row):
        result[start:stop] = grower.rows(start, stop)
    return result


@dataclass(frozen=True, eq=False)
class Grower:
    """One output tensor, grown a block of rows at a time; what overflows does so as numpy is told (`silent`)."""

    row: Row
    source: Source
    seed: int
    statistics: Statistics
    workspace: Workspace

    @cached_property
    def making(self) -> Making:
        """How its values are made, as those of all that are made alike."""
        making = Making.of(self.row)
        return self.workspace.once(making, lambda: making)

    def rows(self, start: int, stop: int) -> Array:
        """Rows `start` to `stop` of the output, in its dtype, in the workspace's memory or memory of its own."""
        return self._new(start, stop) if self._has_no_source else self._made(start, stop).result

    def bytes(self, start: int, stop: int) -> memoryview:
        """The bytes of the same."""
        return bytes_view(self._new(start, stop)) if self._has_no_source else self._made(start, stop).view

    @cached_property
    def _has_no_source(self) -> bool:
        return self.row.zero or self.row.drawn is not None

    def _new(self, start: int, stop: int) -> Array:
        """Rows that no value of the source is in."""
        row, shape, dtype = self.row, (stop - start, *self.row.shape[1:]), DTYPES[self.row.dtype]
        if row.zero or row.drawn is None:
            values: Array = np.full(shape, 0.0 - row.offset, self.making.dtype)
        else:
            values = _drawn(row, self.seed, start, stop) * row.drawn
        return values if values.dtype == dtype else cast(values, np.empty(shape, dtype))

    def _made(self, start: int, stop: int) -> Program:
        """The program of some rows, when it has been run."""
        programs, fill = self._programs, self._fill
        if programs.user is not self:
            programs.begin(self, self.statistics.row_means)
        program, shift = programs.of(start, stop)
        for old, place in program.reads:
            fill(old + shift, place)
        run(program.steps)
        if program.values is not None:
            self.add(program.values, start, stop)
            run(program.rounding)
        return program

    @cached_property
    def _fill(self) -> Fill:
        return self.source.filling(self.row.source)

    @cached_property
    def _programs(self) -> Programs:
        columns = self.row.source.shape[1:]
        return self.workspace.once((self.making, columns), lambda: Programs(self.making, columns, self.workspace))

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
            values -= values.dtype.type(row.offset)


def _scale(values: Array, scale: Floats, axis: int) -> None:
    if not (scale == 1).all():
        values *= shaped(scale.astype(values.dtype, copy=False), values.ndim, axis)


# ------------------------------------------------- means that a LayerNorm must find


class RowMeans:
    """Means over a space that runs over rows, of rows as they come: (keys, *columns).

    Rows are summed in the type of the computation by `SUMMED`, and those sums in float64.
    """

    multiple = SUMMED

    def __init__(self, row: Row, workspace: Workspace | None = None):
        level, self._dtype = row.dimensions[0].level, Making.of(row).dtype
        assert level is not None
        self._size, self._workspace = level.size, workspace or Workspace()
        self._total = np.zeros((level.outer * level.inner, *row.source.shape[1:]), np.float64)
        keys = np.arange(level.outer)[:, None, None] * level.inner + np.arange(level.inner)
        self._keys = np.broadcast_to(keys, (level.outer, level.size, level.inner)).reshape(-1)

    @silent()
    def add(self, start: int, rows: Array) -> None:
        """Adds rows from `start` on, which is a multiple of `SUMMED`."""
        assert start % SUMMED == 0
        for first, stop in blocks(len(rows), rows[:1].size * self._dtype.itemsize, SUMMED):
            part = rows[first:stop]
            wide = cast(part, self._workspace.take("wide", part.shape, self._dtype))
            for _, a, b in _granules(0, len(wide), SUMMED):
                self._sum(wide[a:b], start + first + a)

    def _sum(self, rows: Array, start: int) -> None:
        total = self._total
        if len(total) == 1:
            sums = self._workspace.take("sums", total.shape, self._dtype)
            total += np.add.reduce(rows, axis=0, out=sums, keepdims=True)
        else:
            found, sums = _sums(rows, self._keys[start : start + len(rows)], 0)
            total[found] += sums

    def seen(self) -> Array:
        """The means, when all rows have been."""
        return (self._total / self._size).astype(self._dtype)


def _row_means(row: Row, source: Source, workspace: Workspace) -> Array:
    """The same, read a few rows at a time."""
    info, means, fill = row.source, RowMeans(row, workspace), source.filling(row.source)
    for start, stop in blocks(info.shape[0], info.row_bytes, SUMMED):
        rows = workspace.take("stored", (stop - start, *info.shape[1:]), DTYPES[info.dtype])
        fill(start, Place.of(rows))
        means.add(start, rows)
    return means.seen()


def _space(row: Row) -> tuple[Any, ...]:
    """What the means of a source depend on."""
    level = row.dimensions[0].level
    assert level is not None
    return level.outer, level.size, level.inner, Making.of(row).dtype


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
    """Uniform values of mean 0 and deviation 1 for one granule of rows."""
    values = np.empty(shape, np.float32)
    _draw(values, name, seed, granule)
    return values


def _draw(values: Array, name: str, seed: int, granule: int, deviation: float = 1.0) -> None:
    """Fills one granule of rows with uniform values of mean 0, from a counter-based generator.

    Each is one of 65,536 evenly spaced values, none of which is 0.
    """
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest(), "little")
    words = np.random.Philox(key=key, counter=[0, 0, 0, granule]).random_raw(-(-values.size // 4))
    values[...] = words.astype("<u8", copy=False).view("<i2")[: values.size].reshape(values.shape)
    values += values.dtype.type(0.5)
    values *= values.dtype.type(deviation * math.sqrt(12 / ((1 << 32) - 1)))


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
    info, fill = row.source, source.filling(row.source)
    rows = info.shape[0]
    sampled = max(SAMPLED_ROWS, SAMPLED // max(1, math.prod(info.shape[1:])))
    step = max(1, rows // sampled) if len(info.shape) > 1 else 1
    stored = np.empty((-(-rows // step), *info.shape[1:]), DTYPES[info.dtype])
    for start, part in [(0, stored)] if step == 1 else zip(range(0, rows, step), stored[:, None], strict=True):
        fill(start, Place.of(part))
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
    by_rows = not any(dimension.has_fresh for dimension in others)
    silences = any((dimension.scale == 0).any() for dimension in row.dimensions)
    for granule, a, b in _granules(start, stop):
        if by_rows and not first.fresh[a:b].any():
            continue
        part = values[a - start : b - start]
        whole = by_rows and not silences and bool(first.fresh[a:b].all())
        drawn = part if whole else np.empty_like(part)
        _draw(drawn, row.target, seed, granule, statistics.deviation)
        for axis, scale in enumerate((first.scale[a:b], *(dimension.scale for dimension in others))):
            _scale(drawn, scale, axis)
        if whole:
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
