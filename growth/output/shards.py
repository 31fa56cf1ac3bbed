"""The safetensors files of an output: which tensors each holds, and which files each process writes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.formats.safetensors import SINGLE, layout
from growth.errors import ConfigError, RecipeError
from growth.output.writer_rank import WriterRank
from growth.planning.plan import Plan
from growth.planning.tensor_map import TensorMap
from growth.runtime.balance import even_shares
from growth.runtime.directory import Directory

FILES, SMALL, LARGE = 16, 1_000_000_000, 5_000_000_000  # by default: number of files, and limits of one in bytes


@dataclass(frozen=True, eq=False)
class Shard:
    """One output file and the tensors that it holds."""

    name: str
    tensors: tuple[TensorMap, ...]

    @cached_property
    def _layout(self) -> tuple[bytes, list[TensorInfo]]:
        return layout(Path(self.name), [(tensor.target, tensor.dtype, tensor.shape) for tensor in self.tensors])

    @property
    def header(self) -> bytes:
        """The first bytes of the file: the header's length and the header."""
        return self._layout[0]

    @cached_property
    def places(self) -> dict[str, TensorInfo]:
        """The place of every tensor in the file, by name."""
        return {place.name: place for place in self._layout[1]}

    @cached_property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + sum(tensor.bytes for tensor in self.tensors)

    def is_in(self, folder: Directory) -> bool:
        """Whether a folder has this file at its full size and with its header."""
        status = folder.status(self.name)
        return (
            status is not None
            and status.st_size == self.size
            and folder.read(self.name, len(self.header)) == self.header
        )


def shards_of(plan: Plan, largest: int | None) -> list[Shard]:
    """The output files of a plan; none has more than `largest` bytes of tensors, unless it holds a single tensor.

    By default a large model has several files, because processes that write to one file wait for each other.
    """
    if largest is None:
        largest = min(max(plan.bytes // FILES, SMALL), LARGE)
    files = group_by_size([tensor.bytes for tensor in plan.tensors], largest)
    return [Shard(name, tuple(plan.tensors[position] for position in group)) for name, group in files.items()]


def group_by_size(sizes: Sequence[int], largest: int) -> dict[str, list[int]]:
    """The positions of the tensors in each file, by the file's name; a tensor above `largest` has its own file.

    >>> group_by_size([3, 2, 2], largest=5)
    {'model-00001-of-00002.safetensors': [0, 1], 'model-00002-of-00002.safetensors': [2]}
    """
    groups: list[list[int]] = [[]]
    filled = 0
    for position, size in enumerate(sizes):
        if groups[-1] and filled + size > largest:
            groups.append([])
            filled = 0
        groups[-1].append(position)
        filled += size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{n:05d}-of-{len(groups):05d}.safetensors": group for n, group in enumerate(groups, 1)}


def share(shards: Sequence[Shard], rank: WriterRank) -> list[Shard]:
    """The files that one process writes: all files in shares of about the same size.

    Raises:
        RecipeError: there are fewer files than processes.
    """
    if len(shards) < rank.count:
        bytes_each = max(1, sum(shard.size for shard in shards) // (2 * rank.count))
        raise RecipeError(
            f"{rank.count} parts cannot share {len(shards)} output file{'s' * (len(shards) > 1)}: each writes files of "
            f"its own. Use --max-shard-size {bytes_each}, or less."
        )
    named = sorted(shards, key=lambda shard: shard.name)
    return even_shares(named, lambda shard: shard.size, rank.count)[rank.index - 1]


def sources_of(tensors: Iterable[TensorMap]) -> dict[str, TensorInfo]:
    """The source tensors, by name, from which output tensors are made."""
    return {tensor.source.name: tensor.source for tensor in tensors if tensor.init_std is None}


def shard_size(text: int | str | None) -> int | None:
    """Bytes of "5GB", "200MB", "1GiB" or a number.

    Raises:
        ConfigError: anything else.

    >>> shard_size("200MB"), shard_size("1GiB")
    (200000000, 1073741824)
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?)B?", str(text).strip(), re.IGNORECASE)
    if not match:
        raise ConfigError(f"max_shard_size '{text}' is not a size such as 5GB or 200MB.")
    unit = match[2].lower()
    base = 1024 if unit.endswith("i") else 1000
    size = int(float(match[1]) * base ** " kmgt".index(unit[:1] or " "))
    if size < 1:
        raise ConfigError(f"max_shard_size {text} is below one byte.")
    return size
