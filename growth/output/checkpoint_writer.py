"""A plan carried out from folder to folder: checked whole, then streamed, published whole or not at all.

Header, offsets and index of every file are known from the plan, so that any tensor can be written by any thread of
any process at any time, and an interrupted growth can go on.
"""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import local
from types import MappingProxyType
from typing import Any, BinaryIO

import xxhash

from growth.arrays.buffers import Workspace
from growth.arrays.casting import multiplies
from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.chunks import ChunkedInfo
from growth.checkpoints.companions import kept_files
from growth.checkpoints.tensor_reader import CHUNK, Files, SourceScan, TensorSummary, first_not_finite, pieces
from growth.engine.grow_tensor import FileSource, Grower, blocks_of, ignore_overflow, measure, watches
from growth.errors import CheckpointError, RecipeError
from growth.output.contents import FolderContents, Shard, shards_of, sources_of
from growth.output.staging import Mark, Staging, StagingDirectory, WriterRank, even_shares, refuse_output
from growth.planning.manifest import read_manifest
from growth.planning.plan import Plan
from growth.planning.tensor_map import TensorMap, clipped
from growth.runtime.directory import Directory, write
from growth.runtime.limits import unwritable
from growth.runtime.workers import Progress, ProgressCounter, WorkerPool, cores, hands

TEXTS = 16 << 20  # bytes that are kept free for config.json, the index, growth.json and the model card
ASIDE, SLOW = 1 << 20, 0.01  # bytes for which space is kept at first, and seconds that this should not take
NO_SPACE_KEPT = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.ENODEV)  # where none can be kept
COPIED = 256 << 20  # bytes that the kernel copies at a time
TOGETHER = 8  # tensors of the same values that are grown at once: so many files may be open
SHARED = 256 << 20  # bytes of a tensor that several hands may have a share of
Companions = Mapping[str, Callable[[BinaryIO], None]]  # what writes the bytes of a file, by its name
NO_COMPANIONS: Companions = MappingProxyType({})


def share(files: Sequence[Shard], part: WriterRank) -> list[Shard]:
    """The files of one part: the largest first, each to the part that has the fewest bytes.

    Raises:
        RecipeError: there are fewer files than parts.
    """
    if len(files) < part.count:
        bytes_each = max(1, sum(file.size for file in files) // (2 * part.count))
        raise RecipeError(
            f"{part.count} parts cannot share {len(files)} output file{'s' * (len(files) > 1)}: each writes files of "
            f"its own. Say --max-shard-size {bytes_each}, or less."
        )
    named = sorted(files, key=lambda file: file.name)
    return even_shares(named, lambda file: file.size, part.count)[part.index - 1]


# ------------------------------------------------- the whole growth


def write_checkpoint(
    plan: Plan,
    checkpoint: Checkpoint,
    recipe: dict[str, Any],
    output: Path,
    *,
    max_shard_size: int | None,
    part: WriterRank,
    resume: bool,
    progress: Progress | None,
    forks: bool = False,
    companions: Companions = NO_COMPANIONS,
    companion_bytes: int = 0,
    reading: SourceScan | None = None,
    write: Callable[[Files, Directory], dict[str, str]] | None = None,
    written: Sequence[str] = (),
    size: int = 0,
) -> bool:
    """Carries out a plan, or one part of it, into a new folder; says whether the output is there now.

    write, written, size: what puts the tensors there in another format, and gives the hash of each one's bytes; the
        names of the files that it makes; and how many bytes. By default they become safetensors.
    forks: as for `growth.grow`.
    reading: all that the checkpoint holds, where it is being read already.
    companions: writes the bytes of further files by name, `companion_bytes` in all.

    Raises:
        CheckpointError: a source that is not finite, an existing output, too little disk.
        RecipeError: more parts than output files.
    """
    files = [] if write is not None else shards_of(plan, max_shard_size)
    own = share(files, part) if files else []
    tensors = sources_of(plan.tensors)
    described = FolderContents(plan, checkpoint, recipe, files)
    staging = Staging(
        output,
        Mark(described.fingerprint, part.count, tuple(dict.fromkeys([*described.names, *written, *companions]))),
        part,
        resume=resume,
        resumable=write is None and not companions,
    )
    _refuse_inside(checkpoint.folder, staging)
    there_already = staging.joins and os.path.exists(output)
    if not there_already:
        there = staging.check()
        beside = TEXTS + companion_bytes + sum(map(len, kept_files(checkpoint.folder).values()))
        refuse_output(output, max(0, sum(file.size for file in own) + size + beside - there))
    copied = sources_of(row for file in own for row in file.rows) if own and not there_already else tensors
    with ExitStack() as stack:
        many = stack.enter_context(hands(forks=forks))
        reading = reading or stack.enter_context(SourceScan.begun(many, copied))
        if there_already:
            contents = reading.contents(copied, progress)
            _check_is(output, described.fingerprint, described.source_hash(_hashes(contents)))
            staging.clear()
            return True
        for dtype in {row.dtype for row in plan.tensors}:
            multiplies(dtype)  # is tried here, and not by each process that is forked
        contents = reading.contents(copied, progress, watches(row for file in own for row in file.rows))
        work = stack.enter_context(staging.opened())
        work.begin(_hashes(contents))
        new = _allocate(work.checkpoint, own)
        source = reading.files
        digests: dict[str, str] = {}
        if write is not None:
            digests = write(source, work.checkpoint)
        elif own:
            digests = _write(many, plan, source, contents, own, new, work, progress)
        source.check_unchanged()
        work.finish(digests)
        return work.publish(partial(_complete, described, companions, written, work.checkpoint))


def _refuse_inside(source: Path, staging: Staging) -> None:
    """Raises CheckpointError where the source lies in the staging folder, whose files are replaced and removed."""
    if source.resolve().is_relative_to(staging.path.resolve()):
        raise CheckpointError(
            f"The source {source} is inside {staging.path}, the staging folder of {staging.output}, whose files are "
            "replaced while the source is read. Move the source elsewhere, or choose another --output."
        )


def _check_is(output: Path, fingerprint: str, source: str) -> None:
    """Raises CheckpointError unless `output` is this growth of this source already."""
    found = read_manifest(output) or {}
    if (found.get("fingerprint"), found.get("source", {}).get("xxh3_128")) != (fingerprint, source):
        raise CheckpointError(f"{output} exists already, and is not this growth. Choose another --output.")


def _is_zero(row: TensorMap) -> bool:
    """Whether every stored value is zero."""
    return row.zero and not row.offset


def _hashes(contents: Mapping[str, TensorSummary]) -> dict[str, str]:
    return {name: content.xxh3_128 for name, content in contents.items()}


def hash_of_file(path: Path) -> str:
    """The xxh3_128 of a file, read a piece at a time."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


# ------------------------------------------------- tensors


def _write(
    many: WorkerPool,
    plan: Plan,
    source: Files,
    contents: Mapping[str, TensorSummary],
    files: Sequence[Shard],
    new: Mapping[str, bool],
    work: StagingDirectory,
    progress: Progress | None,
) -> dict[str, str]:
    """Writes all tensors of some files; returns the hash of each tensor's bytes.

    new: which files read as zero.
    """
    total = sum(row.bytes for file in files for row in file.rows)
    meter = ProgressCounter("grow", total, progress)
    done = _still_there(many, files, work, meter)
    writer = Writer(source, contents, plan.seed, work, meter, new)
    left = [(row, file.places[row.target]) for file in files for row in file.rows if row.target not in done]
    largest = max(SHARED, total // (2 * cores()))
    tasks = _in_turn([task for alike in _alike(left) for task in _shares(alike, largest)])
    digests = many.run([partial(writer.write, task) for task in tasks], meter)
    written = zip(tasks, digests, strict=True)
    done |= {row.target: digest for task, digest in written if digest is not None for row, _ in task.alike}
    shared = _hashes_there(many, [(row, place) for row, place in left if row.target not in done], work, meter)
    for name, digest in shared.items():
        work.note(name, digest)
    for file in files:
        _sync_written(work.checkpoint, file.name)
    return done | shared


@dataclass(frozen=True, eq=False)
class WriteJob:
    """Tensors of the same values and their places, for one of the hands to grow.

    blocks: its share of their rows, where they are too large for one. The hash of such a tensor, which runs from end to
        end, is taken when all of it is there.
    """

    alike: Sequence[tuple[TensorMap, TensorInfo]]
    blocks: Sequence[tuple[int, int]] | None = None

    @property
    def bytes(self) -> int:
        """Bytes that are written."""
        row = self.alike[0][0]
        rows = row.bytes if self.blocks is None else row.row_bytes * (self.blocks[-1][1] - self.blocks[0][0])
        return rows * len(self.alike)


def _shares(alike: Sequence[tuple[TensorMap, TensorInfo]], largest: int) -> list[WriteJob]:
    """One task, or several where a tensor is larger than what one of the hands should have."""
    row = alike[0][0]
    if row.bytes <= largest or row.is_copy or _is_zero(row):
        return [WriteJob(alike)]
    blocks = blocks_of(row)
    each = max(1, len(blocks) * largest // (2 * row.bytes))
    return [WriteJob(alike, blocks[first : first + each]) for first in range(0, len(blocks), each)]


def _alike(rows: Iterable[tuple[TensorMap, TensorInfo]]) -> list[list[tuple[TensorMap, TensorInfo]]]:
    """Rows and their places, those together that are made in the same way."""
    groups: dict[object, list[list[tuple[TensorMap, TensorInfo]]]] = {}
    for row, place in rows:
        same = groups.setdefault(row.making, [[]])
        if len(same[-1]) == TOGETHER:
            same.append([])
        same[-1].append((row, place))
    return [group for same in groups.values() for group in same]


def _in_turn(tasks: Sequence[WriteJob]) -> list[WriteJob]:
    """The largest first, so that nobody has one at the end; of those as large, one of each file after another.

    So those that begin at the same time seldom write to one file.
    """
    before, order = Counter[tuple[int, Path | None]](), []
    for task in tasks:
        size, file = task.bytes, task.alike[0][1].path
        order.append((-size, before[size, file]))
        before[size, file] += 1
    return [tasks[n] for n in sorted(range(len(tasks)), key=order.__getitem__)]


def _allocate(folder: Directory, files: Sequence[Shard]) -> dict[str, bool]:
    """Files of their full size with their header; says which are new: what is new reads as zero.

    Raises:
        CheckpointError: the system does not allow it, or has no space.
    """
    new = {file.name: not _is_begun(folder, file) for file in files}
    try:
        for file in files:
            if new[file.name]:
                _make(folder, file)
        _set_aside(folder, [file for file in files if new[file.name]])
    except OSError as error:
        raise CheckpointError(f"{folder.path} cannot hold the output: {error.strerror}. Free some space.") from None
    return new


def _make(folder: Directory, file: Shard) -> None:
    with folder.new(file.name) as descriptor:
        write(descriptor, memoryview(file.header), 0)
        os.ftruncate(descriptor, file.size)


def _is_begun(folder: Directory, file: Shard) -> bool:
    """Whether an earlier run made this file, which has no second name."""
    found = folder.status(file.name)
    if found is None or found.st_size != file.size or found.st_nlink != 1:
        return False
    return folder.read(file.name, len(file.header)) == file.header


def _set_aside(folder: Directory, files: Iterable[Shard]) -> None:
    """Has the file system keep space for files, so that nobody else takes it and each lies in one piece.

    Where that takes as long as writing does (in memory, or with no call for it), or is not possible, it stops: what is
    free was looked at.
    """
    for file in files:
        with folder.opened(file.name, os.O_WRONLY) as descriptor:
            start, step = 0, ASIDE
            while start < file.size:
                began = time.perf_counter()
                try:
                    os.posix_fallocate(descriptor, start, min(step, file.size - start))
                except OSError as error:
                    if error.errno in NO_SPACE_KEPT:
                        return
                    raise
                if time.perf_counter() - began > SLOW:
                    return
                start, step = start + step, 2 * step


def _sync_written(folder: Directory, name: str) -> None:
    try:
        folder.sync(name)
    except OSError as error:
        raise _unwritable(folder.path / name, error) from None


def _still_there(
    many: WorkerPool, files: Sequence[Shard], work: StagingDirectory, meter: ProgressCounter
) -> dict[str, str]:
    """What earlier runs wrote, as far as its bytes still have their hash."""
    noted = work.done()
    named = [(row, file.places[row.target]) for file in files for row in file.rows if row.target in noted]
    found = _hashes_there(many, named, work, meter)
    done = {name: digest for name, digest in found.items() if noted[name] == digest}
    work.keep_only(done)
    for row, _ in named:
        meter.add(row.bytes if row.target in done else 0)
    return done


def _hashes_there(
    many: WorkerPool, tensors: Sequence[tuple[TensorMap, TensorInfo]], work: StagingDirectory, meter: ProgressCounter
) -> dict[str, str]:
    """The hashes of some tensors' bytes as they stand in their files."""
    home = work.checkpoint.through
    places = {row.target: replace(place, path=home / str(place.path)) for row, place in tensors}
    files = Files(places)
    found = many.run([partial(_hash_of, files, place) for place in places.values()], meter)
    return dict(zip(places, found, strict=True))


def _hash_of(files: Files, place: TensorInfo) -> str:
    """The hash of a tensor's bytes as they stand in a file."""
    digest = xxhash.xxh3_128()
    for _, part in pieces(files, place):
        digest.update(part)
    return digest.hexdigest()


class Writer:
    """Grows tensors to their places, several at a time; new: which files read as zero."""

    def __init__(
        self,
        source: Files,
        contents: Mapping[str, TensorSummary],
        seed: int,
        work: StagingDirectory,
        meter: ProgressCounter,
        new: Mapping[str, bool],
    ):
        self._source, self._contents = source, contents
        self._seed, self._work, self._meter, self._new = seed, work, meter, new
        self._thread = local()

    def write(self, task: WriteJob) -> str | None:
        """Grows a tensor to its place, and to those of all that have the same values; returns the hash of its bytes.

        None where it is but a share of it.
        """
        row = task.alike[0][0]
        with ExitStack() as stack:
            outputs = self._outputs([place for _, place in task.alike], stack)
            if task.blocks is not None:
                self._grown(row, outputs, task.blocks, None)
                return None
            if row.is_copy:
                digest = self._copied(row, outputs[0])
            elif _is_zero(row):
                digest = self._zeros(row, outputs)
            else:
                whole = xxhash.xxh3_128()
                self._grown(row, outputs, blocks_of(row), whole)
                digest = whole.hexdigest()
        for same, _ in task.alike:
            self._work.note(same.target, digest)
        return digest

    def _outputs(self, places: Sequence[TensorInfo], stack: ExitStack) -> list[FileRegion]:
        """Places in files that are open until the stack closes them, each once."""
        folder = self._work.checkpoint
        opened: dict[str, int] = {}
        outputs = []
        for place in places:
            name = str(place.path)
            if name not in opened:
                opened[name] = stack.enter_context(_opened(folder, name))
            outputs.append(FileRegion(folder.path / name, opened[name], place.begin, self._new[name]))
        return outputs

    def _copied(self, row: TensorMap, output: FileRegion) -> str:
        in_one_place = not isinstance(row.source, ChunkedInfo)
        done = self._copied_by_kernel(row, output) if in_one_place else 0
        if done < row.bytes:
            for start, part in pieces(self._source, row.source):
                at = start * row.source.row_bytes
                output.write(part, at)
                self._meter.add(max(0, at + len(part) - max(at, done)))
        return self._contents[row.source.name].xxh3_128

    def _zeros(self, row: TensorMap, outputs: Sequence[FileRegion]) -> str:
        digest = xxhash.xxh3_128()
        zeros = memoryview(bytes(min(CHUNK, row.bytes)))
        for start in range(0, row.bytes, CHUNK):
            part = zeros[: row.bytes - start]
            digest.update(part)
            for output in outputs:
                if not output.blank:
                    output.write(part, start)
                self._meter.add(len(part))
        return digest.hexdigest()

    def _copied_by_kernel(self, row: TensorMap, output: FileRegion) -> int:
        """Has the kernel copy the bytes from file to file, as many as it can; says how many."""
        source, done = self._source.held(row.source), 0
        while done < row.bytes:
            size = min(row.bytes - done, COPIED)
            try:
                count = os.copy_file_range(
                    source.descriptor, output.descriptor, size, row.source.begin + done, output.begin + done
                )
            except (OSError, AttributeError):  # there is no such call here, or not between these files
                return done
            if count == 0:  # some file systems say so where they cannot; if the source did end, who reads it will see
                return done
            done += count
            self._meter.add(count)
        return done

    @ignore_overflow()
    def _grown(
        self,
        row: TensorMap,
        outputs: Sequence[FileRegion],
        blocks: Iterable[tuple[int, int]],
        digest: xxhash.xxh3_128 | None,
    ) -> None:
        workspace = self._thread.__dict__.setdefault("workspace", Workspace())
        disk = FileSource(self._source)
        content = self._contents[row.source.name] if row.drawn is None else None
        statistics = measure(row, disk, workspace, None if content is None else content.seen)
        grower = Grower(row, disk, self._seed, statistics, workspace)
        making = grower.making
        can_overflow = content is None or making.can_overflow(content.largest)
        row_bytes = row.row_bytes
        for start, stop in blocks:
            view = grower.bytes(start, stop)
            suspect = can_overflow or clipped(making.added, start, stop)
            if suspect and first_not_finite(view, row.dtype) is not None:
                raise CheckpointError(
                    f"Tensor '{row.target}' overflows {row.dtype} when it is grown. Choose --dtype bfloat16 or float32."
                )
            if digest is not None:
                digest.update(view)
            for output in outputs:
                output.write(view, start * row_bytes)
                self._meter.add(len(view))


@dataclass(frozen=True)
class FileRegion:
    """The place of a tensor in a file that is open; blank: what is there reads as zero."""

    path: Path
    descriptor: int
    begin: int
    blank: bool

    def write(self, view: memoryview, at: int) -> None:
        """Writes some of the tensor's bytes.

        Raises:
            CheckpointError: the system cannot.
        """
        try:
            write(self.descriptor, view, self.begin + at)
        except OSError as error:
            raise _unwritable(self.path, error) from None


@contextmanager
def _opened(folder: Directory, name: str) -> Iterator[int]:
    """The descriptor of a file that is written to."""
    try:
        descriptor = folder.open(name, os.O_WRONLY)
    except OSError as error:
        raise _unwritable(folder.path / name, error) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(unwritable(error, path))


# ------------------------------------------------- what is not tensors


def _complete(
    contents: FolderContents,
    companions: Companions,
    written: Sequence[str],
    folder: Directory,
    read: Mapping[str, str],
    digests: Mapping[str, str],
) -> None:
    """Checks that every shard is there, and writes the other files beside them.

    written: the names of other files that hold tensors.
    read, digests: the hash of each tensor of the source, and of the output.
    """
    for shard in contents.shards:
        status = folder.status(shard.name)
        found = 0 if status is None else status.st_size
        begun = folder.read(shard.name, len(shard.header)) == shard.header
        if found != shard.size or not begun or any(row.target not in digests for row in shard.rows):
            raise CheckpointError(
                f"{folder.path / shard.name} is not whole: it has {found:,} bytes of {shard.size:,}. Grow it again."
            )
    for name, write_to in companions.items():
        with folder.new(name) as descriptor, os.fdopen(os.dup(descriptor), "wb") as companion:
            write_to(companion)
    others = {name: hash_of_file(folder.through / name) for name in [*written, *companions] if folder.has(name)}
    for name, text in contents.texts(read, digests, others).items():
        folder.write(name, text)
