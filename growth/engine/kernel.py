"""Kernels: what makes a block of a tensor's rows, prepared once for all tensors of the same maps and types.

A block takes a fraction of a millisecond, so whatever is known beforehand is computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from growth.algebra.expansion import Booleans, even_runs
from growth.arrays.buffers import Workspace
from growth.arrays.casting import HALVES, LARGEST, NUMPY_DTYPES, Array, Step, bytes_view, casting, half_products_exact
from growth.engine.gather_scale import BlockBuffers, ColumnMap, HalfScaling, add_means, run, shaped
from growth.planning.tensor_map import DimensionMap, TensorMap, clipped, true_runs

BAND_BYTES = 4 << 10  # of rows that are worth a product of their own
KEPT = 256  # kernels of one spec: tensors of more blocks are rather not followed by others of their kind


@dataclass(frozen=True)
class KernelSpec:
    """What tensors of the same dimensions and types share, and what follows from it.

    source, output: the types.
    offset: what the model adds to the stored values.
    fills: whether fresh indices are filled.
    """

    dimensions: tuple[DimensionMap, ...]
    source: str
    output: str
    offset: float
    fills: bool

    @classmethod
    def of(cls, tensor_map: TensorMap) -> KernelSpec:
        """The spec of a tensor."""
        fills = tensor_map.draws or tensor_map.constant is not None
        return cls(tensor_map.dimensions, tensor_map.source.dtype, tensor_map.dtype, tensor_map.offset, fills)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The type of products and sums."""
        return np.dtype(np.float64 if "F64" in (self.output, self.source) else np.float32)

    @property
    def keeps_half(self) -> bool:
        """Whether source and output have the same half type."""
        return self.output == self.source and self.output in HALVES

    # ------------------------------------------------- which rows

    @cached_property
    def rows_with_additions(self) -> list[tuple[int, int]]:
        """Ranges of rows that hold values other than copies: fresh ones, an offset."""
        first, *others = self.dimensions
        fresh_columns = any(dimension.has_fresh for dimension in others)
        if self.offset != 0 or (self.fills and fresh_columns):
            return [(0, len(first))]
        return true_runs(first.fresh) if self.fills else []

    @cached_property
    def rows_in_float32(self) -> list[tuple[int, int]]:
        """Ranges of rows that are computed in the wide type."""
        return [(0, len(self.dimensions[0]))] if self.half is None else self._changed_rows

    @cached_property
    def _changed_mask(self) -> Booleans:
        """The rows to which anything is added, mean corrections included."""
        first = self.dimensions[0]
        rows = np.zeros(len(first), bool) if first.mean_correction is None else first.mean_correction.coefficient != 0
        for start, stop in self.rows_with_additions:
            rows[start:stop] = True
        return rows

    @cached_property
    def _changed_rows(self) -> list[tuple[int, int]]:
        return true_runs(self._changed_mask)

    def single_run(self, start: int, stop: int) -> tuple[int, float] | None:
        """The first old row of the rows from start to stop, and their one coefficient.

        None where they are not consecutive old rows that nothing else is done to.
        """
        runs, bands = self.dimensions[0].runs_between(start, stop), self.scale_runs(start, stop)
        if len(runs) != 1 or len(bands) != 1 or runs[0][2] < 0 or clipped(self._changed_rows, start, stop):
            return None
        return runs[0][2], bands[0][2]

    def scale_runs(self, start: int, stop: int) -> list[tuple[int, int, float]]:
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
        return not largest * self._max_gain < LARGEST[self.output] * 0.99

    @cached_property
    def _max_gain(self) -> float:
        """How many times the magnitude of the source's largest value an old value has at most."""
        return math.prod(dimension.max_gain for dimension in self.dimensions)

    # ------------------------------------------------- coefficients

    @cached_property
    def factors(self) -> Array | None:
        """Coefficients of rows, in the shape in which they multiply them; None where all are 1 or the columns' too."""
        scale = self.dimensions[0].scale
        if self._folds_row_scale or (scale == 1).all():
            return None
        without_sign = scale.astype(self.dtype) + self.dtype.type(0)  # of zero
        return shaped(without_sign, len(self.dimensions), 0)

    @cached_property
    def columns(self) -> ColumnMap:
        """What is done along the other dimensions."""
        changed = self._changed
        if self._folds_row_scale:
            (axis, dimension), *others = changed
            changed = [(axis, dimension.scaled(float(self.dimensions[0].scale[0]))), *others]
        return ColumnMap(changed, self.dtype)

    @cached_property
    def _folds_row_scale(self) -> bool:
        """Whether a coefficient that all rows have is the columns' too: not where a half type holds these exactly."""
        first = self.dimensions[0]
        if (
            not self._changed
            or first.mean_correction is not None
            or self.offset
            or (first.scale != first.scale[0]).any()
        ):
            return False
        return not (self.keeps_half and ColumnMap(self._changed, self.dtype).are_exact_in(NUMPY_DTYPES[self.output]))

    @cached_property
    def _changed(self) -> list[tuple[int, DimensionMap]]:
        return [(axis, d) for axis, d in enumerate(self.dimensions) if axis and not d.is_identity]

    @cached_property
    def half(self) -> HalfScaling | None:
        """How columns are multiplied in the half type that they stay in; None where all are better widened."""
        if not (self.keeps_half and half_products_exact(self.output)):
            return None
        rows, size = len(self.dimensions[0]), math.prod(map(len, self.dimensions)) * NUMPY_DTYPES[self.output].itemsize
        bands = self.scale_runs(0, rows)
        if len(bands) * BAND_BYTES > max(size, BAND_BYTES):
            return None
        positive = bool((self._factors[~self._changed_mask] > 0).all())
        return self.columns.in_half(NUMPY_DTYPES[self.output], rows_differ=self.factors is not None, together=positive)


@dataclass(frozen=True, eq=False)
class BlockKernel:
    """What makes a block of rows.

    reads: the first of some old rows, and where these are read to.
    steps: what is done then. values: where the rows are by then, if anything is to be added to them yet.
    rounding: what brings these to `result` when it is.
    """

    reads: Sequence[tuple[int, Array]]
    steps: Sequence[Step]
    values: Array | None
    rounding: Sequence[Step]
    result: Array

    @cached_property
    def view(self) -> memoryview:
        """The bytes of the result."""
        return bytes_view(self.result)


class KernelCache:
    """The kernels of all tensors of one spec; columns: the shape of a source's row."""

    def __init__(self, spec: KernelSpec, columns: Sequence[int], workspace: Workspace):
        self.spec, self._columns, self._workspace = spec, columns, workspace
        self._blocks: dict[int, BlockBuffers] = {}
        self._programs: dict[tuple[int, int], tuple[BlockKernel, int]] = {}
        self._single: dict[tuple[int, float], tuple[BlockKernel, int]] = {}
        correction = spec.dimensions[0].mean_correction
        shape = () if correction is None else (correction.outer * correction.inner, *map(len, spec.dimensions[1:]))
        self._row_means = np.empty(shape, spec.dtype)
        self.user: object = None

    def begin(self, user: object, means: Array | None) -> None:
        """Prepare for one tensor; means: over its rows, where a correction needs them: (keys, *columns)."""
        self.user = user
        if means is not None:
            self._row_means[...] = self._widened(means)

    def _widened(self, rows: Array) -> Array:
        """Rows in the type of the computation, their columns moved and multiplied as all are."""
        block = BlockBuffers(self.spec.columns, rows.shape, self.spec.dtype, Workspace())
        block.stored[...] = rows
        values, widening = block.widening
        run([*block.gathering, *widening])
        return values

    @cached_property
    def _fresh_row(self) -> Array:
        """A fresh row: zeros, perhaps with a sign."""
        return self._widened(np.zeros((1, *self._columns)))

    def of(self, start: int, stop: int) -> tuple[BlockKernel, int]:
        """The program of rows `start` to `stop`, and how many rows behind those that it names it reads."""
        known = self._programs.get((start, stop))
        if known is None:
            if len(self._programs) == KEPT:
                self._programs.clear()
                self._single.clear()
            known = self._programs[start, stop] = self._shared(start, stop)
        return known

    def _shared(self, start: int, stop: int) -> tuple[BlockKernel, int]:
        """The same; of blocks that differ in nothing but where their old rows begin, all have the first one's."""
        plain = self.spec.single_run(start, stop)
        if plain is None:
            return self._made(start, stop), 0
        old, factor = plain
        if (stop - start, factor) not in self._single:
            self._single[stop - start, factor] = self._made(start, stop), old
        program, first = self._single[stop - start, factor]
        return program, old - first

    def _made(self, start: int, stop: int) -> BlockKernel:
        spec, block, dtype = self.spec, self._block(stop - start), NUMPY_DTYPES[self.spec.output]
        reads, steps = self._reading(block, start, stop)
        factors = None if spec.factors is None else spec.factors[start:stop]
        if spec.half is not None and not clipped(spec.rows_in_float32, start, stop):
            steps += [*block.gathering, *block.in_half(spec.scale_runs(start, stop))]
            return BlockKernel(reads, steps, None, (), block.gathered)
        values, widening = block.widening
        if reads or spec.offset:
            steps += [*block.gathering, *widening]
        else:
            steps = [partial(values.__setitem__, ..., self._fresh_row)]
        if factors is not None:
            steps.append(partial(np.multiply, values, factors, values))
        if (correction := spec.dimensions[0].mean_correction) is not None:
            steps.append(partial(add_means, values, self._row_means, correction, 0, start, stop))
        result, rounding = values, list[Step]()
        if values.dtype != dtype:
            result = self._workspace.take("output", values.shape, dtype)
            rounding.append(casting(values, result))
        if clipped(spec.rows_with_additions, start, stop):
            return BlockKernel(reads, steps, values, rounding, result)
        return BlockKernel(reads, [*steps, *rounding], None, (), result)

    def _reading(self, block: BlockBuffers, start: int, stop: int) -> tuple[list[tuple[int, Array]], list[Step]]:
        """Old rows and where they are read to, and what makes fresh ones zero."""
        reads, steps = list[tuple[int, Array]](), list[Step]()
        for a, b, old in self.spec.dimensions[0].runs_between(start, stop):
            rows = block.stored[a - start : b - start]
            if old < 0:
                steps.append(partial(rows.fill, 0))
            else:
                reads.append((old, rows))
        return reads, steps

    def _block(self, rows: int) -> BlockBuffers:
        spec = self.spec
        if rows not in self._blocks:
            self._blocks[rows] = BlockBuffers(
                spec.columns,
                (rows, *self._columns),
                NUMPY_DTYPES[spec.source],
                self._workspace,
                half=spec.half,
                offset=spec.offset,
            )
        return self._blocks[rows]
