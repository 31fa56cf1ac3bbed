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

    values = cast(stored, np.empty(stored.shape, wide))
    parts = part_of(values, _of_block(row, start, stop), partial(_bits, row, seed, start, stop), rounded)
    cast(parts * wide.type(row.replicas), stored)


def _of_block(row: TensorMap, start: int, stop: int) -> Split:
    """The split of some rows over all dimensions together, as arrays that broadcast to the block."""
    joined = row.replica.split if row.replica else whole(1)
    for axis, dimension in enumerate(row.dimensions):
        split = dimension.split or whole(1)
        inside = slice(start, stop) if axis == 0 and dimension.split else slice(None)
        joined = joined.times(Split(split.kind, split.part[inside], split.parts[inside]))
    shape = [1 if d.split is None else stop - start if axis == 0 else len(d) for axis, d in enumerate(row.dimensions)]
    return Split(joined.kind, joined.part.reshape(shape), joined.parts.reshape(shape))


def _bits(row: TensorMap, seed: int, start: int, stop: int, number: int) -> Bits:
    """The random bits of a draw: one number for each new index, or old index where copies are divided."""
    first, *others = row.dimensions
    columns = [len(one) if one.split is None else one.size for one in others]
    draws = Draws(seed, f"{row.split_name}/split{number}")
    if first.split is None:
        bits = draws.bits(start * math.prod(columns), (stop - start, *columns))
    else:
        bits = np.concatenate([_of_rows(draws, old, b - a, columns) for a, b, old in first.runs_between(start, stop)])
    for axis, one in enumerate(others, 1):
        bits = bits if one.split is None else np.take(bits, np.maximum(one.source, 0), axis)
    return bits


def _of_rows(draws: Draws, old: int, count: int, columns: list[int]) -> Bits:
    """The bits of consecutive old rows; fresh rows all have those of row 0."""
    if old < 0:
        return np.repeat(draws.bits(0, (1, *columns)), count, 0)
    return draws.bits(old * math.prod(columns), (count, *columns))
