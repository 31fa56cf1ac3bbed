"""Columns: the gather and the coefficients along the dimensions behind the first, for a block of rows at a time.

Indices move first, in the type that is stored. Then all are widened, multiplied and rounded once; or, in a half type,
multiplied where they stand where that comes to the same: by the one coefficient that most have, or by such as the type
holds exactly, and only the others are widened.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from growth.algebra.arithmetic import total
from growth.algebra.expansion import Booleans, Integers
from growth.arrays.buffers import Workspace
from growth.arrays.casting import Array, Step, cast, casting, holds, multiplying, scaling
from growth.planning.tensor_map import DimensionMap, MeanCorrection, clipped, true_runs

FEW_RUNS = 16  # above which it is worth a look whether a dimension repeats a shorter one
MANY_RUNS = 64  # above which indices are gathered one by one
LONG = 64  # columns that are worth an operation of their own


class Gather:
    """The new indices of one axis: copies of old ones, zero where fresh."""

    def __init__(self, axis: int, dimension: DimensionMap):
        moved = dimension.without_scale
        self.axis, self.length = axis, len(dimension)
        self.times, self.one = moved.as_repeats if len(moved.runs) > FEW_RUNS else (1, moved)
        self.by_index = len(self.one.runs) > MANY_RUNS

    def steps(self, values: Array, into: Array) -> list[Step]:
        """What fills `into` from `values`."""
        axis = self.axis
        if self.times > 1:  # what repeats is a dimension of its own
            axis += 1
            into, values = (a.reshape(*a.shape[: self.axis], self.times, -1, *a.shape[axis:]) for a in (into, values))
        if self.by_index:
            gather = partial(np.take, values, np.maximum(self.one.source, 0), axis, out=into, mode="clip")
            return [gather, partial(into.__setitem__, along(axis, self.one.fresh), 0)]
        steps: list[Step] = []
        for start, stop, old in self.one.runs:
            part = into[along(axis, slice(start, stop))]
            if old < 0:
                steps.append(partial(part.fill, 0))
            else:
                steps.append(partial(part.__setitem__, ..., values[along(axis, slice(old, old + stop - start))]))
        return steps


class Coefficients:
    """What is done to the indices of one axis, or to some of them: products, and means that are added.

    factors: by which the indices are multiplied. mean_correction: what is added to them, if anything.
    """

    def __init__(self, axis: int, factors: Array, correction: MeanCorrection | None):
        self.axis, self.factors, self.mean_correction = axis, factors, correction

    @classmethod
    def along(cls, axis: int, dimension: DimensionMap, dtype: np.dtype[Any]) -> Coefficients:
        """Those of a dimension; the zero of fresh indices stays, and no zero has a sign."""
        return cls(
            axis, np.where(dimension.fresh, 1, dimension.scale).astype(dtype) + dtype.type(0), dimension.mean_correction
        )

    def are_exact_in(self, dtype: np.dtype[Any]) -> bool:
        """Whether they are but products, with positive numbers that a half type holds exactly."""
        return self.mean_correction is None and holds(dtype, self.factors)

    def steps(self, values: Array, means: list[Array]) -> list[Step]:
        """What multiplies values where they are, and adds the correction, whose means are noted by then."""
        multiplied = true_runs(self.factors != 1)
        if not are_long(multiplied):
            multiplied = [(0, len(self.factors))]
        steps: list[Step] = []
        for start, stop in multiplied:
            part = values[along(self.axis, slice(start, stop))]
            steps.append(partial(np.multiply, part, shaped(self.factors[start:stop], values.ndim, self.axis), part))
        if (correction := self.mean_correction) is not None:
            axis, size = self.axis, len(self.factors)
            steps.append(lambda: add_means(values, means[0], correction, axis, 0, size))
        return steps

    def parts(self) -> list[Any]:
        """What selects the indices that are multiplied by anything but 1; all of them if they are scattered."""
        changed = true_runs(self.factors != 1)
        return [along(self.axis, slice(*one)) for one in changed] if are_long(changed) else [...]

    def held(self, values: Array, part: Any) -> Array:
        """The products' factors for each of a part of values, in their half type, which holds them exactly."""
        held = cast(self.factors, np.empty(self.factors.shape, values.dtype))
        every: Array = np.broadcast_to(shaped(held, values.ndim, self.axis), values.shape)[part]
        return every.copy()


@dataclass(frozen=True, eq=False)
class HalfScaling:
    """How gathered columns are multiplied in the half type that they have.

    exact: their coefficients, where the type holds all of them exactly. parts: what selects the columns that are
    multiplied by these; all of them where rows have coefficients too. Else there is
    common: the one coefficient that all have.
    """

    exact: Coefficients | None = None
    parts: Sequence[Any] = ()
    common: float = 1.0


class ColumnMap:
    """All that is done along the dimensions behind the first.

    dtype: what products and sums are computed in.
    """

    def __init__(self, dimensions: Sequence[tuple[int, DimensionMap]], dtype: np.dtype[Any]):
        # a mean is taken of what is there before indices move: that dimension moves last, and is multiplied first
        self.dimensions = sorted(dimensions, key=lambda one: one[1].mean_correction is not None)
        assert sum(d.mean_correction is not None for _, d in dimensions) <= 1, "two spaces that a LayerNorm reads"
        self.dtype = dtype
        self.gathers = {axis: Gather(axis, d) for axis, d in self.dimensions if not d.gathers_nothing}
        changed = [one for one in reversed(self.dimensions) if one[1].mean_correction is not None or one[1].scales]
        self.coefficients = [Coefficients.along(axis, d, dtype) for axis, d in changed]

    def in_half(self, dtype: np.dtype[Any], *, rows_differ: bool, together: bool) -> HalfScaling | None:
        """How they are multiplied in a half type; None where it is better to widen all of them.

        rows_differ: whether rows have coefficients too. together: whether these can be multiplied at the same time as
            exact ones: positive.
        """
        if len(self.coefficients) != 1:
            return None if self.coefficients else HalfScaling()
        (all_of_them,) = self.coefficients
        common = float(all_of_them.factors[0])
        keeps_rounding = not rows_differ or math.frexp(common)[0] == 0.5  # where one factor stands for both
        if all_of_them.mean_correction is None and keeps_rounding and (all_of_them.factors == common).all():
            return HalfScaling(common=common)
        if all_of_them.are_exact_in(dtype) and together:
            return HalfScaling(all_of_them, [...] if rows_differ else all_of_them.parts())
        return None

    def are_exact_in(self, dtype: np.dtype[Any]) -> bool:
        """Whether all that is done to columns that have moved is to multiply them by numbers that a half type holds."""
        return len(self.coefficients) <= 1 and all(one.are_exact_in(dtype) for one in self.coefficients)


class BlockBuffers:
    """Some rows of a tensor in a thread's memory: as they are stored, gathered, and grown.

    Its memory and its steps are those of every block of as many rows. shape: of the stored rows. half: how they are
    multiplied in their own type. offset: what is added before anything else.

    stored: where rows are to be put. gathered: where they are when their columns have moved, by `gathering`.
    """

    def __init__(
        self, columns: ColumnMap, shape: Sequence[int], dtype: np.dtype[Any], memory: Workspace,
        *, half: HalfScaling | None = None, offset: float = 0.0,
    ):  # fmt: skip
        self._columns, self._memory, self._half = columns, memory, half
        self._means = [np.empty(0)]
        self.stored = memory.take("stored", shape, dtype)
        self.gathered, self.gathering = self._gather(offset)

    @cached_property
    def widening(self) -> tuple[Array, list[Step]]:
        """What multiplies what was gathered by its columns' coefficients, in the type of the computation, and where."""
        values, steps = self.gathered, list[Step]()
        if values.dtype != self._columns.dtype:
            values, widen = self._cast(values, "wide", self._columns.dtype)
            steps.append(widen)
        for coefficients in self._columns.coefficients:
            steps += coefficients.steps(values, self._means)
        return values, steps

    def in_half(self, bands: Sequence[tuple[int, int, float]]) -> list[Step]:
        """What multiplies what was gathered, where it is and in its type.

        bands: ranges of rows that are multiplied by a factor, all together all rows.
        """
        half, gathered = self._half, self.gathered
        assert half is not None
        if half.exact is not None:
            return [
                multiplying(gathered[a:b][part], held[a:b], factor)
                for a, b, factor in bands
                for part, held in self._exact
            ]
        products = [(a, b, factor * half.common) for a, b, factor in bands]
        return [scaling(gathered[a:b], factor) for a, b, factor in products if factor != 1]

    def _gather(self, offset: float) -> tuple[Array, list[Step]]:
        columns, values = self._columns, self.stored
        steps: list[Step] = []
        if offset:
            values, widen = self._cast(values, "raised", columns.dtype)
            steps += [widen, partial(np.add, values, columns.dtype.type(offset), values)]
        for axis, dimension in columns.dimensions:
            if dimension.mean_correction is not None:
                wide, widen = self._cast(values, "old", columns.dtype)
                steps += [widen, partial(note_means, self._means, wide, dimension.mean_correction, axis)]
            if axis in columns.gathers:
                shape = [len(dimension) if n == axis else length for n, length in enumerate(values.shape)]
                into = self._memory.take(f"axis {axis}", shape, values.dtype)
                steps += columns.gathers[axis].steps(values, into)
                values = into
        return values, steps

    def _cast(self, values: Array, use: str, dtype: np.dtype[Any]) -> tuple[Array, Step]:
        into = self._memory.take(use, values.shape, dtype)
        return into, casting(values, into)

    @cached_property
    def _exact(self) -> list[tuple[Any, Array]]:
        """What selects the columns that are multiplied by such as the type holds, and the factors of each value."""
        assert self._half is not None
        assert self._half.exact is not None
        return [(part, self._half.exact.held(self.gathered, part)) for part in self._half.parts]


def run(steps: Sequence[Step]) -> None:
    """Run some steps in order."""
    for step in steps:
        step()


def are_long(ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether ranges are long enough, on average, for an operation each."""
    return len(ranges) * LONG <= sum(stop - start for start, stop in ranges)


# ------------------------------------------------- along an axis


def along(axis: int, part: slice | Booleans | Integers) -> tuple[Any, ...]:
    """The index that selects some indices of an axis."""
    return (*[slice(None)] * axis, part)


def shaped(factors: Array, ndim: int, axis: int) -> Array:
    """Factors of an axis, as they multiply arrays."""
    return factors.reshape([-1 if n == axis else 1 for n in range(ndim)])


def note_means(means: list[Array], values: Array, correction: MeanCorrection, axis: int) -> None:
    """Keeps the means of a block for what comes after its indices have moved."""
    means[0] = means_along(values, correction, axis)


def means_along(values: Array, correction: MeanCorrection, axis: int) -> Array:
    """The means over the space that is corrected, of each row: (rows, …, keys, …)."""
    before, after = values.shape[:axis], values.shape[axis + 1 :]
    split = values.reshape(*before, correction.outer, correction.size, correction.inner * math.prod(after))
    sums = total(split, -2)
    means: Array = (sums.reshape(*before, correction.outer * correction.inner, *after) / correction.size).astype(
        values.dtype
    )
    return means


def add_means(values: Array, means: Array, correction: MeanCorrection, axis: int, start: int, stop: int) -> None:
    """Adds coefficient times mean to each index of an axis, from start to stop, that has one."""
    places = clipped(correction.ranges, start, stop)
    if len(places) > MANY_RUNS:
        coefficients = shaped(correction.coefficient[start:stop].astype(values.dtype), values.ndim, axis)
        of_each = means if means.shape[axis] == 1 else np.take(means, correction.keys[start:stop], axis)
        np.add(values, of_each * coefficients, out=values, where=coefficients != 0)  # elsewhere -0 stays as it is
        return
    for a, b in places:
        of_each = means if means.shape[axis] == 1 else np.take(means, correction.keys[a:b], axis)
        part = values[along(axis, slice(a - start, b - start))]
        part += of_each * values.dtype.type(correction.coefficient[a])
