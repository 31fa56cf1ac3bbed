"""Grow any box of a parameter of the grown model, reading only the part of the source that the box copies.

Parameters have the names and shapes of the stock class. If the class stacks experts that have a tensor each in files,
several tensors of a plan make one parameter. A box is a pair of offsets and sizes within a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from growth.algebra.expansion import Booleans
from growth.arrays.buffers import Workspace
from growth.arrays.casting import Array, bytes_view
from growth.arrays.tensor_info import ITEM_SIZE, TensorInfo
from growth.arrays.torch_interop import TORCH_DTYPES
from growth.checkpoints.chunks import Chunk, ComposedInfo, chunks
from growth.checkpoints.expert_stacks import offsets
from growth.checkpoints.stock_parameters import class_config, stored_as
from growth.checkpoints.tensor_reader import Files, first_not_finite, not_finite
from growth.engine.gather_scale import MANY_RUNS
from growth.engine.grow_tensor import FileSource, Fill, Grower, Statistics, blocks_of, ignore_overflow, read_rows
from growth.errors import CheckpointError
from growth.planning.plan import Plan
from growth.planning.tensor_map import TensorMap, true_runs

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
    tensor_map: TensorMap, source: BoxSource, statistics: Statistics, seed: int, box: Box
) -> Iterator[tuple[int, Array]]:
    """Grow a box of an output tensor, one block of rows at a time.

    Yields:
        The row of the box at which a block begins, and the block's values.

    Raises:
        CheckpointError: a value overflows.
    """
    (first, *others), (count, *lengths) = box
    columns = [slice(offset, offset + length) for offset, length in zip(others, lengths, strict=True)]
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

    Attributes:
        bytes_read: so far.
    """

    def __init__(self, files: Files, tensor_map: TensorMap | None = None, box: Box | None = None):
        self._disk = FileSource(files)
        self._rows: Booleans | None = None
        self._columns: Booleans | None = None
        self.bytes_read = 0
        if tensor_map is not None and box is not None:
            self._rows, *others = (
                _needed(tensor_map, axis, *place) for axis, place in enumerate(zip(*box, strict=True))
            )
            self._columns = others[0] if others else None

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
        runs = _runs(self._columns, columns.start, columns.stop)
        if not others or runs == [(columns.start, columns.stop)] or isinstance(info, ComposedInfo):
            values[(slice(None), *others)] = self._counted(info, start - first.start, stop - first.start)
            return
        width = ITEM_SIZE[info.dtype] * math.prod(info.shape[2:])
        for a, b in runs:
            for at in range(start, stop):
                begin = info.begin + (at - first.start) * info.row_bytes + (a - columns.start) * width
                piece = replace(info, shape=(1, b - a, *info.shape[2:]), begin=begin)
                place: tuple[Any, ...] = (at - start, slice(a, b), *inner)
                values[place] = self._counted(piece, 0, 1)[0]

    def _counted(self, info: TensorInfo, start: int, stop: int) -> Array:
        self.bytes_read += (stop - start) * info.row_bytes
        values = read_rows(self._disk, info, start, stop)
        if first_not_finite(bytes_view(values), info.dtype) is not None:
            raise not_finite(info)
        return values


def _needed(tensor_map: TensorMap, axis: int, offset: int, length: int) -> Booleans | None:
    """A mask of the source indices that a range of output indices copies along an axis; None where all are read.

    All are read where a mean is taken along columns, and where one read is faster than many small ones.
    """
    dimension = tensor_map.dimensions[axis]
    if axis > 0 and (dimension.mean_correction is not None or length == len(dimension)):
        return None
    source = dimension.source[offset : offset + length]
    needed = np.zeros(dimension.size, np.bool_)
    needed[source[source >= 0]] = True
    return None if axis > 0 and len(_runs(needed, 0, len(needed))) > MANY_RUNS else needed


def _runs(needed: Booleans | None, start: int, stop: int) -> list[tuple[int, int]]:
    """The maximal ranges of needed indices within a range."""
    if start >= stop:
        return []
    if needed is None:
        return [(start, stop)]
    return [(start + a, start + b) for a, b in true_runs(needed[start:stop])]
