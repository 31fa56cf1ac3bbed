"""Means along the columns of each row, for boxes that do not read whole rows.

Under a LayerNorm, a tensor that reads or stores the residual stream along its columns adds a multiple of each row's
mean (`MeanCorrection`). A rank that needs some columns of every row would have to read all columns for it. Instead, the
ranks compute the means of a range of rows each and exchange them. The tensor is then grown from a source in which each
row is followed by its means, so that the engine computes every value as before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from growth.arrays.casting import NUMPY_DTYPES, Array, cast
from growth.arrays.tensor_info import TensorInfo
from growth.engine.gather_scale import means_along
from growth.engine.grow_tensor import Fill, TensorSource, blocks, ignore_overflow, read_rows
from growth.engine.kernel import KernelSpec
from growth.planning.tensor_map import MeanCorrection, TensorMap

Means = Sequence[tuple[int, Array]]  # ranges of rows: the first one, and the means of each: (rows, keys)


def has_column_means(tensor_map: TensorMap) -> bool:
    """Whether a tensor needs means along columns that may be given: of a matrix to which the model adds nothing."""
    return (
        len(tensor_map.dimensions) == 2
        and tensor_map.dimensions[1].mean_correction is not None
        and not (tensor_map.zero or tensor_map.is_copy or tensor_map.offset)
    )


@ignore_overflow()
def measure_rows(tensor_map: TensorMap, source: TensorSource, start: int, stop: int) -> Array:
    """The means along columns of the source's rows from `start` to `stop`: (rows, keys)."""
    info, correction, dtype = tensor_map.source, _correction(tensor_map), KernelSpec.of(tensor_map).dtype
    found = [np.empty((0, correction.outer * correction.inner), dtype)]
    for a, b in blocks(stop - start, info.row_bytes):
        rows = read_rows(source, info, start + a, start + b)
        found.append(means_along(cast(rows, np.empty(rows.shape, dtype)), correction, 1))
    return np.concatenate(found)


def joined(means: Means, rows: int) -> Array | None:
    """The means of all rows of a source; None if those of any row are missing."""
    pieces, end = [], 0
    for start, values in sorted(means, key=lambda piece: piece[0]):
        if start != end:
            return None
        pieces.append(values)
        end += len(values)
    return np.concatenate(pieces) if pieces and end == rows else None


def with_means(tensor_map: TensorMap) -> TensorMap:
    """The same tensor grown from a source in which each row is followed by its means, in the engine's type."""
    correction, (first, second) = _correction(tensor_map), tensor_map.dimensions
    rows, columns = tensor_map.source.shape
    width = columns + correction.outer * correction.inner
    dtype = KernelSpec.of(tensor_map).dtype
    stored = next(name for name in ("F32", "F64") if NUMPY_DTYPES[name] == dtype)
    alone = MeanCorrection(width, 1, 1, columns + correction.keys, correction.coefficient)  # the mean of one value
    second = replace(second, size=width, mean_correction=alone)
    info = TensorInfo(tensor_map.source.name, stored, (rows, width))
    return replace(tensor_map, source=info, dimensions=(first, second))


class WithMeans:
    """A source of rows that are followed by their means, for a tensor map that `with_means` made."""

    def __init__(self, source: TensorSource, info: TensorInfo, means: Array):
        self._source, self._info, self._means = source, info, means

    def filling(self, info: TensorInfo) -> Fill:
        """The function that fills memory with rows and their means."""
        return partial(self._fill, math.prod(self._info.shape[1:]))

    def _fill(self, columns: int, start: int, part: Array) -> None:
        rows = read_rows(self._source, self._info, start, start + len(part))
        part[:, :columns] = cast(rows, np.empty(rows.shape, part.dtype))
        part[:, columns:] = self._means[start : start + len(part)]


def _correction(tensor_map: TensorMap) -> MeanCorrection:
    correction = tensor_map.dimensions[1].mean_correction
    assert correction is not None
    return correction
