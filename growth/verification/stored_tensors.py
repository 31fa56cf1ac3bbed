"""The tensors of a grown folder, found and compared with those that the plan makes.

Nothing that the folder says decides what it should hold, except how large its shards may be, which is free. The files
of a torch.distributed.checkpoint are laid out by that engine, and its tensors are found wherever it put them.
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from threading import local

import numpy as np
import xxhash

from growth.architectures import architecture
from growth.arrays.buffers import Workspace
from growth.arrays.casting import INFINITY, half_products_exact, value_of
from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.chunks import paths
from growth.checkpoints.formats.dcp import METADATA, RUN_MODEL, WRITTEN, DistributedCheckpoint
from growth.checkpoints.formats.safetensors import INDEX, SINGLE, read_header
from growth.checkpoints.open import format_of, open_checkpoint
from growth.checkpoints.tensor_reader import Files, scan
from growth.engine.grow_tensor import FileSource, Grower, RowMeans, blocks_of, ignore_overflow, measure, observers
from growth.errors import GrowthError
from growth.output.differences import ABSENT, file_difference
from growth.output.shards import Shard, shards_of, sources_of
from growth.planning.plan import Plan
from growth.planning.tensor_map import TensorMap
from growth.runtime.workers import Progress, ProgressCounter, WorkerPool

SHARD = re.compile(r"model-\d{5,}-of-\d{5,}\.safetensors")
EXTRA = "the recipe does not make it"  # said of a tensor
UNPLANNED = "growth does not write it, and a loader may pick it up: remove it"  # said of a file


@dataclass(frozen=True)
class StoredTensors:
    """What the headers of a folder say, compared with a plan.

    Attributes:
        shards: the files of tensors that the plan makes, in the folder's layout; none in a folder of
            torch.distributed.checkpoint.
        engine_files: the files that torch.distributed.checkpoint wrote.
        places: where each tensor is that is stored with its dtype and shape.
        problems: what is not as the plan makes it, by the name of a tensor or a file.
    """

    shards: Sequence[Shard]
    engine_files: frozenset[str]
    places: Mapping[str, TensorInfo]
    problems: Mapping[str, str]


def stored_dtype(folder: Path) -> str | None:
    """The dtype of all tensors of a folder, if they have the same and the headers can be read."""
    with suppress(GrowthError, OSError, ValueError):
        infos = open_checkpoint(folder).tensors.values() if _by_engine(folder) else _headers(folder)
        (dtype,) = {info.dtype for info in infos}
        return dtype
    return None


def stored_tensors(folder: Path, plan: Plan) -> StoredTensors:
    """Find a plan's tensors in a folder of either format."""
    if _by_engine(folder):
        return _in_engine_files(folder, plan)
    places: dict[str, TensorInfo] = {}
    problems: dict[str, str] = {}
    shards = shards_of(plan, _largest(folder, plan))
    for shard in shards:
        there, wrong = _in_shard(folder / shard.name, shard)
        places |= there
        problems |= wrong
    return StoredTensors(shards, frozenset(), places, problems)


def _by_engine(folder: Path) -> bool:
    return isinstance(format_of(folder), DistributedCheckpoint)


def _in_engine_files(folder: Path, plan: Plan) -> StoredTensors:
    home = "" if (folder / METADATA).is_file() else RUN_MODEL
    try:
        found = open_checkpoint(folder).tensors
    except GrowthError as error:
        written = (str(PurePath(home, name)) for name in WRITTEN)
        return StoredTensors((), frozenset(written), {}, {str(PurePath(home, METADATA)): str(error)})
    files = {str(PurePath(home, path.name)) for info in found.values() for path in paths(info)}
    return StoredTensors(
        (), frozenset(files | {str(PurePath(home, METADATA))}), *_matched(plan.tensors, _as_planned(found, plan))
    )


def _as_planned(found: Mapping[str, TensorInfo], plan: Plan) -> dict[str, TensorInfo]:
    """Name tensors as the plan does, where the engine's folder has the names of the model class."""
    theirs = architecture(plan.config).named_as_in(found)
    named = dict(zip(theirs.shapes(), plan.target.shapes(), strict=True))
    return {named.get(name, name): info for name, info in found.items()}


# ------------------------------------------------- shards


def _headers(folder: Path) -> list[TensorInfo]:
    """The tensors of all files with the name of a shard whose headers can be read."""
    paths = sorted(path for path in folder.iterdir() if SHARD.fullmatch(path.name))
    if (folder / SINGLE).exists() and not (folder / INDEX).exists():
        paths = [folder / SINGLE]
    found: list[TensorInfo] = []
    for path in paths:
        with suppress(GrowthError, OSError):
            found += read_header(path)
    return found


def _largest(folder: Path, plan: Plan) -> int | None:
    """The smallest `--max-shard-size` that allows a folder's shards; None if there are none.

    If any limit makes these shards, this one does, so the folder must hold what it makes.
    """
    homes = {info.name: info.path for info in _headers(folder)}
    if not homes:
        return None
    if set(homes.values()) == {folder / SINGLE}:
        return plan.bytes
    sizes: defaultdict[Path | None, list[int]] = defaultdict(list)
    for tensor_map in plan.tensors:
        if tensor_map.target in homes:
            sizes[homes[tensor_map.target]].append(tensor_map.bytes)
    return max((sum(bytes_) for bytes_ in sizes.values() if len(bytes_) > 1), default=1)


def _in_shard(path: Path, shard: Shard) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The places of a shard's tensors, and what is wrong with the file's header and size."""
    if not path.is_file():
        return {}, {shard.name: ABSENT}
    try:
        places, problems = _matched(shard.tensors, {info.name: info for info in read_header(path)})
    except GrowthError as error:
        return {}, {shard.name: str(error)}
    with path.open("rb") as file:
        header = file.read(len(shard.header))
    if (header, path.stat().st_size) != (shard.header, shard.size):
        problems = {shard.name: "its header is not the one that growth writes for its tensors"} | problems
    return places, problems


def _matched(
    tensor_maps: Iterable[TensorMap], found: Mapping[str, TensorInfo]
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors that are stored with their dtype and shape, and what is wrong with the others."""
    wanted = {tensor_map.target: tensor_map for tensor_map in tensor_maps}
    places: dict[str, TensorInfo] = {}
    problems = dict.fromkeys(found.keys() - wanted.keys(), EXTRA)
    for name, tensor_map in wanted.items():
        info = found.get(name)
        if info is None:
            problems[name] = ABSENT
        elif (info.dtype, info.shape) != (tensor_map.dtype, tensor_map.shape):
            problems[name] = (
                f"it is {info.dtype} {list(info.shape)} instead of {tensor_map.dtype} {list(tensor_map.shape)}"
            )
        else:
            places[name] = info
    return places, problems


# ------------------------------------------------- values


@dataclass(frozen=True)
class ComparedTensors:
    """The result of computing tensors again from the source.

    Attributes:
        read: the hash of the bytes of each source tensor.
        digests: the hash of the bytes that each stored tensor should have.
        problems: how the values of a stored tensor differ from them, by its name.
    """

    read: Mapping[str, str]
    digests: Mapping[str, str]
    problems: Mapping[str, str]


def compare_tensors(
    plan: Plan,
    tensor_maps: Sequence[TensorMap],
    places: Mapping[str, TensorInfo],
    progress: Progress | None = None,
    *,
    forks: bool = False,
) -> ComparedTensors:
    """Compute some of a plan's tensors again from the source, and compare those that are stored.

    Args:
        rows: the tensors; all of their sources are read.
        places: where tensors are stored. A tensor without a place costs nothing, however large it would be.
        forks: as for `grow`.

    Raises:
        CheckpointError: the source cannot be read or is not finite, or a file is changed while it is read.
    """
    tensors = sources_of(tensor_maps)
    stored = [tensor_map for tensor_map in tensor_maps if tensor_map.target in places]
    for dtype in {tensor_map.dtype for tensor_map in stored}:
        half_products_exact(dtype)  # tried and cached here, not in each forked process
    pool, files = WorkerPool(forks=forks), Files(tensors)
    means = observers(stored)
    contents = scan(pool, files, tensors, progress, means)
    meter = ProgressCounter("compare", sum(tensor_map.bytes for tensor_map in stored), progress)
    comparison = _Comparison(plan.seed, files, Files(places), means, places, meter)
    results = pool.run([partial(comparison.compare, tensor_map) for tensor_map in stored], meter)
    files.check_unchanged()
    comparison.stored.check_unchanged()
    found = dict(zip((tensor_map.target for tensor_map in stored), results, strict=True))
    return ComparedTensors(
        {name: content.xxh3_128 for name, content in contents.items()},
        {name: digest for name, (digest, _) in found.items()},
        {name: problem for name, (_, problem) in found.items() if problem is not None},
    )


@dataclass(frozen=True)
class _Comparison:
    seed: int
    source: Files
    stored: Files
    means: Mapping[str, RowMeans]
    places: Mapping[str, TensorInfo]
    meter: ProgressCounter
    thread: local = field(default_factory=local)

    @ignore_overflow()
    def compare(self, tensor_map: TensorMap) -> tuple[str, str | None]:
        """The hash of the bytes that a tensor should have, and how the stored ones differ from them."""
        workspace = self.thread.__dict__.setdefault("workspace", Workspace())
        disk = FileSource(self.source)
        statistics = measure(tensor_map, disk, workspace, self.means.get(tensor_map.source.name))
        grower = Grower(tensor_map, disk, self.seed, statistics, workspace)
        fill = self.stored.filling(self.places[tensor_map.target])
        whole, count, first = xxhash.xxh3_128(), 0, ""
        for start, stop in blocks_of(tensor_map):
            expected = grower.bytes(start, stop)
            whole.update(expected)
            actual = memoryview(bytearray(len(expected)))
            fill(start, stop, actual)
            if actual != expected:
                more, described = _differences(expected, actual, start, tensor_map)
                count, first = count + more, first or described
            self.meter.add(len(expected))
        values = f"{count:,} of {math.prod(tensor_map.shape):,} values {'differs' if count == 1 else 'differ'}"
        return whole.hexdigest(), f"{values}, the first at {first}" if count else None


def _differences(expected: memoryview, actual: memoryview, start: int, tensor_map: TensorMap) -> tuple[int, str]:
    """How many values of a block differ, and the indices of the first with both values.

    start: the number of the block's first row.
    """
    bits, _ = INFINITY[tensor_map.dtype]
    found, made = (np.frombuffer(values, bits) for values in (actual, expected))
    differing = np.flatnonzero(found != made)
    place = int(differing[0])
    before = start * math.prod(tensor_map.shape[1:])
    indices = [int(index) for index in np.unravel_index(before + place, tensor_map.shape)]
    one, other = (value_of(int(values[place]), tensor_map.dtype) for values in (found, made))
    return len(differing), f"{indices}: {one!s} instead of {other!s}"


# ------------------------------------------------- other files


def files_that_differ(folder: Path, expected: Mapping[str, bytes]) -> dict[str, str]:
    """How files differ from the bytes that they should have, or that they are missing, by name."""
    found = {name: file_difference(folder, name, text) for name, text in expected.items()}
    return {name: problem for name, problem in found.items() if problem is not None}


def unplanned(folder: Path, known: Collection[str]) -> Iterator[str]:
    """What a folder holds beside the known files; a folder without any known file counts as one."""
    homes = {str(parent) for name in known for parent in PurePath(name).parents}
    waiting = [""]
    for home in waiting:
        for entry in sorted(os.listdir(folder / home)):
            name = os.path.join(home, entry)
            if name in homes and (folder / name).is_dir() and not (folder / name).is_symlink():
                waiting.append(name)
            elif name not in known:
                yield name
