"""The growth of one tensor, as docs/design.md defines it in section 2; `grow_tensor` computes the same bits faster.

    W*[j, k] = write[j] W[source[j], source[k]] read[k]  +  mean correction, fresh values  -  offset

Sums and products are in float32, or in float64 where source or output is; each value is rounded once to its type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from growth.algebra.arithmetic import add_rows, mean_and_deviation, sample_step, total
from growth.algebra.draws import Draws
from growth.algebra.split import Bits, part_of, undivided
from growth.arrays.casting import HALVES, NUMPY_DTYPES, Array, cast, holds, rounded
from growth.planning.tensor_map import DimensionMap, MeanCorrection, TensorMap


def grow(tensor_map: TensorMap, stored: Array, seed: int) -> Array:
    """An output tensor in its stored type, from its map and the source tensor in the source's stored type."""
    wide = np.dtype(np.float64 if "F64" in (tensor_map.dtype, tensor_map.source.dtype) else np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if tensor_map.zero:
            values = np.full(tensor_map.shape, 0 - tensor_map.offset, wide)
        elif tensor_map.init_std is not None:
            noise = Draws(seed, tensor_map.target).elements(0, tensor_map.shape).astype(np.float64)
            noise = noise if tensor_map.drawn_rows is None else noise[tensor_map.drawn_rows]
            values = scaled(noise, tensor_map.dimensions) * tensor_map.init_std
            values += tensor_map.init_mean - tensor_map.offset
        else:
            old = np.atleast_1d(cast(stored, np.empty(stored.shape, wide)))
            values = copied(old, tensor_map)
            values = with_fresh_values(values, old, tensor_map, seed)
            values = values - wide.type(tensor_map.offset) if tensor_map.offset else values
            values = divided(rounded(values, NUMPY_DTYPES[tensor_map.dtype]), tensor_map, seed)
    return cast(values.reshape(tensor_map.shape), np.empty(tensor_map.shape, NUMPY_DTYPES[tensor_map.dtype]))


# ------------------------------------------------- the split among copies (2.4)


def divided(values: Array, tensor_map: TensorMap, seed: int) -> Array:
    """Of each value the part that its copy has; the parts of one weight draw the same bits."""
    if not tensor_map.is_split:
        return values
    values = values.astype(np.float64 if tensor_map.dtype == "F64" else np.float32)  # exact: they are rounded
    split = tensor_map.replica.split if tensor_map.replica else undivided(1)
    for one in tensor_map.dimensions:
        split = split.times(one.split or undivided(len(one)))

    def bits(number: int) -> Bits:
        draws = Draws(seed, f"{tensor_map.split_name}/split{number}").bits(0, (split.wholes,))
        return draws[split.whole].reshape(tensor_map.shape)

    part, of = (one.reshape(tensor_map.shape) for one in (split.part, split.parts))
    stored = NUMPY_DTYPES[tensor_map.dtype]
    parts: Array = part_of(values, split.kind, part, of, bits, lambda some: rounded(some, stored), turns=split.turns)
    parts *= values.dtype.type(tensor_map.replicas)
    return parts


def copied(old: Array, tensor_map: TensorMap) -> Array:
    """Copies of old values times the factors of their rows and columns, with mean corrections."""
    first, *others = fused(tensor_map)
    values = old + old.dtype.type(tensor_map.offset) if tensor_map.offset else old
    values = along_columns(gathered(values, first, 0), others) * factors(first.scale, 0, old)
    if first.mean_correction is None:
        return values
    return corrected(
        values, along_columns(means_over_rows(old, first.mean_correction), others), first.mean_correction, 0
    )


def fused(tensor_map: TensorMap) -> list[DimensionMap]:
    """The maps of the axes; a factor that all rows have is multiplied into those of the next axis that changes.

    Unless these are positive, along one axis, and held exactly by the half type that all values have.
    """
    first, *others = tensor_map.dimensions
    changed = [n for n, one in enumerate(others) if not one.is_identity]
    multiplied = [one for one in others if one.scales or one.mean_correction is not None]
    exact = tensor_map.dtype == tensor_map.source.dtype and tensor_map.dtype in HALVES and len(multiplied) <= 1
    for one in multiplied:
        exact = (
            exact
            and one.mean_correction is None
            and holds(NUMPY_DTYPES[tensor_map.dtype], np.where(one.fresh, 1, one.scale))
        )
    shared = first.mean_correction is None and not tensor_map.offset and (first.scale == first.scale[0]).all()
    if changed and shared and not exact:
        others[changed[0]] = others[changed[0]].scaled(float(first.scale[0]))
        first = replace(first, scale=np.ones(len(first)))
    return [first, *others]


def along_columns(values: Array, others: Sequence[DimensionMap]) -> Array:
    """What the maps of all axes but the first make of rows; means are taken before their axis is gathered."""
    means, axes = values, sorted(range(1, values.ndim), key=lambda axis: others[axis - 1].mean_correction is not None)
    for axis in axes:
        if (correction := others[axis - 1].mean_correction) is not None:
            means = means_along(values, correction, axis)
        values = gathered(values, others[axis - 1], axis)
    for axis in reversed(axes):
        one = others[axis - 1]
        values = values * factors(np.where(one.fresh, 1, one.scale), axis, values)
        values = values if one.mean_correction is None else corrected(values, means, one.mean_correction, axis)
    return values


def gathered(values: Array, one: DimensionMap, axis: int) -> Array:
    """Copies of old indices, zero at fresh ones."""
    values = np.take(values, np.maximum(one.source, 0), axis)
    np.moveaxis(values, axis, 0)[one.fresh] = 0
    return values


def factors(scale: Array, axis: int, values: Array) -> Array:
    """Coefficients in the type of values and in the shape that multiplies them along an axis; no zero has a sign."""
    shape = [-1 if n == axis else 1 for n in range(values.ndim)]
    vector: Array = scale.astype(values.dtype) + values.dtype.type(0)
    return vector.reshape(shape)


# ------------------------------------------------- the mean correction (2.2)


def corrected(values: Array, means: Array, correction: MeanCorrection, axis: int) -> Array:
    """Adds coefficient times mean at each index of an axis that has a coefficient."""
    coefficient = factors(correction.coefficient, axis, values)
    return np.where(coefficient == 0, values, values + np.take(means, correction.keys, axis) * coefficient)


def means_along(values: Array, correction: MeanCorrection, axis: int) -> Array:
    """The means over a space that lies along columns, one for each key."""
    before, after = values.shape[:axis], values.shape[axis + 1 :]
    sums = total(values.reshape(*before, correction.outer, correction.size, correction.inner * math.prod(after)), -2)
    return (sums.reshape(*before, -1, *after) / correction.size).astype(values.dtype)


def means_over_rows(old: Array, correction: MeanCorrection) -> Array:
    """The means over a space that lies along rows, one for each key."""
    outer, _, inner = np.indices((correction.outer, correction.size, correction.inner))
    sums = np.zeros((correction.outer * correction.inner, *old.shape[1:]))
    add_rows(sums, old, (outer * correction.inner + inner).ravel())
    return (sums / correction.size).astype(old.dtype)


# ------------------------------------------------- random values (2.1, 2.4)


def with_fresh_values(values: Array, old: Array, tensor_map: TensorMap, seed: int) -> Array:
    """Sets fresh indices to values of the size of a sample of the source's."""
    if tensor_map.draws:
        middle, deviation = mean_and_deviation(old[:: sample_step(old.shape)])
        fresh = reduce(np.logical_or.outer, [one.fresh for one in tensor_map.dimensions])
        if tensor_map.fresh_mean:
            noise = np.full(tensor_map.shape, middle + tensor_map.offset)
        else:
            fresh &= reduce(np.logical_and.outer, [one.scale != 0 for one in tensor_map.dimensions])
            Draws(seed, tensor_map.target).fill(noise := np.empty_like(values), 0, deviation)
        values = np.where(fresh, scaled(noise, tensor_map.dimensions).astype(values.dtype), values)
    if tensor_map.constant is not None:
        values[tensor_map.dimensions[0].fresh] = tensor_map.constant
    return values


def scaled(values: Array, maps: Sequence[DimensionMap]) -> Array:
    """Values times the coefficients of each axis, those of fresh indices too."""
    return reduce(np.multiply, [factors(one.scale, axis, values) for axis, one in enumerate(maps)], values)
