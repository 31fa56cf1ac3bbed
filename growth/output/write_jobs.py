"""The order and the portions in which workers write tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from growth.arrays.tensor_info import TensorInfo
from growth.engine.grow_tensor import blocks_of
from growth.planning.tensor_map import TensorMap

MAX_OPEN = 8  # files that one job has open, each with a tensor of the same values
LARGEST_JOB = 256 << 20  # bytes of a tensor above which several workers share it

PlacedTensor = tuple[TensorMap, TensorInfo]  # an output tensor, and its place in an output file


@dataclass(frozen=True, eq=False)
class WriteJob:
    """Tensors of identical values, grown once by one worker and written to each of their places.

    Attributes:
        identical: the tensors and their places.
        blocks: the rows that this job writes, as (start, stop), where several jobs share a tensor; else None. The hash
            of a shared tensor is taken when all of it is written, since it runs from end to end.
    """

    identical: Sequence[PlacedTensor]
    blocks: Sequence[tuple[int, int]] | None = None

    @property
    def bytes(self) -> int:
        """Bytes that the job writes."""
        tensor = self.identical[0][0]
        rows = tensor.bytes if self.blocks is None else tensor.row_bytes * (self.blocks[-1][1] - self.blocks[0][0])
        return rows * len(self.identical)


def write_jobs(tensors: Iterable[PlacedTensor], largest: int) -> list[WriteJob]:
    """The jobs that write all tensors, in the order in which they should begin."""
    return interleave_files([job for identical in group_identical(tensors) for job in _split(identical, largest)])


def group_identical(tensors: Iterable[PlacedTensor]) -> list[list[PlacedTensor]]:
    """Group tensors that surely have identical values, at most `MAX_OPEN` in a group."""
    groups: dict[object, list[list[PlacedTensor]]] = {}
    for tensor, place in tensors:
        found = groups.setdefault(tensor.value_key, [[]])
        if len(found[-1]) == MAX_OPEN:
            found.append([])
        found[-1].append((tensor, place))
    return [group for found in groups.values() for group in found]


def _split(identical: Sequence[PlacedTensor], largest: int) -> list[WriteJob]:
    """One job, or several where a computed tensor has more than `largest` bytes."""
    tensor = identical[0][0]
    if tensor.bytes <= largest or tensor.is_copy or is_zero(tensor):
        return [WriteJob(identical)]
    blocks = blocks_of(tensor)
    each = max(1, len(blocks) * largest // (2 * tensor.bytes))
    return [WriteJob(identical, blocks[first : first + each]) for first in range(0, len(blocks), each)]


def interleave_files(jobs: Sequence[WriteJob]) -> list[WriteJob]:
    """Order jobs by falling size, so that no large one is left at the end; equal sizes take turns among files.

    Jobs that begin at the same time then seldom write to the same file.
    """
    before, order = Counter[tuple[int, Path | None]](), []
    for job in jobs:
        size, file = job.bytes, job.identical[0][1].path
        order.append((-size, before[size, file]))
        before[size, file] += 1
    return [jobs[n] for n in sorted(range(len(jobs)), key=order.__getitem__)]


def is_zero(tensor: TensorMap) -> bool:
    """Whether every stored value is zero."""
    return tensor.zero and not tensor.offset
