"""Splits of a block of rows: grown values are divided among copies, in the type that stores them."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from growth.algebra.draws import Draws
from growth.algebra.split import Bits, Split, part_of, whole
from growth.arrays.casting import NUMPY_DTYPES, Array, cast
from growth.planning.tensor_map import TensorMap


def split_rows(row: TensorMap, seed: int, start: int, stop: int, stored: Array) -> None:
    """Replace rows start to stop of a grown tensor by their parts, in place.

    stored: the rows, in the output's type. Copies hold equal values, each of which is the whole to be divided.
    """
    if not row.is_split:
        return
    wide = np.dtype(np.float64 if row.dtype == "F64" else np.float32)

    def rounded(values: Array) -> Array:
        return cast(cast(values, np.empty(values.shape, NUMPY_DTYPES[row.dtype])), np.empty(values.shape, wide))

    indices = np.ix_(*_divided(row, start, stop))
    values = stored[indices]
    split = _of_indices(row, start, indices)
    bits = partial(_bits, row, seed, start, stop, indices)
    parts = part_of(cast(values, np.empty(values.shape, wide)), split, bits, rounded)
    stored[indices] = cast(parts * wide.type(row.replicas), values)


def _divided(row: TensorMap, start: int, stop: int) -> list[Array]:
    """The indices of each dimension of a block among which values are divided; all of a dimension, if several are."""
    indices: list[Array] = [np.arange(stop - start), *(np.arange(len(one)) for one in row.dimensions[1:])]
    split = [(axis, one.split) for axis, one in enumerate(row.dimensions) if one.split is not None]
    if len(split) == 1 and row.replica is None:
        ((axis, only),) = split
        parts = only.parts[start:stop] if axis == 0 else only.parts
        indices[axis] = np.flatnonzero(parts > 1)
    return indices


def _of_indices(row: TensorMap, start: int, indices: tuple[Array, ...]) -> Split:
    """The split of some indices of a block over all dimensions together, as arrays that broadcast to them."""
    joined = row.replica.split if row.replica else whole(1)
    part, parts, kind = joined.part, joined.parts, joined.kind
    for axis, (dimension, chosen) in enumerate(zip(row.dimensions, indices, strict=True)):
        if (split := dimension.split) is not None:
            places = chosen + start if axis == 0 else chosen
            part, parts = part * split.parts[places] + split.part[places], parts * split.parts[places]
            kind = "random" if "random" in (kind, split.kind) else "mask"
    return Split(kind, part, parts)


def _bits(row: TensorMap, seed: int, start: int, stop: int, indices: tuple[Array, ...], number: int) -> Bits:
    """The random bits of a draw: one number for each new index, or old index where copies are divided."""
    first, *others = row.dimensions
    columns = [len(one) if one.split is None else one.size for one in others]
    draws = Draws(seed, f"{row.split_name}/split{number}")
    if first.split is None:
        bits = draws.bits(start * math.prod(columns), (stop - start, *columns))
    else:
        bits = np.concatenate([_of_rows(draws, old, b - a, columns) for a, b, old in first.runs_between(start, stop)])
    places = [chosen.ravel() for chosen in indices]
    for axis, one in enumerate(others, 1):
        places[axis] = places[axis] if one.split is None else np.maximum(one.source[places[axis]], 0)
    for axis, taken in enumerate(places):
        bits = bits if len(taken) == bits.shape[axis] and (np.diff(taken) == 1).all() else np.take(bits, taken, axis)
    return bits


def _of_rows(draws: Draws, old: int, count: int, columns: list[int]) -> Bits:
    """The bits of consecutive old rows; fresh rows all have those of row 0."""
    if old < 0:
        return np.repeat(draws.bits(0, (1, *columns)), count, 0)
    return draws.bits(old * math.prod(columns), (count, *columns))
