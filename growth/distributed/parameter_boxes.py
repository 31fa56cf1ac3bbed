"""Grow any box of a parameter of the grown model, reading only the part of the source that the box copies.

Parameters have the names and shapes of the stock class. If the class stacks experts that have a tensor each in files,
several tensors of a plan make one parameter. A box is a pair of offsets and sizes within a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from growth.algebra.expansion import Booleans
from growth.arrays.buffers import Workspace
from growth.arrays.casting import NUMPY_DTYPES, Array, bytes_view
from growth.arrays.tensor_info import ITEM_SIZE, TensorInfo
from growth.arrays.torch_interop import TORCH_DTYPES
from growth.checkpoints.chunks import Chunk, ComposedInfo, chunks
from growth.checkpoints.expert_stacks import offsets
from growth.checkpoints.stock_parameters import class_config, stored_as
from growth.checkpoints.tensor_reader import Files, fill, first_not_finite, not_finite
from growth.distributed.column_means import WithMeans, with_means
from growth.engine.gather_scale import MANY_RUNS
from growth.engine.grow_tensor import Fill, Grower, Statistics, TensorSource, blocks_of, ignore_overflow
from growth.errors import CheckpointError
from growth.planning.plan import Plan
from growth.planning.tensor_map import DimensionMap, TensorMap, true_runs

Box = tuple[Sequence[int], Sequence[int]]  # offsets, sizes


@dataclass(frozen=True, eq=False)
class Parameter:
    """A parameter of the grown model.

    Attributes:
        shape: of the parameter.
        dtype: of the parameter.
        tensors: the tensors of the plan that make it, by the index in the parameter at which each begins.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    tensors: Mapping[tuple[int, ...], TensorMap]

    @property
    def bytes(self) -> int:
        """Bytes of the values."""
        return self.dtype.itemsize * math.prod(self.shape)

    def place(self, offsets: tuple[int, ...]) -> tuple[slice, ...]:
        """The slices of the tensor that begins at some offsets."""
        return tuple(slice(o, o + n) for o, n in zip(offsets, self.sizes(offsets), strict=True))

    def sizes(self, offsets: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the tensor that begins at some offsets, with all dimensions of the parameter."""
        shape = self.tensors[offsets].shape
        return (1,) * (len(self.shape) - len(shape)) + shape


def parameters(plan: Plan) -> dict[str, Parameter]:
    """The parameters of a plan's grown model by their names in the stock class, tied ones under both.

    Raises:
        ConfigError: the class converts tensors of files in another way than by stacking experts.
    """
    by_name = {tensor_map.target: tensor_map for tensor_map in plan.tensors}
    infos = [TensorInfo(tensor_map.target, tensor_map.dtype, tensor_map.shape) for tensor_map in plan.tensors]
    made = stored_as(class_config(plan.config), infos)
    return {
        name: _parameter(shape, [by_name[info.name] for info in sources]) for name, (shape, sources) in made.items()
    }


def _parameter(shape: tuple[int, ...], tensor_maps: list[TensorMap]) -> Parameter:
    """A parameter of one tensor, or a stack of experts."""
    places = offsets(len(tensor_maps), tensor_maps[0].shape, shape)
    return Parameter(shape, TORCH_DTYPES[tensor_maps[0].dtype], dict(zip(places, tensor_maps, strict=True)))


# ------------------------------------------------- values


def is_measured(tensor_map: TensorMap) -> bool:
    """Whether growing a box requires statistics of the whole source tensor."""
    if tensor_map.zero or tensor_map.is_copy or tensor_map.init_std is not None:
        return False
    return tensor_map.draws or tensor_map.dimensions[0].mean_correction is not None


def grow_box(
    tensor_map: TensorMap, source: TensorSource, statistics: Statistics, seed: int, box: Box, means: Array | None = None
) -> Iterator[tuple[int, Array]]:
    """Grow a box of an output tensor, one block of rows at a time.

    means: those along columns of all rows of the source, if they are given (`growth.distributed.column_means`).

    Yields:
        The row of the box at which a block begins, and the block's values.

    Raises:
        CheckpointError: a value overflows.
    """
    (first, *others), (count, *lengths) = box
    columns = [slice(offset, offset + length) for offset, length in zip(others, lengths, strict=True)]
    if means is not None:
        tensor_map, source = with_means(tensor_map), WithMeans(source, tensor_map.source, means)
    grower = Grower(tensor_map, source, seed, statistics, Workspace())
    for start, stop in blocks_of(tensor_map, first, first + count):
        with ignore_overflow():
            values = grower.rows(start, stop)[(slice(max(first - start, 0), None), *columns)].copy()
        if first_not_finite(bytes_view(values), tensor_map.dtype) is not None:
            raise CheckpointError(
                f"Tensor '{tensor_map.target}' overflows {tensor_map.dtype} when it is grown. Choose dtype bfloat16 or "
                "float32."
            )
        yield max(start, first) - first, values


class BoxSource:
    """A source that reads only what a box of an output tensor copies; the rest is zero.

    means_given: whether the means along columns that the tensor needs are known, so that they need not be computed from
        whole rows.

    Attributes:
        bytes_read: so far.
    """

    def __init__(
        self, files: Files, tensor_map: TensorMap | None = None, box: Box | None = None, *, means_given: bool = False
    ):
        self._files = files
        self._rows: Booleans | None = None
        self._columns: Booleans | None = None
        self.bytes_read = 0
        if tensor_map is not None and box is not None:
            (rows, *columns) = zip(tensor_map.dimensions, *box, strict=True)
            self._rows = _needed(*rows)
            first = columns[0] if columns else None
            if first is not None and not reads_whole_rows(tensor_map, box, means_given=means_given):
                self._columns = _coalesced(_needed(*first))

    def filling(self, info: TensorInfo) -> Fill:
        """The function that fills memory with rows of a tensor."""
        return partial(self._fill, info)

    def _fill(self, info: TensorInfo, start: int, part: Array) -> None:
        part[...] = 0
        for chunk in chunks(info):
            high = chunk.box[0]
            for a, b in _runs(self._rows, max(start, high.start), min(start + len(part), high.stop)):
                self._read(chunk, a, b, part[a - start : b - start])

    def _read(self, chunk: Chunk, start: int, stop: int, values: Array) -> None:
        """Read rows `start` to `stop` of the tensor from a chunk into an array of these rows."""
        info, (first, *others) = chunk.info, chunk.box
        columns, *inner = others or [slice(0, 0)]
        rows = start - first.start, stop - first.start
        runs = _runs(self._columns, columns.start, columns.stop)
        if not others or runs == [(columns.start, columns.stop)] or isinstance(info, ComposedInfo):
            found = np.empty((stop - start, *info.shape[1:]), NUMPY_DTYPES[info.dtype])
            self._files.filling(info)(*rows, bytes_view(found))
            values[(slice(None), *others)] = self._checked(info, found)
            return
        for a, b in runs:
            place: tuple[Any, ...] = (slice(None), slice(a, b), *inner)
            values[place] = self._checked(info, self._pieces(info, *rows, a - columns.start, b - columns.start))

    def _pieces(self, info: TensorInfo, start: int, stop: int, left: int, right: int) -> Array:
        """The values in a range of columns, of which each row has a piece of the file."""
        found = np.empty((stop - start, right - left, *info.shape[2:]), NUMPY_DTYPES[info.dtype])
        held, view, size = self._files.held(info), bytes_view(found), found[0].nbytes
        begin = info.begin + ITEM_SIZE[info.dtype] * left * math.prod(info.shape[2:])
        for row in range(stop - start):
            fill(held, begin + (start + row) * info.row_bytes, view[row * size : (row + 1) * size])
        return found

    def _checked(self, info: TensorInfo, values: Array) -> Array:
        """Values that were read, which are counted and must be finite."""
        self.bytes_read += values.nbytes
        if first_not_finite(bytes_view(values), info.dtype) is not None:
            raise not_finite(info)
        return values


def reads_whole_rows(tensor_map: TensorMap, box: Box, *, means_given: bool = False) -> bool:
    """Whether a box needs all columns of the source: it has all, or a mean is to be taken along them."""
    dimension = tensor_map.dimensions[1]
    return box[1][1] == len(dimension) or (dimension.mean_correction is not None and not means_given)


def _needed(dimension: DimensionMap, offset: int, length: int) -> Booleans:
    """A mask of the source indices that a range of output indices copies along an axis."""
    source = dimension.source[offset : offset + length]
    needed = np.zeros(dimension.size, np.bool_)
    needed[source[source >= 0]] = True
    return needed


def _coalesced(needed: Booleans) -> Booleans:
    """A mask of at most MANY_RUNS ranges that hold all needed indices, with the smallest gaps filled.

    >>> from growth.distributed.parameter_boxes import _coalesced
    >>> int(_coalesced(np.arange(1000) % 4 > 0).sum()), int(_coalesced(np.arange(100) % 4 > 0).sum())
    (936, 75)
    """
    found = true_runs(needed)
    if len(found) <= MANY_RUNS:
        return needed
    gaps = [(stop, start) for (_, stop), (start, _) in pairwise(found)]
    result = needed.copy()
    for stop, start in sorted(gaps, key=lambda gap: gap[1] - gap[0])[: len(found) - MANY_RUNS]:
        result[stop:start] = True
    return result


def _runs(needed: Booleans | None, start: int, stop: int) -> list[tuple[int, int]]:
    """The maximal ranges of needed indices within a range."""
    if start >= stop:
        return []
    if needed is None:
        return [(start, stop)]
    return [(start + a, start + b) for a, b in true_runs(needed[start:stop])]
