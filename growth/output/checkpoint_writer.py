"""Carry out a plan from folder to folder: read and check the source, write the tensors, publish the output whole.

The plan determines header, offsets and index of every file, so that any worker of any process can write any tensor at
any time, and an interrupted run can be resumed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from growth.arrays.casting import half_products_exact
from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.companions import kept_files
from growth.checkpoints.tensor_reader import Files, TensorSummary, scan
from growth.engine.grow_tensor import observers
from growth.errors import CheckpointError
from growth.output.contents import FolderContents
from growth.output.finished import check_finished, hash_of_file
from growth.output.mark import Mark
from growth.output.preallocate import allocate, refuse_output
from growth.output.shards import shards_of, share, sources_of
from growth.output.staging import Staging, StagingDirectory
from growth.output.tensor_writer import Writer, write_tensors
from growth.output.writer_rank import ALONE, WriterRank
from growth.planning.plan import Plan
from growth.runtime.directory import Directory
from growth.runtime.workers import Progress, ProgressCounter, WorkerPool

METADATA_RESERVE = 16 << 20  # bytes that are kept free for config.json, the index, growth.json and the model card
Companions = Mapping[str, Callable[[BinaryIO], None]]  # by the name of a further file, what writes its bytes
NO_COMPANIONS: Companions = MappingProxyType({})


def write_checkpoint(
    plan: Plan,
    checkpoint: Checkpoint,
    recipe: dict[str, Any],
    output: Path,
    *,
    max_shard_size: int | None = None,
    rank: WriterRank = ALONE,
    resume: bool = False,
    progress: Progress | None = None,
    forks: bool = False,
    companions: Companions = NO_COMPANIONS,
    companion_bytes: int = 0,
    write: Callable[[Files, Directory], dict[str, str]] | None = None,
    written: Sequence[str] = (),
    size: int = 0,
) -> None:
    """Carry out a plan, or this process's share of it, into a new folder.

    Args:
        plan, checkpoint: what is made, and of which source.
        recipe: the recipe as growth.json records it.
        output: the folder, which appears when the last process has finished.
        max_shard_size: bytes of tensors in one file.
        rank: which of the processes that write the output this one is.
        resume: whether to keep what an earlier run wrote. A finished output is checked, and not written.
        progress: called with (phase, bytes done, bytes in all).
        forks: whether workers are forked processes, as for `growth.grow`.
        companions: further files; `companion_bytes` in all.
        write: writes the tensors in another format, and returns the xxh3_128 of each; by default they become
            safetensors.
        written, size: the names of the files that `write` makes, and their bytes in all.

    Raises:
        CheckpointError: the source is not finite, the output exists or has no safe place, or the disk is too small.
        RecipeError: there are more processes than output files.
    """
    shards = [] if write is not None else shards_of(plan, max_shard_size)
    own = share(shards, rank) if shards else []
    contents = FolderContents(plan, checkpoint, recipe, shards)
    names = tuple(dict.fromkeys([*contents.names, *written, *companions]))
    mark = Mark(contents.fingerprint, rank.count, names)
    staging = Staging(output, mark, rank, resume=resume, resumable=write is None and not companions)
    _refuse_places(checkpoint.folder, staging)
    finished = staging.joins and os.path.exists(output)
    if not finished:
        kept = sum(map(len, kept_files(checkpoint.folder).values()))
        needed = sum(shard.size for shard in own) + size + companion_bytes + kept + METADATA_RESERVE
        refuse_output(output, max(0, needed - staging.check()))
    grown = [tensor for shard in own for tensor in shard.tensors]
    sources = sources_of(grown if grown and not finished else plan.tensors)
    pool, files = WorkerPool(forks=forks), Files(sources)
    means = {} if finished or write is not None else observers(grown)
    summaries = scan(pool, files, sources, progress, means)
    if finished:
        check_finished(pool, output, contents, contents.source_hash(_hashes(summaries)), progress)
        staging.clear()
        return
    for dtype in {tensor.dtype for tensor in plan.tensors}:
        half_products_exact(dtype)  # is tried here once, and not by each forked process
    with staging.opened() as work:
        work.journal.begin(_hashes(summaries))
        new = allocate(work.checkpoint, own)
        if write is not None:
            digests = write(files, work.checkpoint)
        else:
            counter = ProgressCounter("grow", sum(tensor.bytes for tensor in grown), progress)
            digests = write_tensors(pool, Writer(files, summaries, means, plan.seed, work, counter, new), own)
        files.check_unchanged()
        work.journal.finish(digests)
        work.publish(partial(_complete, contents, companions, written, work))


def _refuse_places(source: Path, staging: Staging) -> None:
    """Raise CheckpointError where the source lies in the staging folder, or the output in the source."""
    home = source.resolve()
    if home.is_relative_to(staging.path.resolve()):
        raise CheckpointError(
            f"The source {source} is inside {staging.path}, the staging folder of {staging.output}, whose files are "
            "replaced while the source is read. Move the source elsewhere, or choose another --output."
        )
    if staging.output.resolve().is_relative_to(home) and staging.output.resolve() != home:
        raise CheckpointError(
            f"The output {staging.output} is inside the source {source}, whose files would no longer be those of one "
            "checkpoint. Choose another --output."
        )


def _hashes(summaries: Mapping[str, TensorSummary]) -> dict[str, str]:
    return {name: summary.xxh3_128 for name, summary in summaries.items()}


def _complete(
    contents: FolderContents,
    companions: Companions,
    written: Iterable[str],
    work: StagingDirectory,
    source: Mapping[str, str],
    digests: Mapping[str, str],
) -> None:
    """Check that every shard is whole, and write the files that hold no tensors.

    Args:
        contents: what the folder holds.
        companions: what writes each further file.
        written: the names of other files that hold tensors.
        work: the staging folder.
        source, digests: the xxh3_128 of each tensor of the source, and of the output.

    Raises:
        CheckpointError: a shard is not whole.
    """
    folder = work.checkpoint
    for shard in contents.shards:
        if not shard.is_in(folder) or any(tensor.target not in digests for tensor in shard.tensors):
            status = folder.status(shard.name)
            found = 0 if status is None else status.st_size
            raise CheckpointError(
                f"{folder.path / shard.name} is incomplete: it has {found:,} bytes of {shard.size:,}. Grow it again."
            )
    for name, write_to in companions.items():
        with folder.new(name) as descriptor, os.fdopen(os.dup(descriptor), "wb") as companion:
            write_to(companion)
    others = {name: hash_of_file(folder.through / name) for name in [*written, *companions] if folder.has(name)}
    for name, content in contents.metadata_files(source, digests, others).items():
        folder.write(name, content)
