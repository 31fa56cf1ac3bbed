"""Grow tensors and write them to their places in the output's files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import local

import xxhash

from growth.arrays.buffers import Workspace
from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.chunks import ComposedInfo
from growth.checkpoints.tensor_reader import CHUNK, Files, TensorSummary, first_not_finite, pieces
from growth.engine.grow_tensor import FileSource, Grower, RowMeans, blocks_of, ignore_overflow, measure
from growth.errors import CheckpointError
from growth.output.shards import Shard
from growth.output.staging import StagingDirectory
from growth.output.write_jobs import LARGEST_JOB, PlacedTensor, WriteJob, is_zero, write_jobs
from growth.planning.tensor_map import TensorMap, clipped
from growth.runtime.directory import Directory, write
from growth.runtime.workers import ProgressCounter, WorkerPool, cores

COPY_CHUNK = 256 << 20  # bytes that the kernel copies in one call


def write_tensors(pool: WorkerPool, writer: Writer, shards: Sequence[Shard]) -> dict[str, str]:
    """Write all tensors of some output files, and wait until these are on disk.

    Args:
        pool: the workers that do it.
        writer: what they write with.
        shards: the output files, which exist at their full size.

    Returns:
        The xxh3_128 of each tensor's bytes.
    """
    staging, counter = writer.staging, writer.counter
    placed = [(tensor, shard.places[tensor.target]) for shard in shards for tensor in shard.tensors]
    done = _written_before(pool, placed, staging, counter)
    left = [(tensor, place) for tensor, place in placed if tensor.target not in done]
    jobs = write_jobs(left, max(LARGEST_JOB, counter.total // (2 * cores())))
    digests = pool.run([partial(writer.write, job) for job in jobs], counter)
    whole = ((job, digest) for job, digest in zip(jobs, digests, strict=True) if digest is not None)
    done |= {tensor.target: digest for job, digest in whole for tensor, _ in job.identical}
    shared = [place for tensor, place in left if tensor.target not in done]
    for name, digest in stored_hashes(pool, staging.checkpoint, shared, counter).items():
        staging.journal.add(name, digest)
        done[name] = digest
    for shard in shards:
        staging.checkpoint.sync(shard.name)
    return done


def _written_before(
    pool: WorkerPool, placed: Sequence[PlacedTensor], staging: StagingDirectory, counter: ProgressCounter
) -> dict[str, str]:
    """The tensors that earlier runs wrote and whose bytes still have the recorded hash."""
    noted = staging.journal.tensors()
    sizes = {place.name: place.bytes for _, place in placed}
    places = [place for _, place in placed if place.name in noted]
    found = stored_hashes(pool, staging.checkpoint, places, counter)
    done = {name: digest for name, digest in found.items() if noted[name] == digest}
    staging.journal.keep_only(done)
    counter.add(sum(sizes[name] for name in done))
    return done


def stored_hashes(
    pool: WorkerPool, folder: Directory, places: Iterable[TensorInfo], counter: ProgressCounter
) -> dict[str, str]:
    """The xxh3_128 of tensors' bytes as they stand in the files of a folder, by name."""
    infos = {place.name: replace(place, path=folder.through / str(place.path)) for place in places}
    files = Files(infos)
    found = pool.run([partial(_hash_of, files, info) for info in infos.values()], counter)
    return dict(zip(infos, found, strict=True))


def _hash_of(files: Files, place: TensorInfo) -> str:
    digest = xxhash.xxh3_128()
    for _, part in pieces(files, place):
        digest.update(part)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Writer:
    """Writes tensors to their places; several threads or processes may use one writer.

    Attributes:
        source, summaries: the source's files, and what is known of each source tensor.
        means: those over the rows of source tensors, where the scan has found them.
        seed: the random seed of the plan.
        staging: the folder of the output files, with the journal.
        counter: counts the bytes written.
        new: whether each file is new and reads as zero, by name.
    """

    source: Files
    summaries: Mapping[str, TensorSummary]
    means: Mapping[str, RowMeans]
    seed: int
    staging: StagingDirectory
    counter: ProgressCounter
    new: Mapping[str, bool]
    _thread: local = field(default_factory=local)

    @ignore_overflow()
    def write(self, job: WriteJob) -> str | None:
        """Grow a tensor once and write it to every place of the job.

        Returns:
            The xxh3_128 of its bytes; None where the job writes a share of the tensor.

        Raises:
            CheckpointError: the values overflow the type.
            OSError: the system cannot write.
        """
        tensor, whole = job.identical[0][0], xxhash.xxh3_128()
        zero = is_zero(tensor)
        with ExitStack() as stack:
            regions = self._regions([place for _, place in job.identical], stack)
            if tensor.is_copy:
                digest = self._copy(tensor, regions[0])
            else:
                for at, view in _zeros(tensor.bytes) if zero else self._grown(tensor, job.blocks):
                    if job.blocks is None:
                        whole.update(view)
                    for region in regions:
                        if not (zero and region.reads_zero):
                            region.write(view, at)
                        self.counter.add(len(view))
                digest = whole.hexdigest()
        if job.blocks is not None:
            return None
        for same, _ in job.identical:
            self.staging.journal.add(same.target, digest)
        return digest

    def _regions(self, places: Sequence[TensorInfo], stack: ExitStack) -> list[FileRegion]:
        """Places in files that stay open until the stack closes, each file opened once."""
        folder = self.staging.checkpoint
        names = [str(place.path) for place in places]
        opened = {name: stack.enter_context(folder.opened(name, os.O_WRONLY)) for name in dict.fromkeys(names)}
        return [
            FileRegion(folder.path / name, opened[name], place.begin, self.new[name])
            for name, place in zip(names, places, strict=True)
        ]

    def _grown(self, tensor: TensorMap, blocks: Sequence[tuple[int, int]] | None) -> Iterator[tuple[int, memoryview]]:
        """The bytes of a tensor, or of some ranges of its rows, each piece with its offset in the tensor."""
        workspace = self._thread.__dict__.setdefault("workspace", Workspace())
        source = FileSource(self.source)
        summary = self.summaries[tensor.source.name] if tensor.init_std is None else None
        statistics = measure(tensor, source, workspace, self.means.get(tensor.source.name))
        grower = Grower(tensor, source, self.seed, statistics, workspace)
        spec = grower.spec
        can_overflow, row_bytes = summary is None or spec.can_overflow(summary.largest), tensor.row_bytes
        for start, stop in blocks or blocks_of(tensor):
            view = grower.bytes(start, stop)
            suspect = can_overflow or clipped(spec.rows_with_additions, start, stop)
            if suspect and first_not_finite(view, tensor.dtype) is not None:
                raise CheckpointError(
                    f"Tensor '{tensor.target}' overflows {tensor.dtype} when it is grown. "
                    "Choose --dtype bfloat16 or float32."
                )
            yield start * row_bytes, view

    def _copy(self, tensor: TensorMap, region: FileRegion) -> str:
        done = 0 if isinstance(tensor.source, ComposedInfo) else self._copy_by_kernel(tensor, region)
        if done < tensor.bytes:
            for start, part in pieces(self.source, tensor.source):
                at = start * tensor.source.row_bytes
                region.write(part, at)
                self.counter.add(max(0, at + len(part) - max(at, done)))
        return self.summaries[tensor.source.name].xxh3_128

    def _copy_by_kernel(self, tensor: TensorMap, region: FileRegion) -> int:
        """Have the kernel copy as many bytes from file to file as it can; return how many."""
        source, done = self.source.held(tensor.source), 0
        while done < tensor.bytes:
            size = min(tensor.bytes - done, COPY_CHUNK)
            begin = tensor.source.begin + done
            try:
                count = os.copy_file_range(source.descriptor, region.descriptor, size, begin, region.begin + done)
            except (OSError, AttributeError):  # the system has no such call, or not between these files
                return done
            if count == 0:  # not supported, as some file systems report it; a source that ended is found by reading
                return done
            done += count
            self.counter.add(count)
        return done


def _zeros(size: int) -> Iterator[tuple[int, memoryview]]:
    zeros = memoryview(bytes(min(CHUNK, size)))
    for start in range(0, size, CHUNK):
        yield start, zeros[: size - start]


@dataclass(frozen=True)
class FileRegion:
    """The place of a tensor in an open file.

    Attributes:
        path: for messages.
        descriptor: of the open file.
        begin: the offset of the tensor's first byte.
        reads_zero: whether the file is new, so that unwritten bytes read as zero.
    """

    path: Path
    descriptor: int
    begin: int
    reads_zero: bool

    def write(self, view: memoryview, at: int) -> None:
        """Write bytes of the tensor from its byte `at` on.

        Raises:
            OSError: the system cannot write them.
        """
        try:
            write(self.descriptor, view, self.begin + at)
        except OSError as error:
            error.filename = str(self.path)
            raise
