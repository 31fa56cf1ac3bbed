"""Splits of a block of rows: grown values are divided among copies, in the type that stores them."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from growth.algebra.draws import Draws
from growth.algebra.expansion import Integers, runs
from growth.algebra.split import Bits, Kind, joint_kind, part_of, undivided
from growth.arrays.casting import Array, cast, rounded
from growth.engine.gather_scale import along, shaped
from growth.planning.tensor_map import TensorMap, true_runs


def split_rows(tensor_map: TensorMap, seed: int, start: int, stop: int, stored: Array) -> None:
    """Replace rows start to stop of a grown tensor by their parts, in place.

    stored: the rows, in the output's type. Copies hold equal values, each of which is the whole to be divided.
    """
    if not tensor_map.is_split:
        return
    wide = np.dtype(np.float64 if tensor_map.dtype == "F64" else np.float32)
    axis, runs = _divided(tensor_map, start, stop)
    pieces = [stored[along(axis, slice(*run))] for run in runs]
    values = np.concatenate(pieces, axis)
    places = np.concatenate([np.arange(*run) for run in runs])
    kind, part, of = _of_places(tensor_map, start, stop, axis, places)
    bits = partial(_bits, tensor_map, seed, start, stop, axis, places)
    wholes = cast(values, np.empty(values.shape, wide))
    turns = any(split.turns for split in tensor_map.splits)
    parts = part_of(wholes, kind, part, of, bits, lambda some: rounded(some, stored.dtype), turns=turns)
    cast(parts * wide.type(tensor_map.replicas) if tensor_map.replica else parts, values)
    edges = np.cumsum([stop - first for first, stop in runs])[:-1]
    for piece, part in zip(pieces, np.split(values, edges, axis), strict=True):
        piece[...] = part


def _divided(tensor_map: TensorMap, start: int, stop: int) -> tuple[int, list[tuple[int, int]]]:
    """The axis along which a block is divided, and the ranges of its indices that are; all of axis 0 if several are."""
    split = [(axis, one.split) for axis, one in enumerate(tensor_map.dimensions) if one.split is not None]
    if len(split) != 1 or tensor_map.replica is not None:
        return 0, [(0, stop - start)]
    ((axis, only),) = split
    return axis, true_runs((only.parts[start:stop] if axis == 0 else only.parts) > 1) or [(0, 0)]


def _of_places(
    tensor_map: TensorMap, start: int, stop: int, axis: int, places: Array
) -> tuple[Kind, Integers, Integers]:
    """The kind, part and parts of a block over all dimensions together, at some places of an axis."""
    joined = tensor_map.replica.split if tensor_map.replica else undivided(1)
    kind, part, parts = joined.kind, joined.part, joined.parts
    for number, one in enumerate(tensor_map.dimensions):
        if one.split is not None:
            inside = slice(start, stop) if number == 0 else slice(None)
            chosen = places if number == axis else slice(None)
            its_part, its_parts = (
                shaped(v[inside][chosen], len(tensor_map.dimensions), number) for v in (one.split.part, one.split.parts)
            )
            part, parts = part * its_parts + its_part, parts * its_parts
            kind = joint_kind(kind, one.split.kind)
    return kind, part, parts


def _bits(tensor_map: TensorMap, seed: int, start: int, stop: int, axis: int, places: Array, number: int) -> Bits:
    """The random bits of a draw: one number for each weight, which all of its parts have."""
    first, *others = tensor_map.dimensions
    columns = [len(one) if one.split is None else one.split.wholes for one in others]
    draws = Draws(seed, f"{tensor_map.split_name}/split{number}")
    if first.split is None:
        bits = draws.bits(start * math.prod(columns), (stop - start, *columns))
    else:
        rows = first.split.whole[start:stop]
        found = [draws.bits(int(rows[a]) * math.prod(columns), (b - a, *columns)) for a, b in runs(rows)]
        bits = np.concatenate(found)
        bits = bits if axis else bits[places]
    for column, one in enumerate(others, 1):
        if one.split is not None:
            whole = one.split.whole
            bits = np.take(bits, whole[places] if column == axis else whole, column)
    return bits
