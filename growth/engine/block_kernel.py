"""Program: the steps that make a block of rows, in memory that serves for all tensors that are made alike.

A block takes a fraction of a millisecond, so that what is known before it comes is worked out once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from growth.arrays.buffers import Workspace
from growth.arrays.casting import NUMPY_DTYPES, Array, Step, bytes_view, casting
from growth.engine.gather_scale import BlockBuffers, add_means, run
from growth.engine.kernel_spec import KernelSpec
from growth.planning.tensor_map import clipped

KEPT = 256  # programs of one making: tensors of more blocks are rather not followed by others of their kind


@dataclass(frozen=True, eq=False)
class ReadTarget:
    """Where rows of a source are read to; views: their bytes, in as few pieces as they lie in."""

    rows: Array
    views: Sequence[memoryview]

    @classmethod
    def of(cls, rows: Array) -> ReadTarget:
        """That of contiguous rows."""
        return cls(rows, [bytes_view(rows)])


@dataclass(frozen=True, eq=False)
class BlockKernel:
    """What makes a block of rows.

    reads: the first of some old rows, and where these are read to.
    steps: what is done then. values: where the rows are by then, if anything is to be added to them yet.
    rounding: what brings these to `result` when it is.
    """

    reads: Sequence[tuple[int, ReadTarget]]
    steps: Sequence[Step]
    values: Array | None
    rounding: Sequence[Step]
    result: Array

    @cached_property
    def view(self) -> memoryview:
        """The bytes of the result."""
        return bytes_view(self.result)


class KernelCache:
    """The programs of all rows that are made alike; columns: the shape of a source's row."""

    def __init__(self, making: KernelSpec, columns: Sequence[int], workspace: Workspace):
        self.making, self._columns, self._workspace = making, columns, workspace
        self._blocks: dict[int, BlockBuffers] = {}
        self._programs: dict[tuple[int, int], tuple[BlockKernel, int]] = {}
        self._plain: dict[tuple[int, float], tuple[BlockKernel, int]] = {}
        level = making.dimensions[0].level
        shape = () if level is None else (level.outer * level.inner, *map(len, making.dimensions[1:]))
        self._row_means = np.empty(shape, making.dtype)
        self.user: object = None

    def begin(self, user: object, means: Array | None) -> None:
        """Is there for one tensor from now on; means: over its rows, where they matter: (keys, *columns)."""
        self.user = user
        if means is not None:
            self._row_means[...] = self._widened(means)

    def _widened(self, rows: Array) -> Array:
        """Rows in the type of the computation, their columns moved and multiplied as all are."""
        block = BlockBuffers(self.making.columns, rows.shape, self.making.dtype, Workspace())
        block.stored[...] = rows
        values, widening = block.widening
        run([*block.gathering, *widening])
        return values

    @cached_property
    def _fresh_row(self) -> Array:
        """What a fresh row is: zero, perhaps with a sign."""
        return self._widened(np.zeros((1, *self._columns)))

    def of(self, start: int, stop: int) -> tuple[BlockKernel, int]:
        """The program of rows `start` to `stop`, and how many rows behind those that it names it reads."""
        known = self._programs.get((start, stop))
        if known is None:
            if len(self._programs) == KEPT:
                self._programs.clear()
                self._plain.clear()
            known = self._programs[start, stop] = self._shared(start, stop)
        return known

    def _shared(self, start: int, stop: int) -> tuple[BlockKernel, int]:
        """The same; of blocks that differ in nothing but where their old rows begin, all have the first one's."""
        plain = self.making.plain(start, stop)
        if plain is None:
            return self._made(start, stop), 0
        old, factor = plain
        if (stop - start, factor) not in self._plain:
            self._plain[stop - start, factor] = self._made(start, stop), old
        program, first = self._plain[stop - start, factor]
        return program, old - first

    def _made(self, start: int, stop: int) -> BlockKernel:
        making, block, dtype = self.making, self._block(stop - start), NUMPY_DTYPES[self.making.output]
        reads, steps = self._reading(block, start, stop)
        factors = None if making.factors is None else making.factors[start:stop]
        if making.half is not None and not clipped(making.widened, start, stop):
            steps += [*block.gathering, *block.in_half(making.bands(start, stop), factors)]
            return BlockKernel(reads, steps, None, (), block.gathered)
        values, widening = block.widening
        if reads or making.offset:
            steps += [*block.gathering, *widening]
        else:
            steps = [partial(values.__setitem__, ..., self._fresh_row)]
        if factors is not None:
            steps.append(partial(np.multiply, values, factors, values))
        if (level := making.dimensions[0].level) is not None:
            steps.append(partial(add_means, values, self._row_means, level, 0, start, stop))
        result, rounding = values, list[Step]()
        if values.dtype != dtype:
            result = self._workspace.take("output", values.shape, dtype)
            rounding.append(casting(values, result))
        if clipped(making.added, start, stop):
            return BlockKernel(reads, steps, values, rounding, result)
        return BlockKernel(reads, [*steps, *rounding], None, (), result)

    def _reading(self, block: BlockBuffers, start: int, stop: int) -> tuple[list[tuple[int, ReadTarget]], list[Step]]:
        """Old rows and their places, and what makes fresh ones zero."""
        reads, steps = list[tuple[int, ReadTarget]](), list[Step]()
        together = block.stored.flags.c_contiguous
        for a, b, old in self.making.dimensions[0].runs_between(start, stop):
            rows = block.stored[a - start : b - start]
            if old < 0:
                steps.append(partial(rows.fill, 0))
            else:
                reads.append(
                    (old, ReadTarget.of(rows) if together else ReadTarget(rows, block.views[a - start : b - start]))
                )
        return reads, steps

    def _block(self, rows: int) -> BlockBuffers:
        making = self.making
        if rows not in self._blocks:
            self._blocks[rows] = BlockBuffers(
                making.columns,
                (rows, *self._columns),
                NUMPY_DTYPES[making.source],
                self._workspace,
                half=making.half,
                offset=making.offset,
            )
        return self._blocks[rows]
