"""Rows to values: the gather and the multiplications of a plan, a block of rows at a time (numpy).

Every value is computed in float32 at least (float64 where source or output is) and rounded once.
What a value is does not depend on how the work is divided: random ones depend on the seed, the tensor's name
and the element alone (`growth.algebra.draws`), means are summed in blocks of fixed rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, Protocol

import numpy as np

from growth.algebra.arithmetic import FLOAT32_SUM_ROWS, add_rows, mean_and_deviation, sample_step
from growth.algebra.draws import Draws
from growth.algebra.expansion import Booleans, Floats
from growth.arrays.buffers import Workspace, shared_zeros
from growth.arrays.casting import NUMPY_DTYPES, Array, bytes_view, cast
from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.tensor_reader import Files
from growth.engine.gather_scale import run, shaped
from growth.engine.kernel import BlockKernel, KernelCache, KernelSpec
from growth.engine.splitting import split_rows
from growth.planning.tensor_map import DimensionMap, TensorMap

BLOCK_BYTES = 512 << 10  # of source or output that are worked on at a time: all that it takes stays in a cache


def ignore_overflow() -> np.errstate:
    """Says nothing of what overflows: that is looked for, and refused, where values are written."""
    return np.errstate(over="ignore", invalid="ignore")


Fill = Callable[[int, Array], None]


class TensorSource(Protocol):
    """Where rows of source tensors come from."""

    def filling(self, info: TensorInfo) -> Fill:
        """What fills a place with rows of a tensor, in its dtype, from a first one on."""


class MemorySource:
    """A source of tensors in memory."""

    def __init__(self, tensors: Mapping[str, Array]):
        self._tensors = tensors

    def filling(self, info: TensorInfo) -> Fill:
        """What fills a place with a tensor's rows."""
        tensor = self._tensors[info.name]

        def fill(start: int, rows: Array) -> None:
            rows[...] = np.atleast_1d(tensor)[start : start + len(rows)]

        return fill


class FileSource:
    """A source of tensors in files."""

    def __init__(self, files: Files):
        self._files = files

    def filling(self, info: TensorInfo) -> Fill:
        """What fills a place with a tensor's rows.

        Raises:
            CheckpointError: it, as what it returns, where the file ends early or cannot be read.
        """
        fill = self._files.filling(info)
        return lambda start, rows: fill(start, start + len(rows), bytes_view(rows))


def read_rows(source: TensorSource, info: TensorInfo, start: int, stop: int) -> Array:
    """Rows start to stop of a tensor, in its stored dtype and in memory of their own."""
    rows = np.empty((stop - start, *info.shape[1:]), NUMPY_DTYPES[info.dtype])
    source.filling(info)(start, rows)
    return rows


@dataclass(frozen=True)
class Statistics:
    """Statistics of a whole source tensor that are needed before any part of its grown tensor can be computed.

    mean, deviation: of the values, where fresh values are random with the same mean and standard deviation.
    row_means: over the rows that a LayerNorm's space runs over: (keys, *columns).
    """

    mean: float = 0.0
    deviation: float = 0.0
    row_means: Array | None = None


@ignore_overflow()
def measure(
    tensor_map: TensorMap, source: TensorSource, workspace: Workspace | None = None, means: RowMeans | None = None
) -> Statistics:
    """Reads what a `Grower` needs to know of the whole source tensor; mostly nothing.

    means: those over its rows, where a scan has seen them (see `observers`).
    """
    if not _uses_values(tensor_map):
        return Statistics()
    mean, deviation = _typical(tensor_map, source) if tensor_map.draws else (0.0, 0.0)
    if tensor_map.dimensions[0].mean_correction is None:
        return Statistics(mean, deviation)
    return Statistics(mean, deviation, (means or _row_means(tensor_map, source, workspace or Workspace())).means())


def _uses_values(tensor: TensorMap) -> bool:
    """Whether values are computed from the source's: it is not all zero, random, or a copy of its bytes."""
    return not (tensor.zero or tensor.is_copy or tensor.init_std is not None)


def observers(tensors: Iterable[TensorMap]) -> dict[str, RowMeans]:
    """By the name of a source tensor, what finds the means that all maps of it need while it is scanned."""
    found = dict[str, list[TensorMap]]()
    for tensor in tensors:
        if tensor.dimensions[0].mean_correction is not None and _uses_values(tensor):
            found.setdefault(tensor.source.name, []).append(tensor)
    return {name: RowMeans(same[0]) for name, same in found.items() if len({*map(_space, same)}) == 1}


@ignore_overflow()
def grow_tensor(tensor_map: TensorMap, source: TensorSource, seed: int) -> Array:
    """A whole output tensor, in its dtype and in memory of its own."""
    grower = Grower(tensor_map, source, seed, measure(tensor_map, source), Workspace())
    result = np.empty([*map(len, tensor_map.dimensions)], NUMPY_DTYPES[tensor_map.dtype])
    for start, stop in blocks_of(tensor_map):
        result[start:stop] = grower.rows(start, stop)
    return result.reshape(tensor_map.shape)


@dataclass(frozen=True, eq=False)
class Grower:
    """One output tensor, grown a block of rows at a time. Overflow is treated as numpy is told (`ignore_overflow`)."""

    tensor_map: TensorMap
    source: TensorSource
    seed: int
    statistics: Statistics
    workspace: Workspace

    @cached_property
    def spec(self) -> KernelSpec:
        """How its values are made, as those of all that are made alike."""
        spec = KernelSpec.of(self.tensor_map)
        return self.workspace.once(spec, lambda: spec)

    def rows(self, start: int, stop: int) -> Array:
        """Rows `start` to `stop` of the output, in its dtype, in the workspace's memory or memory of its own."""
        return self._new(start, stop) if self._has_no_source else self._made(start, stop).result

    def bytes(self, start: int, stop: int) -> memoryview:
        """The bytes of the same."""
        return bytes_view(self._new(start, stop)) if self._has_no_source else self._made(start, stop).view

    @cached_property
    def _has_no_source(self) -> bool:
        return self.tensor_map.zero or self.tensor_map.init_std is not None

    def _new(self, start: int, stop: int) -> Array:
        """Rows that no value of the source is in."""
        tensor_map, shape, dtype = (
            self.tensor_map,
            (stop - start, *self.tensor_map.shape[1:]),
            NUMPY_DTYPES[self.tensor_map.dtype],
        )
        if tensor_map.zero or not tensor_map.init_std:
            mean = 0.0 if tensor_map.zero else tensor_map.init_mean
            values: Array = np.full(shape, mean - tensor_map.offset, self.spec.dtype)
        else:
            values = _noise(tensor_map, self.seed, start, stop) * tensor_map.init_std
            values += tensor_map.init_mean - tensor_map.offset
        return values if values.dtype == dtype else cast(values, np.empty(shape, dtype))

    def _made(self, start: int, stop: int) -> BlockKernel:
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
        split_rows(self.tensor_map, self.seed, start, stop, program.result)
        return program

    @cached_property
    def _fill(self) -> Fill:
        return self.source.filling(self.tensor_map.source)

    @cached_property
    def _programs(self) -> KernelCache:
        columns = self.tensor_map.source.shape[1:]
        return self.workspace.once((self.spec, columns), lambda: KernelCache(self.spec, columns, self.workspace))

    def add(self, values: Array, start: int, stop: int) -> None:
        """Adds what is not the source's: fresh values, constants, and takes off what the model adds."""
        tensor_map = self.tensor_map
        if tensor_map.draws:
            _fill_fresh(values, tensor_map, self.statistics, self.seed, start, stop)
        if tensor_map.constant is not None:
            values[tensor_map.dimensions[0].fresh[start:stop]] = tensor_map.constant
        if tensor_map.offset:
            values -= values.dtype.type(tensor_map.offset)


def _scale(values: Array, scale: Floats, axis: int) -> None:
    if not (scale == 1).all():
        values *= shaped(scale.astype(values.dtype, copy=False), values.ndim, axis)


# ------------------------------------------------- means that a LayerNorm must find


class RowMeans:
    """Means over a space that runs over rows, of rows as they come: (keys, *columns). Forked workers share the sums."""

    multiple = FLOAT32_SUM_ROWS

    def __init__(self, tensor: TensorMap):
        size, inner, outer = _space(tensor)[:3]
        outer_of, _, inner_of = np.indices((outer, size, inner))
        self._size, self._dtype = size, KernelSpec.of(tensor).dtype
        self._keys = (outer_of * inner + inner_of).ravel()
        self._sums = shared_zeros((outer * inner, *tensor.source.shape[1:]))

    @ignore_overflow()
    def add(self, start: int, rows: Array) -> None:
        """Adds rows from `start` on, which is a multiple of `FLOAT32_SUM_ROWS`; row 0 begins anew.

        A scan begins a tensor again where the process that had begun it was ended.
        """
        if start == 0:
            self._sums[...] = 0
        for first, stop in blocks(len(rows), rows[:1].size * self._dtype.itemsize, FLOAT32_SUM_ROWS):
            wide = cast(rows[first:stop], np.empty(rows[first:stop].shape, self._dtype))
            add_rows(self._sums, wide, self._keys[start + first : start + stop])

    def means(self) -> Array:
        """The means, when all rows have been added."""
        return (self._sums / self._size).astype(self._dtype)


def _space(tensor: TensorMap) -> tuple[int, int, int, np.dtype[Any]]:
    """What the means of a source depend on."""
    correction = tensor.dimensions[0].mean_correction
    assert correction is not None
    return correction.size, correction.inner, correction.outer, KernelSpec.of(tensor).dtype


def _row_means(tensor: TensorMap, source: TensorSource, workspace: Workspace) -> RowMeans:
    """The same, read a few rows at a time."""
    info, found, fill = tensor.source, RowMeans(tensor), source.filling(tensor.source)
    for start, stop in blocks(info.shape[0], info.row_bytes, FLOAT32_SUM_ROWS):
        rows = workspace.take("stored", (stop - start, *info.shape[1:]), NUMPY_DTYPES[info.dtype])
        fill(start, rows)
        found.add(start, rows)
    return found


def blocks_of(tensor_map: TensorMap, first: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
    """Ranges of an output's rows from first to stop that are grown one at a time."""
    end = len(tensor_map.dimensions[0]) if stop is None else stop
    found = blocks(end - first, max(tensor_map.row_bytes, tensor_map.source.row_bytes))
    return [(first + a, first + b) for a, b in found]


def blocks(rows: int, row_bytes: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Row ranges of about `BLOCK_BYTES` that begin at multiples of a number of rows.

    >>> blocks(130, 1 << 13, 64)
    [(0, 64), (64, 128), (128, 130)]
    """
    step = max(1, BLOCK_BYTES // max(1, row_bytes) // multiple) * multiple
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


# ------------------------------------------------- random values


def _elements(tensor_map: TensorMap, name: str, seed: int, start: int, stop: int) -> Floats:
    """Random values of mean 0 and deviation 1 for rows start to stop, in float64.

    name: the tensor's, and what the values are for unless it is the tensor itself.
    """
    columns = tensor_map.shape[1:]
    values = Draws(seed, name).elements(start * math.prod(columns), (stop - start, *columns))
    return values.astype(np.float64)


def _noise(tensor_map: TensorMap, seed: int, start: int, stop: int) -> Floats:
    """Random values times the tensor map's coefficients, in float64."""
    if tensor_map.drawn_rows is None:
        noise = _elements(tensor_map, tensor_map.target, seed, start, stop)
    else:
        rows = tensor_map.drawn_rows[start:stop].tolist()
        noise = np.concatenate([_elements(tensor_map, tensor_map.target, seed, row, row + 1) for row in rows])
    for axis, dimension in enumerate(tensor_map.dimensions):
        _scale(noise, dimension.scale[start:stop] if axis == 0 else dimension.scale, axis)
    return noise


def _typical(tensor_map: TensorMap, source: TensorSource) -> tuple[float, float]:
    """Mean and standard deviation of the source, from rows spread evenly over it."""
    info, fill = tensor_map.source, source.filling(tensor_map.source)
    rows, step = info.shape[0], sample_step(info.shape)
    stored = np.empty((-(-rows // step), *info.shape[1:]), NUMPY_DTYPES[info.dtype])
    for start, part in [(0, stored)] if step == 1 else zip(range(0, rows, step), stored[:, None], strict=True):
        fill(start, part)
    return mean_and_deviation(cast(stored, np.empty(stored.shape, np.float64)))


def _fill_fresh(values: Array, tensor_map: TensorMap, statistics: Statistics, seed: int, start: int, stop: int) -> None:
    """Sets what has a fresh index: coefficients times the mean (a norm's gain) or times random values."""
    first, *others = tensor_map.dimensions
    if tensor_map.fresh_mean:
        mask = _fresh_mask(first.fresh[start:stop], others)
        filling = np.full(values.shape, statistics.mean + tensor_map.offset, np.float64)
        for axis, scale in enumerate((first.scale[start:stop], *(dimension.scale for dimension in others))):
            _scale(filling, scale, axis)
        values[mask] = filling[mask]
        return
    rows = np.flatnonzero(first.fresh[start:stop])
    if any(dimension.has_fresh for dimension in others):
        a, b, whole = 0, stop - start, False
    elif len(rows):
        a, b = int(rows[0]), int(rows[-1]) + 1
        whole = b - a == len(rows) and not any((dimension.scale == 0).any() for dimension in tensor_map.dimensions)
    else:
        return
    part = values[a:b]
    noise = part if whole else np.empty_like(part)
    Draws(seed, tensor_map.target).fill(noise, (start + a) * math.prod(tensor_map.shape[1:]), statistics.deviation)
    for axis, scale in enumerate((first.scale[start + a : start + b], *(dimension.scale for dimension in others))):
        _scale(noise, scale, axis)
    if not whole:
        fresh = _fresh_mask(first.fresh[start + a : start + b], others)
        scales = first.scale[start + a : start + b], *(dimension.scale for dimension in others)
        fresh &= reduce(np.logical_and.outer, [scale != 0 for scale in scales])  # what 0 silences stays as it is
        part[fresh] = noise[fresh]


def _fresh_mask(first: Booleans, others: Sequence[DimensionMap]) -> Booleans:
    mask = first
    for dimension in others:
        mask = mask[..., None] | dimension.fresh
    return mask
