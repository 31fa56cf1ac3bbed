"""Columns: the gather and the coefficients along the dimensions behind the first, for a block of rows at a time.

Indices move first, in the type that is stored; then what changes is widened, multiplied and rounded once. Where most
columns have one coefficient, only the others are widened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from growth.casting import Array, Step, cast, casting, multiplying, scaling
from growth.expansion import Booleans, Integers
from growth.row import Dimension, Level, between, stretches

FEW_RUNS = 16  # above which it is worth a look whether a dimension repeats a shorter one
MANY_RUNS = 64  # above which indices are gathered one by one
LONG = 64  # columns that are worth an operation of their own
LONG_BYTES = 1 << 10  # of a row that is read to a place of its own


class Workspace:
    """Memory that one thread works in, made once and used for block after block.

    Memory that a process touches for the first time costs more than the arithmetic that is done in it.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}
        self._views: dict[tuple[str, tuple[int, ...], np.dtype[Any]], Array] = {}

    def take(self, use: str, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """An array of any content, in the memory kept for this use; the same one whenever the same is asked for."""
        key = use, tuple(shape), dtype
        if key not in self._views:
            needed = math.prod(shape) * dtype.itemsize
            if needed > len(self._buffers.get(use, ())):
                self._buffers[use] = np.empty(needed, np.uint8)
                self._views = {other: view for other, view in self._views.items() if other[0] != use}
            self._views[key] = self._buffers[use][:needed].view(dtype).reshape(shape)
        return self._views[key]


class Gather:
    """The new indices of one axis: copies of old ones, zero where fresh."""

    def __init__(self, axis: int, dimension: Dimension):
        moved = replace(dimension, scale=np.ones(len(dimension)), level=None)
        self.axis, self.length = axis, len(dimension)
        self.times, self.one = moved.repeated if len(moved.runs) > FEW_RUNS else (1, moved)
        self.by_index = len(self.one.runs) > MANY_RUNS

    @property
    def size(self) -> int:
        """The old indices."""
        return self.times * self.one.size

    @property
    def begins_with_all(self) -> bool:
        """Whether the first new indices are the old ones in their order, each row's in one stretch of memory."""
        return self.axis == 1 and not self.by_index and self.one.runs[:1] == [(0, self.size, 0)]

    def steps(self, values: Array, into: Array) -> list[Step]:
        """What fills `into` from `values`, which may be its first indices."""
        axis = self.axis
        if self.times > 1:  # what repeats is a dimension of its own
            axis += 1
            into, values = (a.reshape(*a.shape[: self.axis], self.times, -1, *a.shape[axis:]) for a in (into, values))
        if self.by_index:
            gather = partial(np.take, values, np.maximum(self.one.source, 0), axis, out=into, mode="clip")
            return [gather, partial(into.__setitem__, along(axis, self.one.fresh), 0)]
        there = np.may_share_memory(values, into)
        steps: list[Step] = []
        for start, stop, old in self.one.runs:
            part = into[along(axis, slice(start, stop))]
            if old < 0:
                steps.append(partial(part.fill, 0))
            elif not (there and start == old):
                steps.append(partial(part.__setitem__, ..., values[along(axis, slice(old, old + stop - start))]))
        return steps


class Coefficients:
    """What is done to the indices of one axis, or to some of them: products, and means that are added.

    factors: by which the indices are multiplied. level: of those that a mean is added to.
    """

    def __init__(self, axis: int, dimension: Dimension, dtype: np.dtype[Any], chosen: Booleans | None = None):
        kept = np.ones(len(dimension), np.bool_) if chosen is None else chosen
        self.axis, level = axis, dimension.level
        self.factors = np.where(dimension.fresh, 1, dimension.scale).astype(dtype)[kept]
        self.level = level and replace(level, keys=level.keys[kept], coefficient=level.coefficient[kept])
        multiplied = stretches(self.factors != 1)
        self._multiplied = multiplied if are_long(multiplied) else [(0, len(self.factors))]

    def steps(self, values: Array, means: Callable[[], Array]) -> list[Step]:
        """What multiplies values where they are, and adds what the level asks of their means."""
        steps: list[Step] = []
        for start, stop in self._multiplied:
            part = values[along(self.axis, slice(start, stop))]
            steps.append(partial(np.multiply, part, shaped(self.factors[start:stop], values.ndim, self.axis), part))
        if (level := self.level) is not None:
            steps.append(lambda: add_means(values, means(), level, self.axis, 0, len(self.factors)))
        return steps


class Columns:
    """All that is done along the dimensions behind the first.

    dtype: what products and sums are computed in.
    """

    def __init__(self, dimensions: Sequence[tuple[int, Dimension]], dtype: np.dtype[Any]):
        # a mean is taken of what is there before indices move: that dimension moves last, and is multiplied first
        self.dimensions = sorted(dimensions, key=lambda one: one[1].level is not None)
        self.dtype = dtype
        self.gathers = {axis: Gather(axis, d) for axis, d in self.dimensions if not d.gathers_nothing}
        self.changed = [
            one for one in reversed(self.dimensions) if one[1].level is not None or (one[1].scale != 1).any()
        ]
        self.all = [Coefficients(axis, d, dtype) for axis, d in self.changed]

    @cached_property
    def common(self) -> float:
        """The coefficient that most columns have, where one axis alone has any; 1 where most have none in common."""
        if len(self.all) != 1:
            return 1.0
        found, counts = np.unique(self.all[0].factors, return_counts=True)
        most = int(np.argmax(counts))
        return float(found[most]) if 2 * counts[most] > len(self.all[0].factors) else 1.0

    @cached_property
    def are_others(self) -> Booleans:
        """Which indices of the axis that has coefficients have another than the common one, or a mean."""
        (coefficients,) = self.all
        others: Booleans = coefficients.factors != self.common
        return others if coefficients.level is None else others | (coefficients.level.coefficient != 0)

    @cached_property
    def others(self) -> Coefficients | None:
        """What is done to these, if there are any."""
        if not self.all or not self.are_others.any():
            return None
        ((axis, dimension),) = self.changed
        return Coefficients(axis, dimension, self.dtype, self.are_others)

    @cached_property
    def have_few_others(self) -> bool:
        """Whether it is worth while to widen the others alone."""
        if len(self.all) != 1:
            return not self.all
        others = self.are_others
        return bool(2 * others.sum() <= len(others)) and are_long(stretches(others))

    def are_exact_in(self, dtype: np.dtype[Any]) -> bool:
        """Whether the others are but multiplied, by what a half type holds exactly."""
        if len(self.all) != 1 or self.others is None or self.others.level is not None:
            return False
        factors = self.others.factors
        held = cast(cast(factors, np.empty(factors.shape, dtype)), np.empty_like(factors))
        return bool((held == factors).all()) and bool((factors > 0).all())


class Block:
    """Some rows of a tensor in a thread's memory: as they are stored, gathered, and grown.

    Its memory and its steps are those of every block of as many rows. shape: of the stored rows. offset: what is
    added before anything else.

    stored: where rows are to be put. gathered: where they are when their columns have moved.
    exact: whether the other columns are to be multiplied in their own type.
    """

    def __init__(
        self, columns: Columns, shape: Sequence[int], dtype: np.dtype[Any], memory: Workspace,
        *, offset: float = 0.0, exact: bool = False,
    ):  # fmt: skip
        self._columns, self._memory, self._exact = columns, memory, exact
        self._means = np.empty(0)
        first = next(iter(columns.gathers.values()), None)
        long = math.prod(shape[1:]) * dtype.itemsize >= LONG_BYTES
        self._in_place = first is not None and first.begins_with_all and long and not offset
        if first is not None and self._in_place:
            self.stored = memory.take("stored", (shape[0], first.length, *shape[2:]), dtype)[:, : first.size]
        else:
            self.stored = memory.take("stored", shape, dtype)
        self.gathered, self._gathering = self._gather(offset)
        self._product: tuple[object, Step] = None, self.gather

    def gather(self) -> None:
        """Moves the columns of what is stored."""
        run(self._gathering)

    def widened(self) -> Array:
        """What was gathered, times its columns' coefficients, in the type of the computation."""
        wide, steps = self._widening
        run(steps)
        return wide

    def others(self) -> Array:
        """The same of the columns that have another coefficient than most, beside one another; in half where exact."""
        wide, steps, _ = self._parting
        run(steps)
        return wide

    def multiply(self, rows: Sequence[tuple[int, int, float]]) -> None:
        """Multiplies what was gathered, where it is and in its type, by the factor of each range of rows."""
        for product in rows:
            if self._product[0] != product:  # most blocks have one, and the same
                start, stop, factor = product
                self._product = product, scaling(self.gathered[start:stop], factor)
            self._product[1]()

    def put_others(self) -> None:
        """Puts these columns, with all that was done to them since, to their places in what was gathered, rounded."""
        run(self._parting[2])

    def _gather(self, offset: float) -> tuple[Array, list[Step]]:
        columns, values = self._columns, self.stored
        steps: list[Step] = []
        if offset:
            values, widen = self._cast(values, "raised", columns.dtype)
            steps += [widen, partial(np.add, values, columns.dtype.type(offset), values)]
        for axis, dimension in columns.dimensions:
            if dimension.level is not None:
                wide, widen = self._cast(values, "old", columns.dtype)
                steps += [widen, partial(self._note_means, wide, axis, dimension.level)]
            if axis in columns.gathers:
                shape = [len(dimension) if n == axis else length for n, length in enumerate(values.shape)]
                use = "stored" if self._in_place and values is self.stored else f"axis {axis}"
                into = self._memory.take(use, shape, values.dtype)
                steps += columns.gathers[axis].steps(values, into)
                values = into
        return values, steps

    def _note_means(self, wide: Array, axis: int, level: Level) -> None:
        self._means = means_along(wide, level, axis)

    def _cast(self, values: Array, use: str, dtype: np.dtype[Any]) -> tuple[Array, Step]:
        into = self._memory.take(use, values.shape, dtype)
        return into, casting(values, into)

    @cached_property
    def _widening(self) -> tuple[Array, list[Step]]:
        values, steps = self.gathered, list[Step]()
        if values.dtype != self._columns.dtype:
            values, widen = self._cast(values, "wide", self._columns.dtype)
            steps.append(widen)
        for coefficients in self._columns.all:
            steps += coefficients.steps(values, lambda: self._means)
        return values, steps

    @cached_property
    def _parting(self) -> tuple[Array, list[Step], list[Step]]:
        """Memory for the other columns, what brings them there multiplied, and what brings them back."""
        coefficients = self._columns.others
        assert coefficients is not None
        axis, ranges = coefficients.axis, stretches(self._columns.are_others)
        count = sum(stop - start for start, stop in ranges)
        shape = [count if n == axis else length for n, length in enumerate(self.gathered.shape)]
        there, back, end = list[Step](), list[Step](), 0
        if self._exact and count == self.gathered.shape[axis]:
            return self.gathered, [self._exactly(self.gathered, coefficients)], []
        half = self._memory.take("half", shape, self.gathered.dtype)
        for start, stop in ranges:
            whole = self.gathered[along(axis, slice(start, stop))]
            part = half[along(axis, slice(end, end + stop - start))]
            there.append(partial(part.__setitem__, ..., whole))
            back.append(partial(whole.__setitem__, ..., part))
            end += stop - start
        if self._exact:
            return half, [*there, self._exactly(half, coefficients)], back
        wide, widen = self._cast(half, "wide", self._columns.dtype)
        multiply = coefficients.steps(wide, lambda: self._means)
        return wide, [*there, widen, *multiply], [casting(wide, half), *back]

    def _exactly(self, values: Array, coefficients: Coefficients) -> Step:
        """What multiplies values of a half type, where they are, by coefficients that it holds exactly."""
        held = cast(coefficients.factors, np.empty(coefficients.factors.shape, values.dtype))
        factors = np.empty_like(values)  # what is kept is in no memory that others use too
        factors[...] = shaped(held, values.ndim, coefficients.axis)
        return multiplying(values, factors)


def run(steps: Sequence[Step]) -> None:
    """Takes some steps."""
    for step in steps:
        step()


def are_long(ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether each is worth an operation of its own, on the whole."""
    return len(ranges) * LONG <= sum(stop - start for start, stop in ranges)


# ------------------------------------------------- along an axis


def along(axis: int, part: slice | Booleans | Integers) -> tuple[Any, ...]:
    """The index that selects some indices of an axis."""
    return (*[slice(None)] * axis, part)


def shaped(factors: Array, ndim: int, axis: int) -> Array:
    """Factors of an axis, as they multiply arrays."""
    return factors.reshape([-1 if n == axis else 1 for n in range(ndim)])


def means_along(values: Array, level: Level, axis: int) -> Array:
    """The means over the space that a level keeps, of each row: (rows, …, keys, …)."""
    before, after = values.shape[:axis], values.shape[axis + 1 :]
    split = values.reshape(*before, level.outer, level.size, level.inner * math.prod(after))
    # along the last dimension numpy adds in pairs, which loses nothing
    sums = split[..., 0].sum(-1) if split.shape[-1] == 1 else split.sum(-2, dtype=np.float64)
    means: Array = (sums.reshape(*before, level.outer * level.inner, *after) / level.size).astype(values.dtype)
    return means


def add_means(values: Array, means: Array, level: Level, axis: int, start: int, stop: int) -> None:
    """Adds coefficient times mean to each index of an axis, from start to stop, that has one."""
    places = between(level.ranges, start, stop)
    if len(places) > MANY_RUNS:
        coefficients = shaped(level.coefficient[start:stop].astype(values.dtype), values.ndim, axis)
        values += (means if means.shape[axis] == 1 else np.take(means, level.keys[start:stop], axis)) * coefficients
        return
    for a, b in places:
        of_each = means if means.shape[axis] == 1 else np.take(means, level.keys[a:b], axis)
        part = values[along(axis, slice(a - start, b - start))]
        part += of_each * values.dtype.type(level.coefficient[a])
