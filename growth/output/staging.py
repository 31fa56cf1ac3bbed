"""The hidden folder in which an output is written before one rename makes it appear, whole.

It stands beside the output:

    .NAME.partial/
        growth-staging.json   the mark: the run's fingerprint, the number of processes, the name of every file
        source-I-of-N         the xxh3_128 of each source tensor that process I reads
        done-I-of-N.jsonl     one line for each tensor that process I has written: its name and xxh3_128
        finished-I-of-N       exists when all tensors of process I are written and on disk
        lock-I-of-N           held by process I while it works
        lock                  held while a process begins, publishes or clears up
        checkpoint/           becomes the output

The folder is ours if it is a real directory of this user that holds such a mark, or nothing yet. Only the files named
above and those that the mark lists are ever replaced, removed or published; everything else stays as it is.

A process that is killed leaves the folder behind, and its next run resumes there: a recorded tensor is kept if its
bytes still have the recorded hash. Processes coordinate through the file system alone and never wait for each other.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from growth.errors import CheckpointError, WorkerDied
from growth.output.journal import Journal
from growth.output.mark import CHECKPOINT, LOCK, MARK, SELECTED, START, Mark
from growth.output.writer_rank import WriterRank
from growth.runtime.directory import DRAFT, Directory, LocksUnsupported
from growth.runtime.limits import unwritable

LARGEST_MARK = 16 << 20  # bytes
OPEN_FILES = 32  # that a run has open at a time, with those that clearing up opens
ATTEMPTS = 100  # to begin in a folder that other processes keep removing


@dataclass(frozen=True)
class Staging:
    """The staging folder of an output, as a run finds it.

    Attributes:
        output: where the result is to appear.
        mark: which run this is, and what it makes.
        rank: which of the run's processes this one is.
        resume: whether what an earlier run left is kept.
        resumable: whether a later run can resume from what this one leaves.
    """

    output: Path
    mark: Mark
    rank: WriterRank
    resume: bool = False
    resumable: bool = True

    @property
    def name(self) -> str:
        """The folder's name."""
        return f".{self.output.name}.partial"

    @property
    def path(self) -> Path:
        """The folder's path, beside the output."""
        return self.output.parent / self.name

    @property
    def joins(self) -> bool:
        """Whether this process resumes from what is there, or works beside others."""
        return self.resume or not self.rank.alone

    def check(self) -> int:
        """Refuse what `opened` would refuse, without changing anything; return the bytes of the output on disk.

        Raises:
            CheckpointError: the folder there is not ours, belongs to another run, or is in use.
        """
        with _reported(self.path), ExitStack() as stack:
            try:
                parent = stack.enter_context(Directory.at(self.output.parent))
            except OSError:  # it is made, or refused, when the work begins
                return 0
            try:
                folder = stack.enter_context(self._child(parent))
            except FileNotFoundError:
                return 0
            mark = self._read_mark(folder)
            if mark is None:
                return 0
            if folder.has(LOCK):
                stack.enter_context(folder.locked(LOCK, wait=True))
            self._check_available(folder, mark)
            if not self.joins:
                return 0
            with suppress(FileNotFoundError), folder.child(CHECKPOINT) as checkpoint:
                found = [checkpoint.status(name) for name in mark.files]
                return sum(status.st_blocks * 512 for status in found if status is not None)
            return 0

    @contextmanager
    def opened(self) -> Iterator[StagingDirectory]:
        """The folder, held by this process alone while it works.

        An error removes it, unless a later run can resume from it. A process that is killed leaves it behind, and so
        does an interruption from the keyboard if the run is resumable.

        Raises:
            CheckpointError: as for `check`, or the system refuses to write.
        """
        with _reported(self.output), ExitStack() as stack:
            _check_can_open(OPEN_FILES)
            stack.enter_context(_made(self.output.parent))
            work = self._begin(stack.enter_context(Directory.at(self.output.parent)), stack)
            stack.enter_context(work.removed_on_error())
            yield work

    def clear(self) -> None:
        """Remove what an earlier run of this plan left, unless a process is at work there."""
        with (
            suppress(OSError, CheckpointError),
            Directory.at(self.output.parent) as parent,
            self._child(parent) as folder,
        ):
            with folder.locked(LOCK, wait=True) as exists:
                mark = self._read_mark(folder)
                if exists and (mark is None or (mark.plan == self.mark.plan and not _lock_held(folder, mark))):
                    _remove(folder, mark)
            parent.remove_empty(self.name)

    # ------------------------------------------------- whose folder it is

    def _child(self, parent: Directory) -> Directory:
        """The folder as it is.

        Raises:
            CheckpointError: its name belongs to a link or a file, or the folder to another user.
        """
        try:
            folder = parent.child(self.name)
        except NotADirectoryError:
            raise CheckpointError(
                f"{self.path} is a link or a file, where growth would have a folder of its own. Nothing was changed: "
                "move it away, or choose another --output."
            ) from None
        owner = os.fstat(folder.descriptor).st_uid
        if owner != os.geteuid():
            folder.close()
            raise CheckpointError(
                f"{self.path} is a folder of user {owner}, and this process runs as user {os.geteuid()}. Nothing was "
                "changed: choose another --output."
            )
        return folder

    def _read_mark(self, folder: Directory) -> Mark | None:
        """The folder's mark; None where it is empty, or a process was killed before it had marked it.

        Raises:
            CheckpointError: the folder holds something else.
        """
        try:
            names: set[str] = set()
            while (content := folder.read(MARK, LARGEST_MARK)) is None:
                names = folder.names()
                if MARK not in names:  # else another process has just written it
                    break
            if content is not None:
                return Mark.of_bytes(content)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.ELOOP, errno.EEXIST):
                raise
            raise CheckpointError(
                f"{self.path / MARK} is not the mark of a folder that this version of growth works in: {error}. "
                "Nothing was changed: move the folder away, or choose another --output."
            ) from None
        foreign = sorted(names - _unmarked_files(folder))
        if foreign:
            raise CheckpointError(
                f"{self.path} was not made by this version of growth: it has no {MARK} and holds '{foreign[0]}'. "
                "Nothing was changed: move it away, or choose another --output."
            )
        return None

    def _check_available(self, folder: Directory, mark: Mark) -> None:
        """Raise CheckpointError where this process can neither join nor replace the run that is there."""
        if not self.joins:
            if held := _lock_held(folder, mark):
                raise CheckpointError(f"Another process is writing {self.output} ({held}). Wait, or stop it.")
        elif mark != self.mark:
            raise CheckpointError(
                f"{self.path} was left by another run: its source, recipe, seed, type, shard size or number of parts "
                "was another. Repeat that run's arguments, or remove the folder."
            )
        elif folder.is_locked(f"lock-{self.rank}"):
            raise CheckpointError(f"Another process is writing {self.output} (part {self.rank}). Wait, or stop it.")
        self._check_clashes(folder, mark)

    def _check_clashes(self, folder: Directory, mark: Mark) -> None:
        """Raise CheckpointError where a file or directory that is not ours has a name that this run will use."""
        found = folder.names()
        names = {name.removesuffix("/") for name in found}
        ours, wanted = mark.all_files, self.mark.all_files
        directories = {CHECKPOINT, SELECTED, *(str(PurePosixPath(name).parent) for name in wanted)} - {"."}
        clashes = {name for name in names & directories if f"{name}/" not in found}
        clashes |= {name for name in names & (ours | wanted) if name not in ours or folder.has_other(name)}
        if clashes:
            raise CheckpointError(
                f"{self.path / min(clashes)} does not belong to the run that was started there. Nothing was changed: "
                "move it away, or choose another --output."
            )

    # ------------------------------------------------- beginning

    def _begin(self, parent: Directory, stack: ExitStack) -> StagingDirectory:
        """Mark the folder and hold it until the stack is closed."""
        for _ in range(ATTEMPTS):
            new = parent.make(self.name)
            try:
                folder = stack.enter_context(self._child(parent))
                folder.exclusive = new and self.rank.alone
                if not new:
                    self._read_mark(folder)  # not even a lock is made in a folder that is not ours
                with folder.locked(LOCK, wait=True) as exists:
                    if exists:
                        return self._claim(parent, folder, stack, new=new)
            except FileNotFoundError:  # another process has removed it
                continue
            except BaseException as error:
                if new and isinstance(error, LocksUnsupported):
                    folder.remove(LOCK)
                if new:
                    parent.remove_empty(self.name)
                raise
        raise CheckpointError(f"{self.path} was removed by other processes {ATTEMPTS} times. Grow again.")

    def _claim(self, parent: Directory, folder: Directory, stack: ExitStack, *, new: bool) -> StagingDirectory:
        mark = self._read_mark(folder)
        if mark is not None:
            self._check_available(folder, mark)
        if os.path.lexists(self.output):
            if new and mark is None:
                folder.remove(LOCK)
            raise CheckpointError(f"{self.output} exists already. Choose another --output, or remove it first.")
        if mark is not None and not self.joins:
            _clear(folder, mark)
        try:
            if mark != self.mark:
                folder.write_whole(MARK, self.mark.to_bytes())
            stack.enter_context(folder.locked(f"lock-{self.rank}"))
            folder.make(CHECKPOINT)
            checkpoint = stack.enter_context(folder.child(CHECKPOINT))
        except BaseException:
            if mark is None:  # the folder holds nothing else of ours, and perhaps cannot be opened any more
                folder.remove_empty(CHECKPOINT)
                for name in (f"lock-{self.rank}", MARK + DRAFT, MARK, LOCK):
                    folder.remove(name)
            raise
        _undo_selection(folder, checkpoint, self.mark)
        work = StagingDirectory(self, parent, folder, checkpoint)
        work.journal.reopen()
        return work


class StagingDirectory:
    """The staging folder while a process holds it.

    Attributes:
        checkpoint: the directory that becomes the output.
        journal: what the processes record of their work.
    """

    def __init__(self, staging: Staging, parent: Directory, folder: Directory, checkpoint: Directory):
        self.checkpoint, self.journal = checkpoint, Journal(folder, staging.rank)
        self._staging, self._folder, self._parent = staging, folder, parent

    @contextmanager
    def removed_on_error(self) -> Iterator[None]:
        """Remove the folder on an error from which no later run can resume."""
        try:
            yield
        except BaseException as error:
            if not self._survives(error):
                with suppress(OSError):
                    with self._folder.locked(LOCK, wait=True):
                        _remove(self._folder, self._staging.mark)
                    self._parent.remove_empty(self._staging.name)
            elif isinstance(error, WorkerDied):
                raise WorkerDied(f"{error} What is written is not lost: grow again with --resume.") from None
            raise

    def _survives(self, error: BaseException) -> bool:
        """Whether the folder should outlive an error."""
        staging = self._staging
        if not staging.resumable:
            return False
        if isinstance(error, WorkerDied) or not isinstance(error, Exception) or not staging.rank.alone:
            return True
        return staging.resume and self.journal.exists

    def publish(self, complete: Callable[[dict[str, str], dict[str, str]], None]) -> None:
        """Make the output appear if every process has finished, and no other one has published it.

        Args:
            complete: checks the shards and writes all other files, given the hash of every tensor of the source and of
                the output.

        Raises:
            CheckpointError: two processes read other values of one source tensor, or `complete` refuses.
        """
        with ExitStack() as stack:
            try:
                exists = stack.enter_context(self._folder.locked(LOCK, wait=True))
            except FileNotFoundError:
                exists = False
            if not exists or not self.journal.all_have_finished:
                return
            complete(self.journal.combined("source"), self.journal.combined("finished"))
            self._rename()
            _remove(self._folder, self._staging.mark)
        self._parent.remove_empty(self._staging.name)

    def _rename(self) -> None:
        """Rename the files that the mark lists, and nothing else, to the output's place."""
        place = SELECTED if self._unlisted(self.checkpoint) else CHECKPOINT
        if place == SELECTED:
            self._folder.make(SELECTED)
        with self._folder.child(place) as final:
            if place == SELECTED:
                for name in self._staging.mark.files:
                    if self.checkpoint.has(name):
                        self.checkpoint.move(name, final)
            if unlisted := self._unlisted(final):
                raise CheckpointError(
                    f"{final.path / unlisted[0]} is not a file of this run. Nothing was published: move it away, then "
                    "grow with --resume."
                )
            for name in sorted(final.names()):
                final.sync(name)
            final.sync()
        try:
            self._folder.move_directory(place, self._parent, self._staging.output.name)
        except FileExistsError:
            raise CheckpointError(
                f"{self._staging.output} appeared while its content was being written: nothing was replaced. Choose "
                "another --output."
            ) from None
        self._parent.sync()

    def _unlisted(self, folder: Directory) -> list[str]:
        """What a folder holds that the mark does not list."""
        files = set(self._staging.mark.files)
        directories = {f"{above}/" for name in files for above in map(str, PurePosixPath(name).parents) if above != "."}
        return sorted(folder.names() - files - directories)


def _unmarked_files(folder: Directory) -> set[str]:
    """What a process leaves that was killed before it had marked the folder: an empty lock, and part of the mark."""
    lock = folder.status(LOCK)
    draft = folder.read(MARK + DRAFT, len(START)) if folder.has(MARK + DRAFT) else None
    found = {LOCK} if lock is not None and lock.st_size == 0 else set()
    return found | ({MARK + DRAFT} if draft is not None and START.startswith(draft) else set())


def _lock_held(folder: Directory, mark: Mark) -> str | None:
    """The name of a lock that a process holds."""
    return next((lock for lock in mark.locks if folder.is_locked(lock)), None)


def _clear(folder: Directory, mark: Mark) -> None:
    """Remove the files that a mark lists, and directories that are empty then."""
    for place in (CHECKPOINT, SELECTED):
        with suppress(FileNotFoundError, NotADirectoryError), folder.child(place) as child:
            for name in mark.files:
                child.remove(name)
            for directory in {parts[0] for name in mark.files if len(parts := PurePosixPath(name).parts) > 1}:
                child.remove_empty(directory)
        folder.remove_empty(place)
    for name in mark.notes:
        folder.remove(name)


def _remove(folder: Directory, mark: Mark | None) -> None:
    """Remove the files that a mark lists, and the mark itself unless files of others are left."""
    if mark is not None:
        _clear(folder, mark)
    if folder.names() <= {MARK, LOCK, MARK + DRAFT}:
        for name in (MARK + DRAFT, MARK, LOCK):
            folder.remove(name)


def _undo_selection(folder: Directory, checkpoint: Directory, mark: Mark) -> None:
    """Move back the files that a process had selected for publishing when it was killed."""
    with suppress(FileNotFoundError), folder.child(SELECTED) as selected:
        for name in mark.files:
            if selected.has(name) and not checkpoint.has(name):
                selected.move(name, checkpoint)


def _check_can_open(count: int) -> None:
    """Raise OSError where the process cannot open so many further files, before it makes the first."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Make errors of the system, of this path by default, errors for the user."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(unwritable(error, path)) from error


@contextmanager
def _made(path: Path) -> Iterator[None]:
    """Make a directory and its missing parents; on an error remove those that were made, if empty."""
    made: list[Path] = []
    try:
        for place in reversed([place for place in (path, *path.parents) if not place.exists()]):
            with suppress(FileExistsError):  # another process has made it
                place.mkdir()
                made.append(place)
        yield
    except BaseException:
        with suppress(OSError):
            for place in reversed(made):
                place.rmdir()
        raise
