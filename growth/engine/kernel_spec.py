"""Making: how values become those of a larger tensor, alike for all tensors of the same dimensions and types."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from growth.algebra.expansion import Booleans, even_runs
from growth.arrays.casting import HALVES, LARGEST, NUMPY_DTYPES, Array, half_products_exact
from growth.engine.gather_scale import ColumnMap, HalfScaling, shaped
from growth.planning.tensor_map import DimensionMap, TensorMap, clipped, true_runs

BAND_BYTES = 4 << 10  # of rows that are worth a product of their own


@dataclass(frozen=True)
class KernelSpec:
    """What rows of the same dimensions and types have in common, and what follows from it.

    source, output: the types.
    offset: what the model adds to the stored values.
    fills: whether fresh indices are filled. noisy: whether all values have noise.
    """

    dimensions: tuple[DimensionMap, ...]
    source: str
    output: str
    offset: float
    fills: bool
    noisy: bool

    @classmethod
    def of(cls, row: TensorMap) -> KernelSpec:
        """That of a row."""
        fills = row.draws or row.constant is not None
        return cls(row.dimensions, row.source.dtype, row.dtype, row.offset, fills, row.is_noisy)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """What products and sums are computed in."""
        return np.dtype(np.float64 if "F64" in (self.output, self.source) else np.float32)

    @property
    def stays(self) -> bool:
        """Whether values are halves, and stay so."""
        return self.output == self.source and self.output in HALVES

    # ------------------------------------------------- which rows

    @cached_property
    def added(self) -> list[tuple[int, int]]:
        """Ranges of rows that hold anything but old values."""
        first, *others = self.dimensions
        fresh_columns = any(dimension.has_fresh for dimension in others)
        if self.noisy or self.offset != 0 or (self.fills and fresh_columns):
            return [(0, len(first))]
        return true_runs(first.fresh) if self.fills else []

    @cached_property
    def widened(self) -> list[tuple[int, int]]:
        """Ranges of rows that are computed wide, all columns of them."""
        return [(0, len(self.dimensions[0]))] if self.half is None else self._changed_rows

    @cached_property
    def _added_to(self) -> Booleans:
        """The rows to which anything is added, if only a mean."""
        first = self.dimensions[0]
        rows = np.zeros(len(first), bool) if first.level is None else first.level.coefficient != 0
        for start, stop in self.added:
            rows[start:stop] = True
        return rows

    @cached_property
    def _changed_rows(self) -> list[tuple[int, int]]:
        return true_runs(self._added_to)

    def plain(self, start: int, stop: int) -> tuple[int, float] | None:
        """The first old row of the rows from start to stop, and their one coefficient.

        None where they are not consecutive old rows that nothing else is done to.
        """
        runs, bands = self.dimensions[0].runs_between(start, stop), self.bands(start, stop)
        if len(runs) != 1 or len(bands) != 1 or runs[0][2] < 0 or clipped(self._changed_rows, start, stop):
            return None
        return runs[0][2], bands[0][2]

    def bands(self, start: int, stop: int) -> list[tuple[int, int, float]]:
        """Ranges of the rows from start to stop, counted from the first, that have one coefficient, and this."""
        return [(a - start, b - start, float(self._factors[a])) for a, b in clipped(self._even_rows, start, stop)]

    @cached_property
    def _factors(self) -> Array:
        """The coefficient of each row."""
        return np.ones(len(self.dimensions[0])) if self.factors is None else self.factors.reshape(-1)

    @cached_property
    def _even_rows(self) -> list[tuple[int, int]]:
        """Maximal ranges of rows that have one coefficient."""
        return even_runs(self._factors)

    def can_overflow(self, largest: float) -> bool:
        """Whether a value to which nothing is added (see `added`) could leave the range of its type.

        largest: magnitude of the source's values, which that of a mean over them does not exceed.
        """
        return not largest * self._reach < LARGEST[self.output] * 0.99

    @cached_property
    def _reach(self) -> float:
        """How many times the magnitude of the source's largest value an old value has at most."""
        return math.prod(dimension.reach for dimension in self.dimensions)

    # ------------------------------------------------- coefficients

    @cached_property
    def factors(self) -> Array | None:
        """Coefficients of rows, in the shape in which they multiply them; None where all are 1 or the columns' too."""
        scale = self.dimensions[0].scale
        if self._together or (scale == 1).all():
            return None
        without_sign = scale.astype(self.dtype) + self.dtype.type(0)  # of zero
        return shaped(without_sign, len(self.dimensions), 0)

    @cached_property
    def columns(self) -> ColumnMap:
        """What is done along the other dimensions."""
        changed = self._changed
        if self._together:
            (axis, dimension), *others = changed
            changed = [(axis, dimension.scaled(float(self.dimensions[0].scale[0]))), *others]
        return ColumnMap(changed, self.dtype)

    @cached_property
    def _together(self) -> bool:
        """Whether a coefficient that all rows have is the columns' too: not where a half type holds these exactly."""
        first = self.dimensions[0]
        if not self._changed or first.level is not None or self.offset or (first.scale != first.scale[0]).any():
            return False
        return not (self.stays and ColumnMap(self._changed, self.dtype).are_exact_in(NUMPY_DTYPES[self.output]))

    @cached_property
    def _changed(self) -> list[tuple[int, DimensionMap]]:
        return [(axis, d) for axis, d in enumerate(self.dimensions) if axis and not d.is_identity]

    @cached_property
    def half(self) -> HalfScaling | None:
        """How columns are multiplied in the half type that they stay in; None where all are better widened."""
        if not (self.stays and half_products_exact(self.output)):
            return None
        rows, size = len(self.dimensions[0]), math.prod(map(len, self.dimensions)) * NUMPY_DTYPES[self.output].itemsize
        bands = self.bands(0, rows)
        if len(bands) * BAND_BYTES > max(size, BAND_BYTES):
            return None
        positive = bool((self._factors[~self._added_to] > 0).all())
        return self.columns.in_half(NUMPY_DTYPES[self.output], rows_differ=self.factors is not None, together=positive)
