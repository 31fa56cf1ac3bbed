"""A grown checkpoint as a folder of torch.distributed.checkpoint, written by that engine a tensor at a time."""

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
    """Carries out a plan into a new folder that `torch.distributed.checkpoint.load` reads, a tensor at a time.

    Beside the engine's own files it holds what every grown checkpoint does: config.json, growth.json, the
    source's tokenizer. Names are those of the stock class's state dict. The bytes are the same from run to run, but
    an interrupted run cannot be resumed: nothing of it stays.

    Raises:
        CheckpointError: a source that is not finite, an existing output, too little disk.
        ConfigError: a class whose parameters are not laid out as its files are.
    """
    found = parameters(plan)
    size = sum(parameter.bytes for parameter in found.values())

    def write(source: Files, work: Directory) -> dict[str, str]:
        planner = _GrowingPlanner(found, source, plan.seed, ProgressCounter("grow", size, progress))
        try:
            _save(planner, _SameBytesWriter(work.through))
        except CheckpointException as error:  # no Exception, and it hides what went wrong
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
    """Compares the engine's files of a grown folder with what it would write, by name; nothing is written.

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
    """Has the engine store the parameters, which the planner grows as it comes to them."""
    state = {name: torch.empty(p.shape, dtype=p.dtype, device="meta") for name, p in planner.parameters.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        save(state, storage_writer=writer, planner=planner, no_dist=True)


class _Compared(FileSystem):
    """A file system for the engine whose files are compared with those of a folder, and not written."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.files: dict[str, Comparison] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        """What compares a file; mode: that of writing."""
        name = Path(path).name.removesuffix(".tmp")  # the metadata is renamed when it is whole
        with Comparison(self._folder / name) as stream:
            self.files[name] = stream
            yield cast("io.IOBase", stream)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Nothing."""

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Nothing."""

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        """Nothing."""

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Nothing is there yet."""
        return False


class _SameBytesWriter(FileSystemWriter):
    """The engine's writer, without the random id and the path that it would store beside the tensors."""

    def storage_meta(self) -> None:
        """Nothing: readers do not need it."""


class _GrowingPlanner(DefaultSavePlanner):
    """Grows a tensor when the engine is about to write it.

    digests: the hash of the bytes of each tensor so far, under its name in files.
    """

    def __init__(self, found: Mapping[str, Parameter], files: Files, seed: int, meter: ProgressCounter):
        super().__init__()
        self.parameters, self._files, self._seed, self._meter = found, files, seed, meter
        self.digests: dict[str, str] = {}

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """A parameter's values."""
        parameter = self.parameters[index.fqn]
        values = torch.empty(parameter.shape, dtype=parameter.dtype)
        source = BoxSource(self._files)
        for offsets, row in parameter.rows.items():
            place = values[parameter.place(offsets)].view(row.shape)
            box = (0,) * len(row.shape), row.shape
            for start, block in grow_box(row, source, measure(row, source), self._seed, box):
                place[start : start + len(block)] = as_tensor(block, row.dtype)
            self.digests[row.target] = hash_of(bytes_view(as_array(place)))
        self._meter.add(values.nbytes)
        return values
