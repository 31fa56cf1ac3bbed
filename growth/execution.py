"""Rows to values: the gather and the multiplications of a plan, a block of rows at a time (torch).

Every value is computed in float32 at least (float64 where source or output is) and rounded once.
Random values depend on the seed, the tensor's name and the row alone, not on how the work is divided.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from growth.checkpoint import TensorInfo
from growth.row import Cancelling, Centring, Dimension, Row

DTYPES: Mapping[str, torch.dtype] = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
GRANULE = 64  # rows that share a random stream; blocks start at multiples of it
SAMPLED_ROWS = 256  # from which the size of fresh values is estimated
MANY_RUNS = 64
BLOCK_BYTES = 1 << 20  # of source or output that are worked on at a time


class Source(Protocol):
    """Where rows of source tensors come from."""

    def rows(self, info: TensorInfo, start: int, stop: int) -> Tensor:
        """Rows start to stop of a tensor, in its stored dtype."""


class Memory:
    """A source of tensors in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = tensors

    def rows(self, info: TensorInfo, start: int, stop: int) -> Tensor:
        """Rows start to stop of a tensor."""
        return self._tensors[info.name][start:stop]


@dataclass(frozen=True)
class Statistics:
    """What a row must know of its whole source tensor before any part of it can be grown.

    mean, deviation: of the values, where fresh ones or noise are drawn to their size.
    centre: float64 means to subtract from source rows, shape (keys, *columns); row i has key `keys[i]`.
    """

    mean: float = 0.0
    deviation: float = 0.0
    centre: Tensor | None = None
    keys: Tensor | None = None


def measure(row: Row, source: Source) -> Statistics:
    """Reads what `grow_rows` needs to know of the whole source tensor; mostly nothing."""
    if row.zero or row.is_copy:
        return Statistics()
    mean, deviation = _typical(row, source) if _draws(row) else (0.0, 0.0)
    for centring in row.centring:
        if centring.dimension == 0:
            keys = _keys(centring)
            return Statistics(mean, deviation, _row_means(row, source, centring, keys), keys)
    return Statistics(mean, deviation)


def grow_rows(
    row: Row, source: Source, statistics: Statistics, seed: int, start: int = 0, stop: int | None = None
) -> Tensor:
    """Rows `start` to `stop` of an output tensor, in its dtype.

    `start` is a multiple of `GRANULE`.
    """
    stop = row.shape[0] if stop is None else stop
    dtype = DTYPES[row.dtype]
    if row.zero:
        return torch.zeros((stop - start, *row.shape[1:]), dtype=dtype)
    if row.is_copy:
        return source.rows(row.source, start, stop)
    values = _gathered(row, source, statistics, start, stop)
    for axis, dimension in enumerate(row.dimensions):
        part = slice(start, stop) if axis == 0 else slice(None)
        _scale(values, dimension.scale[part] * (row.factor if axis == 0 else 1.0), axis)
    if any(dimension.noise for dimension in row.dimensions):
        values += _cancelling_noise(row, statistics.deviation, seed, start, stop).to(values.dtype)
    if any(dimension.fresh.any() for dimension in row.dimensions):
        _fill_fresh(values, row, statistics, seed, start, stop)
    return values.to(dtype)


def grow_tensor(row: Row, source: Source, seed: int) -> Tensor:
    """A whole output tensor, in its dtype."""
    return grow_rows(row, source, measure(row, source), seed)


def _compute_dtype(row: Row) -> torch.dtype:
    return torch.float64 if "F64" in (row.dtype, row.source.dtype) else torch.float32


# ------------------------------------------------- gathering


def _gathered(row: Row, source: Source, statistics: Statistics, start: int, stop: int) -> Tensor:
    """The source's values at the rows and columns of the output, centred; zero where fresh."""
    first, *others = row.dimensions
    values = torch.zeros((stop - start, *row.source.shape[1:]), dtype=_compute_dtype(row))
    for a, b, old in first.runs:
        old += max(a, start) - a
        a, b = max(a, start), min(b, stop)
        if a < b and not first.fresh[a]:
            values[a - start : b - start] = source.rows(row.source, old, old + b - a)
    if statistics.centre is not None and statistics.keys is not None:
        values -= _means_of_rows(statistics.centre, statistics.keys, first.source[start:stop]).to(values.dtype)
    for centring in row.centring:
        if centring.dimension > 0:
            values = _centred(values, centring)
    for axis, dimension in enumerate(others, 1):
        values = _select(values, dimension, axis)
    return values


def _means_of_rows(centre: Tensor, keys: Tensor, old_rows: np.ndarray) -> Tensor:
    """The mean that belongs to each old row: one for all of them, where the axis is the whole dimension."""
    return centre if len(centre) == 1 else centre[keys[torch.from_numpy(np.maximum(old_rows, 0))]]


def _select(values: Tensor, dimension: Dimension, axis: int) -> Tensor:
    """values at the new indices of a dimension: by slices where the runs are few."""
    if dimension.runs == [(0, dimension.size, 0)]:
        return values
    if len(dimension.runs) > MANY_RUNS:
        chosen = values.index_select(axis, torch.from_numpy(np.maximum(dimension.source, 0)))
        return chosen.index_fill_(axis, torch.from_numpy(np.flatnonzero(dimension.fresh)), 0)
    shape = list(values.shape)
    shape[axis] = len(dimension)
    chosen = values.new_zeros(shape)
    for a, b, old in dimension.runs:
        if old >= 0:
            chosen.narrow(axis, a, b - a).copy_(values.narrow(axis, old, b - a))
    return chosen


def _centred(values: Tensor, centring: Centring) -> Tensor:
    """values minus their mean over an axis that lies within each row."""
    before, after = values.shape[: centring.dimension], values.shape[centring.dimension + 1 :]
    split = values.reshape(*before, centring.outer, centring.size, centring.inner, *after)
    mean = split.mean(centring.dimension + 1, keepdim=True, dtype=torch.float64)
    return (split - mean.to(split.dtype)).reshape(values.shape)


def _keys(centring: Centring) -> Tensor:
    """Which mean belongs to each source row, for an axis that runs over rows: shape (outer * size * inner,)."""
    outer = torch.arange(centring.outer)[:, None, None] * centring.inner
    inner = torch.arange(centring.inner)[None, None, :]
    return (outer + inner).expand(centring.outer, centring.size, centring.inner).reshape(-1)


def _row_means(row: Row, source: Source, centring: Centring, keys: Tensor) -> Tensor:
    """Means over an axis that runs over rows, read a few rows at a time, in float64."""
    total = torch.zeros((centring.outer * centring.inner, *row.source.shape[1:]), dtype=torch.float64)
    rows = row.source.shape[0]
    step = max(1, BLOCK_BYTES // max(1, row.source.row_bytes))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        values = source.rows(row.source, start, stop).to(_compute_dtype(row))
        if len(total) == 1:
            total += values.sum(0, keepdim=True, dtype=torch.float64)
        else:
            total.index_add_(0, keys[start:stop], values.double())
    return total / centring.size


def _scale(values: Tensor, scale: np.ndarray, axis: int) -> None:
    if (scale == 1).all():
        return
    shape = [1] * values.ndim
    shape[axis] = -1
    values *= torch.from_numpy(scale).to(values.dtype).view(shape)


# ------------------------------------------------- random values


def _normal(name: str, seed: int, granule: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal values of one granule of rows, from a counter-based generator."""
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest(), "little")
    generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, granule]))
    return generator.standard_normal(shape, np.float32)


def _granules(start: int, stop: int) -> list[tuple[int, int, int]]:
    assert start % GRANULE == 0
    return [(n, n * GRANULE, min((n + 1) * GRANULE, stop)) for n in range(start // GRANULE, -(-stop // GRANULE))]


def _draws(row: Row) -> bool:
    """Whether any value of the row is drawn at random, or takes the source's mean."""
    loud = any((dimension.fresh & (dimension.scale != 0)).any() for dimension in row.dimensions)
    return loud or any(dimension.noise is not None for dimension in row.dimensions)


def _typical(row: Row, source: Source) -> tuple[float, float]:
    """Mean and standard deviation of the source, from rows spread evenly over it."""
    rows = row.source.shape[0]
    step = max(1, rows // SAMPLED_ROWS)
    if len(row.source.shape) == 1:
        values = source.rows(row.source, 0, rows).double()
    else:
        values = torch.cat([source.rows(row.source, at, at + 1).double() for at in range(0, rows, step)])
    return float(values.mean()), float(values.std(correction=0))


def _fill_fresh(values: Tensor, row: Row, statistics: Statistics, seed: int, start: int, stop: int) -> None:
    """Sets what has a fresh index: coefficients times the mean (a norm's gain) or times random values."""
    first, *others = row.dimensions
    if not _draws(row):  # a coefficient of 0 has silenced every one of them
        return
    if row.fresh_mean:
        fresh = first.fresh[start:stop]
        filling = statistics.mean * row.factor * first.scale[start:stop][fresh]
        values[torch.from_numpy(fresh)] = torch.from_numpy(filling).to(values.dtype)
        return
    for granule, a, b in _granules(start, stop):
        mask = torch.from_numpy(_fresh_mask(first.fresh[a:b], others))
        if not mask.any():
            continue
        drawn = torch.from_numpy(_normal(row.target, seed, granule, (b - a, *row.shape[1:])))
        drawn = drawn.double() * (statistics.deviation * row.factor)
        _scale(drawn, first.scale[a:b], 0)
        for axis, dimension in enumerate(others, 1):
            _scale(drawn, dimension.scale, axis)
        values[a - start : b - start][mask] = drawn[mask].to(values.dtype)


def _fresh_mask(first: np.ndarray, others: list[Dimension]) -> np.ndarray:
    mask = first
    for dimension in others:
        mask = mask[..., None] | dimension.fresh
    return mask


def _cancelling_noise(row: Row, deviation: float, seed: int, start: int, stop: int) -> Tensor:
    """Noise whose sum over the copies of each unit, weighted as they are written, is zero."""
    total = torch.zeros((stop - start, *row.shape[1:]), dtype=torch.float64)
    for axis, dimension in enumerate(row.dimensions):
        if dimension.noise is None:
            continue
        # along the rows every row of a group is needed; such tensors are drawn whole
        low, high = (0, row.shape[0]) if axis == 0 else (start, stop)
        drawn = np.concatenate(
            [_normal(f"{row.target}/noise{axis}", seed, n, (b - a, *row.shape[1:])) for n, a, b in _granules(low, high)]
        )
        noise = _projected(torch.from_numpy(drawn).double(), dimension.noise, axis)
        for other, factors in enumerate(row.dimensions):
            if other != axis:
                part = slice(low, high) if other == 0 else slice(None)
                _scale(noise, np.where(factors.fresh, 0.0, factors.scale)[part], other)
        total += (noise[start:stop] if axis == 0 else noise) * (deviation * row.factor * dimension.noise.amplitude)
    return total


def _projected(drawn: Tensor, noise: Cancelling, axis: int) -> Tensor:
    """drawn minus its component along `write` within each group; zero on fresh units."""
    write = torch.from_numpy(noise.write)
    group = torch.from_numpy(noise.group)
    shape = [1] * drawn.ndim
    shape[axis] = -1
    groups = int(group.max()) + 1
    energy = torch.zeros(groups, dtype=torch.float64).index_add_(0, group, write**2)
    along = drawn.new_zeros([groups if a == axis else n for a, n in enumerate(drawn.shape)])
    along.index_add_(axis, group, drawn * write.view(shape))
    ratio = torch.where(energy > 0, 1 / energy.clamp_min(1e-300), 0.0)
    along *= ratio.view(shape)
    projected = drawn - along.index_select(axis, group) * write.view(shape)
    return projected * (write != 0).view(shape)
