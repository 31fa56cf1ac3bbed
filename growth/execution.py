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
from growth.row import Cancelling, Dimension, Level, Row

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
    row_means: over the rows that a LayerNorm's space runs over, in float64: (keys, *columns).
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
    stop = row.shape[0] if stop is None else stop
    dtype = DTYPES[row.dtype]
    if row.zero:
        return torch.full((stop - start, *row.shape[1:]), -row.offset, dtype=dtype)
    if row.is_copy:
        return source.rows(row.source, start, stop)
    if row.drawn is not None:
        return (_drawn(row, seed, start, stop) * row.drawn).to(dtype)
    values = _rows(row, source, statistics, start, stop)
    for axis in range(1, values.ndim):
        values = _columns(values, row.dimensions[axis], axis)
    if row.is_noisy:
        values += _cancelling_noise(row, statistics.deviation, seed, start, stop).to(values.dtype)
    if row.draws:
        _fill_fresh(values, row, statistics, seed, start, stop)
    if row.constant is not None:
        values[torch.from_numpy(row.dimensions[0].fresh[start:stop])] = row.constant
    return (values - row.offset if row.offset else values).to(dtype)


def grow_tensor(row: Row, source: Source, seed: int) -> Tensor:
    """A whole output tensor, in its dtype."""
    return grow_rows(row, source, measure(row, source), seed)


def _compute_dtype(row: Row) -> torch.dtype:
    return torch.float64 if "F64" in (row.dtype, row.source.dtype) else torch.float32


# ------------------------------------------------- gathering


def _rows(row: Row, source: Source, statistics: Statistics, start: int, stop: int) -> Tensor:
    """Rows start to stop of the output, over the source's columns; zero where fresh."""
    first = row.dimensions[0]
    values = torch.zeros((stop - start, *row.source.shape[1:]), dtype=_compute_dtype(row))
    for a, b, old in first.runs:
        old += max(a, start) - a
        a, b = max(a, start), min(b, stop)
        if a < b and not first.fresh[a]:
            values[a - start : b - start] = source.rows(row.source, old, old + b - a)
    if row.offset:
        values += row.offset
    _scale(values, first.scale[start:stop], 0)
    if first.level is not None:
        assert statistics.row_means is not None
        _add_means(values, statistics.row_means, first.level, 0, slice(start, stop))
    return values


def _columns(values: Tensor, dimension: Dimension, axis: int) -> Tensor:
    """The output's indices along an axis of some rows, times their coefficients."""
    if dimension.is_identity:
        return values
    selected = _select(values, dimension, axis)
    _scale(selected, dimension.scale, axis)
    if dimension.level is not None:
        _add_means(selected, _means_along(values, dimension.level, axis), dimension.level, axis, slice(None))
    return selected


def _select(values: Tensor, dimension: Dimension, axis: int) -> Tensor:
    """A copy of values at the new indices of a dimension: by slices where the runs are few; zero where fresh."""
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


# ------------------------------------------------- means that a LayerNorm must find


def _row_means(row: Row, source: Source, level: Level) -> Tensor:
    """Means over a space that runs over rows, read a few rows at a time, in float64: (keys, *columns)."""
    outer = torch.arange(level.outer)[:, None, None] * level.inner
    keys = (outer + torch.arange(level.inner)).expand(level.outer, level.size, level.inner).reshape(-1)
    total = torch.zeros((level.outer * level.inner, *row.source.shape[1:]), dtype=torch.float64)
    rows = row.source.shape[0]
    step = max(1, BLOCK_BYTES // max(1, row.source.row_bytes))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        values = source.rows(row.source, start, stop).to(_compute_dtype(row))
        if len(total) == 1:
            total += values.sum(0, keepdim=True, dtype=torch.float64)
        else:
            total.index_add_(0, keys[start:stop], values.double())
    return total / level.size


def _means_along(values: Tensor, level: Level, axis: int) -> Tensor:
    """The means over the space that a level keeps, of each row: (rows, …, keys, …)."""
    before, after = values.shape[:axis], values.shape[axis + 1 :]
    split = values.reshape(*before, level.outer, level.size, level.inner, *after)
    means = split.mean(axis + 1, dtype=torch.float64)
    return means.reshape(*before, level.outer * level.inner, *after)


def _add_means(values: Tensor, means: Tensor, level: Level, axis: int, part: slice) -> None:
    """Adds coefficient times mean to each index of an axis that has one."""
    coefficient, keys = level.coefficient[part], level.keys[part]
    places = np.flatnonzero(coefficient)
    if len(places):
        chosen = means.to(values.dtype).index_select(axis, torch.from_numpy(keys[places]))
        _scale(chosen, coefficient[places], axis)
        values.index_add_(axis, torch.from_numpy(places), chosen)


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


def _drawn(row: Row, seed: int, start: int, stop: int) -> Tensor:
    """Standard normal values times the row's coefficients, in float64."""
    parts = [_normal(row.target, seed, n, (b - a, *row.shape[1:])) for n, a, b in _granules(start, stop)]
    drawn = torch.from_numpy(np.concatenate(parts)).double()
    for axis, dimension in enumerate(row.dimensions):
        _scale(drawn, dimension.scale[start:stop] if axis == 0 else dimension.scale, axis)
    return drawn


def _granules(start: int, stop: int) -> list[tuple[int, int, int]]:
    assert start % GRANULE == 0
    return [(n, n * GRANULE, min((n + 1) * GRANULE, stop)) for n in range(start // GRANULE, -(-stop // GRANULE))]


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
    if row.fresh_mean:
        mask = torch.from_numpy(_fresh_mask(first.fresh[start:stop], others))
        filling = torch.full_like(values, statistics.mean + row.offset, dtype=torch.float64)
        for axis, scale in enumerate((first.scale[start:stop], *(dimension.scale for dimension in others))):
            _scale(filling, scale, axis)
        values[mask] = filling[mask].to(values.dtype)
        return
    for granule, a, b in _granules(start, stop):
        mask = torch.from_numpy(_fresh_mask(first.fresh[a:b], others))
        if not mask.any():
            continue
        drawn = torch.from_numpy(_normal(row.target, seed, granule, (b - a, *row.shape[1:])))
        drawn = drawn.double() * statistics.deviation
        _scale(drawn, first.scale[a:b], 0)
        for axis, dimension in enumerate(others, 1):
            _scale(drawn, dimension.scale, axis)
        mask = mask & (drawn != 0)  # what a coefficient of 0 silences stays as it is
        values[a - start : b - start][mask] = drawn[mask].to(values.dtype)


def _fresh_mask(first: np.ndarray, others: list[Dimension]) -> np.ndarray:
    mask = first
    for dimension in others:
        mask = mask[..., None] | dimension.fresh
    return mask


def _cancelling_noise(row: Row, deviation: float, seed: int, start: int, stop: int) -> Tensor:
    """Noise whose sum over the copies of each unit, weighted as they are written, is zero."""
    total = torch.zeros((stop - start, *row.shape[1:]), dtype=torch.float64)
    for axis in range(len(row.dimensions)):
        noise_along = row.noise[axis]
        if noise_along is None:
            continue
        # along the rows every row of a group is needed; such tensors are drawn whole
        low, high = (0, row.shape[0]) if axis == 0 else (start, stop)
        drawn = np.concatenate(
            [_normal(f"{row.target}/noise{axis}", seed, n, (b - a, *row.shape[1:])) for n, a, b in _granules(low, high)]
        )
        noise = _projected(torch.from_numpy(drawn).double(), noise_along, axis)
        for other, factors in enumerate(row.dimensions):
            if other != axis:
                part = slice(low, high) if other == 0 else slice(None)
                _scale(noise, np.where(factors.fresh, 0.0, factors.scale)[part], other)
        total += (noise[start:stop] if axis == 0 else noise) * (deviation * noise_along.amplitude)
    if row.twins:
        total += _twin_noise(row, seed, start, stop) * (deviation * row.twin_noise)
    return total


def _twin_noise(row: Row, seed: int, start: int, stop: int) -> Tensor:
    """This tensor's noise minus the mean over its twins', so that it vanishes where all are averaged."""

    def drawn(name: str) -> Tensor:
        parts = [_normal(f"{name}/twin", seed, n, (b - a, *row.shape[1:])) for n, a, b in _granules(start, stop)]
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
