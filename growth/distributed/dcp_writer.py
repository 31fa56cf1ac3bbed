"""Write grown checkpoints as folders of torch.distributed.checkpoint, through that engine, one tensor at a time."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.state_dict_saver import save

from growth.arrays.casting import bytes_view
from growth.arrays.tensor_info import TensorInfo
from growth.arrays.torch_interop import as_array, as_tensor
from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.formats.dcp import METADATA, WRITTEN
from growth.checkpoints.tensor_reader import Files
from growth.distributed.optimizer_parameters import refuse_negative
from growth.distributed.parameter_boxes import BoxSource, Parameter, grow_box, parameters
from growth.engine.grow_tensor import measure
from growth.errors import CheckpointError, GrowthError
from growth.output.checkpoint_writer import NO_COMPANIONS, Companions, write_checkpoint
from growth.output.differences import Comparison
from growth.output.shards import sources_of
from growth.planning.manifest import hash_of
from growth.planning.plan import Plan
from growth.runtime.directory import Directory
from growth.runtime.workers import Progress, ProgressCounter


@dataclass(frozen=True, eq=False)
class EngineFolder:
    """A state dict that the engine stores in a folder, in which some tensors grow when they are written.

    Attributes:
        state: the state dict, with tensors on the meta device for those that grow.
        grown: how each of these grows, by its name in the flattened state dict.
        unsigned: the names of those that are never negative.
        home: the folder's name in that of the checkpoint; empty for that folder itself.
    """

    state: Mapping[str, Any]
    grown: Mapping[str, Parameter]
    unsigned: frozenset[str] = frozenset()
    home: str = ""

    @property
    def size(self) -> int:
        """Bytes of the tensors that grow."""
        return sum(parameter.bytes for parameter in self.grown.values())

    @property
    def names(self) -> list[str]:
        """The names of the files that a single process writes, and of one that it renames."""
        return [str(PurePosixPath(self.home, name)) for name in (*WRITTEN, f"{METADATA}.tmp")]

    @property
    def sources(self) -> dict[str, TensorInfo]:
        """The stored tensors that are read, by the names of the grown ones."""
        maps = (tensor_map for parameter in self.grown.values() for tensor_map in parameter.tensors.values())
        return {one.target: one.source for one in maps if one.source.path is not None}


def unwritten(parameters: Mapping[str, Parameter]) -> dict[str, Tensor]:
    """Tensors on the meta device in place of parameters."""
    return {name: torch.empty(one.shape, dtype=one.dtype, device="meta") for name, one in parameters.items()}


def weights_folder(plan: Plan) -> EngineFolder:
    """The grown weights by the names of the stock class.

    Raises:
        ConfigError: the class converts tensors of files in another way than by stacking experts.
    """
    found = parameters(plan)
    return EngineFolder(unwritten(found), found)


def write_dcp(
    plan: Plan,
    checkpoint: Checkpoint,
    recipe: dict[str, Any],
    output: Path,
    *,
    folders: Sequence[EngineFolder] = (),
    progress: Progress | None = None,
    companions: Companions = NO_COMPANIONS,
    companion_bytes: int = 0,
) -> None:
    """Carry out a plan into a new folder that `torch.distributed.checkpoint.load` reads.

    Names are those of the stock class's state dict. Besides the engine's files the folder holds what every grown
    checkpoint does: config.json, growth.json and the source's tokenizer. The bytes are equal in every run. An
    interrupted run leaves nothing behind and cannot be resumed.

    folders: the engine's folders, that of the weights first; by default that of the weights alone.
    companions, companion_bytes: as for `write_checkpoint`.

    Raises:
        CheckpointError: the source is not finite, the output exists, or the disk is too small.
        ConfigError: the class converts tensors of files in another way than by stacking experts.
    """
    folders = folders or [weights_folder(plan)]
    size = sum(folder.size for folder in folders)

    def write(source: Files, work: Directory) -> dict[str, str]:
        counter = ProgressCounter("grow", size, progress)
        planners = [
            _GrowingPlanner(folder, files, plan.seed, counter) for folder, files in _with_files(folders, source)
        ]
        try:
            for planner in planners:
                with ExitStack() as stack:
                    work_of = work
                    if home := planner.folder.home:
                        work.make(home)
                        work_of = stack.enter_context(work.child(home))
                    _save(planner, _SameBytesWriter(work_of.through))
        except CheckpointException as error:  # a BaseException that hides the cause
            cause, _ = next(iter(error.failures.values()))
            if isinstance(cause, GrowthError | OSError | KeyboardInterrupt):
                raise cause from None
            raise CheckpointError(f"{output} cannot be written: {cause}. Free some space there.") from error
        for planner in planners:
            planner.files.check_unchanged()
        return planners[0].digests

    write_checkpoint(
        plan,
        checkpoint,
        recipe,
        output,
        progress=progress,
        write=write,
        written=[name for folder in folders for name in folder.names],
        size=size,
        companions=companions,
        companion_bytes=companion_bytes,
    )


def compare_dcp(
    plan: Plan, output: Path, progress: Progress | None = None, folders: Sequence[EngineFolder] = ()
) -> dict[str, Comparison]:
    """Compare the engine's files of a grown folder, by name, with what the engine would write.

    folders: as for `write_dcp`.

    Raises:
        CheckpointError: the source cannot be read.
    """
    folders = folders or [weights_folder(plan)]
    counter = ProgressCounter("compare files", sum(folder.size for folder in folders), progress)
    found: dict[str, Comparison] = {}
    for folder, files in _with_files(folders, Files(sources_of(plan.tensors))):
        writer = _SameBytesWriter(output / folder.home, sync_files=False)
        writer.fs = compared = _Compared(output / folder.home)
        _save(_GrowingPlanner(folder, files, plan.seed, counter), writer)
        found |= {str(PurePosixPath(folder.home, name)): stream for name, stream in compared.files.items()}
    return found


def _with_files(folders: Sequence[EngineFolder], weights: Files) -> list[tuple[EngineFolder, Files]]:
    """Each folder with the files that it grows from: those of the weights are given."""
    first, *others = folders
    return [(first, weights), *((folder, Files(folder.sources)) for folder in others)]


def _save(planner: _GrowingPlanner, writer: FileSystemWriter) -> None:
    """Let the engine store a state dict, whose tensors the planner grows one by one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        save(dict(planner.folder.state), storage_writer=writer, planner=planner, no_dist=True)


class _Compared(FileSystem):
    """A file system for the engine that compares files with those of a folder and writes none."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.files: dict[str, Comparison] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        """The stream that compares a file with what is written to it."""
        name = Path(path).name.removesuffix(".tmp")  # the engine renames the metadata when it is complete
        with Comparison(self._folder / name) as stream:
            self.files[name] = stream
            yield cast("io.IOBase", stream)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Do nothing."""

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Do nothing."""

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        """Do nothing."""

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Return False: the engine writes to an empty folder."""
        return False


class _SameBytesWriter(FileSystemWriter):
    """The engine's writer, without the random id and the path that it would store with the tensors."""

    def storage_meta(self) -> None:
        """Store nothing: readers do not need it."""


class _GrowingPlanner(DefaultSavePlanner):
    """A planner that grows a parameter when the engine is about to write it.

    Attributes:
        digests: the xxh3_128 of each tensor grown so far, by its name in files.
    """

    def __init__(self, folder: EngineFolder, files: Files, seed: int, meter: ProgressCounter):
        super().__init__()
        self.folder, self.files, self._seed, self._meter = folder, files, seed, meter
        self.digests: dict[str, str] = {}

    def lookup_object(self, index: MetadataIndex) -> Any:
        """Grow a parameter; other values are those of the state dict."""
        parameter = self.folder.grown.get(index.fqn)
        if parameter is None:
            return super().lookup_object(index)
        values, digests = grow_parameter(parameter, self.files, self._seed)
        if index.fqn in self.folder.unsigned:
            refuse_negative(next(iter(parameter.tensors.values())), values)
        self.digests |= digests
        self._meter.add(values.nbytes)
        return values


def grow_parameter(parameter: Parameter, files: Files, seed: int) -> tuple[Tensor, dict[str, str]]:
    """The values of a parameter, and the xxh3_128 of each tensor that makes it, by its name in files."""
    values, digests = torch.empty(parameter.shape, dtype=parameter.dtype), {}
    source = BoxSource(files)
    for offsets, tensor_map in parameter.tensors.items():
        place = values[parameter.place(offsets)].view(tensor_map.shape)
        box = (0,) * len(tensor_map.shape), tensor_map.shape
        for start, block in grow_box(tensor_map, source, measure(tensor_map, source), seed, box):
            place[start : start + len(block)] = as_tensor(block, tensor_map.dtype)
        digests[tensor_map.target] = hash_of(bytes_view(as_array(place)))
    return values, digests
