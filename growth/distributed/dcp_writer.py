"""Write a grown checkpoint as a folder of torch.distributed.checkpoint, through that engine, one tensor at a time."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.state_dict_saver import save

from growth.arrays.casting import bytes_view
from growth.arrays.torch_interop import as_array, as_tensor
from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.formats.dcp import METADATA, WRITTEN
from growth.checkpoints.tensor_reader import Files
from growth.distributed.parameter_boxes import BoxSource, Parameter, grow_box, parameters
from growth.engine.grow_tensor import measure
from growth.errors import CheckpointError, GrowthError
from growth.output.checkpoint_writer import write_checkpoint
from growth.output.differences import Comparison
from growth.output.shards import sources_of
from growth.planning.manifest import hash_of
from growth.planning.plan import Plan
from growth.runtime.directory import Directory
from growth.runtime.workers import Progress, ProgressCounter


def write_dcp(
    plan: Plan, checkpoint: Checkpoint, recipe: dict[str, Any], output: Path, *, progress: Progress | None = None
) -> None:
    """Carry out a plan into a new folder that `torch.distributed.checkpoint.load` reads.

    Names are those of the stock class's state dict. Besides the engine's files the folder holds what every grown
    checkpoint does: config.json, growth.json and the source's tokenizer. The bytes are equal in every run. An
    interrupted run leaves nothing behind and cannot be resumed.

    Raises:
        CheckpointError: the source is not finite, the output exists, or the disk is too small.
        ConfigError: the class converts tensors of files in another way than by stacking experts.
    """
    found = parameters(plan)
    size = sum(parameter.bytes for parameter in found.values())

    def write(source: Files, work: Directory) -> dict[str, str]:
        planner = _GrowingPlanner(found, source, plan.seed, ProgressCounter("grow", size, progress))
        try:
            _save(planner, _SameBytesWriter(work.through))
        except CheckpointException as error:  # a BaseException that hides the cause
            cause, _ = next(iter(error.failures.values()))
            if isinstance(cause, GrowthError | OSError | KeyboardInterrupt):
                raise cause from None
            raise CheckpointError(f"{output} cannot be written: {cause}. Free some space there.") from error
        return planner.digests

    write_checkpoint(
        plan,
        checkpoint,
        recipe,
        output,
        progress=progress,
        write=write,
        written=(*WRITTEN, f"{METADATA}.tmp"),
        size=size,
    )


def compare_dcp(plan: Plan, folder: Path, progress: Progress | None = None) -> dict[str, Comparison]:
    """Compare the engine's files of a grown folder, by name, with what the engine would write.

    Raises:
        CheckpointError: the source cannot be read.
    """
    found = parameters(plan)
    size = sum(parameter.bytes for parameter in found.values())
    planner = _GrowingPlanner(
        found, Files(sources_of(plan.tensors)), plan.seed, ProgressCounter("compare files", size, progress)
    )
    writer = _SameBytesWriter(folder, sync_files=False)
    writer.fs = compared = _Compared(folder)
    _save(planner, writer)
    return compared.files


def _save(planner: _GrowingPlanner, writer: FileSystemWriter) -> None:
    """Let the engine store the parameters, which the planner grows one by one."""
    state = {name: torch.empty(p.shape, dtype=p.dtype, device="meta") for name, p in planner.parameters.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        save(state, storage_writer=writer, planner=planner, no_dist=True)


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

    def __init__(self, found: Mapping[str, Parameter], files: Files, seed: int, meter: ProgressCounter):
        super().__init__()
        self.parameters, self._files, self._seed, self._meter = found, files, seed, meter
        self.digests: dict[str, str] = {}

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """Grow a parameter."""
        parameter = self.parameters[index.fqn]
        values = torch.empty(parameter.shape, dtype=parameter.dtype)
        source = BoxSource(self._files)
        for offsets, tensor_map in parameter.tensors.items():
            place = values[parameter.place(offsets)].view(tensor_map.shape)
            box = (0,) * len(tensor_map.shape), tensor_map.shape
            for start, block in grow_box(tensor_map, source, measure(tensor_map, source), self._seed, box):
                place[start : start + len(block)] = as_tensor(block, tensor_map.dtype)
            self.digests[tensor_map.target] = hash_of(bytes_view(as_array(place)))
        self._meter.add(values.nbytes)
        return values
