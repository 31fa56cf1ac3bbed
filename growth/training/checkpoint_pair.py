"""The tensors of a checkpoint before and after training, read in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from growth.algebra.expansion import Integers
from growth.arrays.tensor_info import TensorInfo
from growth.arrays.torch_interop import TORCH_DTYPES, as_tensor
from growth.checkpoints.tensor_reader import Files
from growth.engine.grow_tensor import FileSource, read_rows
from growth.errors import CheckpointError

BLOCK_BYTES = 1 << 22  # of a tensor that are processed at once


class CheckpointPair:
    """The tensors of two checkpoints of one geometry, as float64 values."""

    def __init__(self, before: Mapping[str, TensorInfo], after: Mapping[str, TensorInfo]):
        self._before, self._after = before, after
        self._files = FileSource(Files(before)), FileSource(Files(after))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._before[name].shape

    def roundoff(self, name: str) -> float:
        """The largest relative rounding error of the trained tensor's dtype."""
        return _eps(self._after[name]) / 2

    def blocks(self, name: str) -> Iterator[tuple[Integers, Tensor, Tensor]]:
        """Blocks of consecutive rows: their numbers, and their values before and after."""
        count, step = self.shape(name)[0], self._block_rows(name)
        for start in range(0, count, step):
            rows = np.arange(start, min(start + step, count))
            yield rows, *self._read(name, rows)

    def groups(
        self, name: str, dimension: int, index: Integers, group: Integers
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Blocks of the values at `index` in a dimension that do not cut a group.

        index: (n,): indices in the dimension.
        group: (n,): the group of each, ascending.

        Yields a slice of `index` and the values before and after: (indices in the slice, all other values).
        """
        if dimension == 0:
            for part in _whole_groups(group, self._block_rows(name)):
                rows = np.sort(index[part])
                place = np.searchsorted(rows, index[part])
                before, after = self._read(name, rows)
                yield part, _select(before, place), _select(after, place)
        else:
            for _, before, after in self.blocks(name):
                before, after = before.movedim(dimension, 0), after.movedim(dimension, 0)
                yield slice(0, len(index)), _select(before, index), _select(after, index)

    def _block_rows(self, name: str) -> int:
        return max(1, BLOCK_BYTES // max(1, self._before[name].row_bytes))

    def _read(self, name: str, rows: Integers) -> tuple[Tensor, Tensor]:
        """The values of ascending rows before and after; those before as training in a coarser dtype begins from them.

        Raises:
            CheckpointError: a value after training is not finite.
        """
        runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)]
        infos = self._before[name], self._after[name]
        before, after = (
            torch.cat([as_tensor(read_rows(files, info, *run), info.dtype) for run in runs])
            for files, info in zip(self._files, infos, strict=True)
        )
        if not bool(after.isfinite().all()):
            raise CheckpointError(
                f"Tensor '{name}' of {infos[1].path} holds NaN or Inf, so it does not show whether copies "
                "diverged. Name a checkpoint from before training diverged."
            )
        if _eps(infos[1]) > _eps(infos[0]):
            before = before.to(after.dtype)
        return before.double(), after.double()


def _eps(info: TensorInfo) -> float:
    return float(torch.finfo(TORCH_DTYPES[info.dtype]).eps)


def _select(values: Tensor, index: Integers) -> Tensor:
    return values[torch.from_numpy(index)].reshape(len(index), -1)


def _whole_groups(group: Integers, size: int) -> Iterator[slice]:
    """Slices of about `size` indices that do not cut a group; `group` ascends."""
    ends = np.flatnonzero(np.diff(group, append=-1)) + 1
    start = 0
    while start < len(group):
        fitting = int(np.searchsorted(ends, start + size, side="right"))
        end = int(ends[max(fitting - 1, int(np.searchsorted(ends, start, side="right")))])
        yield slice(start, end)
        start = end
