"""Publishing: an output that is written beside its place by one process or many, and appears there whole.

Beside `output` stands a hidden folder while work is going on:

    .NAME.partial/
        growth-staging.json   the mark: which plan this is of, how many parts, and the name of every file
        source-I-of-N         the source tensors that part I copies, and the xxh3_128 of their bytes
        done-I-of-N.jsonl     a line for each tensor that part I has written: its name and its bytes' xxh3_128
        finished-I-of-N       part I has written everything that is its own, and it is on disk
        lock-I-of-N           held by a part at work
        lock                  held while one begins, publishes or clears up
        checkpoint/           what becomes `output`, by one rename

A folder is ours if it is a real directory of this user that holds such a mark, or holds nothing yet. Of what is in
it, only the names above and those that the mark lists are ever replaced, removed or published; everything else stays
where it is.

A process that is killed leaves this folder, and its next run goes on from there: what a line names is there if
its bytes still have the hash. Nothing but the file system is needed for several processes to work together, and
nobody waits for anybody.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import TypeVar

from growth.checkpoints.untrusted import parse_json
from growth.errors import CheckpointError, RecipeError, WorkerDied
from growth.runtime.directory import DRAFT, Directory, LocksUnsupported
from growth.runtime.limits import unwritable

T = TypeVar("T")
MARK, LOCK, CHECKPOINT, SELECTED = "growth-staging.json", "lock", "checkpoint", "selected"
LARGEST_MARK = 16 << 20  # bytes
LONGEST_NAME = 255  # bytes, on all common file systems
VERSION = 1  # of the mark
START = f'{{\n "growth_staging": {VERSION},'.encode()  # how the mark begins
OPEN = 32  # files that work has open at a time, with those that clearing up opens
ATTEMPTS = 100  # to begin in a folder that others keep clearing away


@dataclass(frozen=True)
class WriterRank:
    """One of several processes that write an output together: number `index` of `count`, from 1."""

    index: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"

    @property
    def alone(self) -> bool:
        """Whether it is the only one."""
        return self.count == 1


def even_shares(items: Iterable[T], size: Callable[[T], int], count: int) -> list[list[T]]:
    """The items in `count` shares of about the same size: the largest first, each to the share that has least.

    >>> even_shares([5, 1, 4, 2], int, 2)
    [[5, 1], [4, 2]]
    """
    shares: list[list[T]] = [[] for _ in range(count)]
    filled = [0] * count
    for item in sorted(items, key=size, reverse=True):
        least = filled.index(min(filled))
        shares[least].append(item)
        filled[least] += size(item)
    return shares


def checked_part(index: int, count: int) -> WriterRank:
    """Part `index` of `count`.

    Raises:
        RecipeError: no such part.
    """
    if not 1 <= index <= count:
        raise RecipeError(f"There is no part {index} of {count}: parts are numbered from 1 to their number.")
    return WriterRank(index, count)


@dataclass(frozen=True)
class Mark:
    """What a staging folder says of itself.

    plan: the fingerprint of what is made there.
    parts: how many processes share it.
    files: the name of every file of the output, and of those that are there while it is written.
    """

    plan: str
    parts: int
    files: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """The content of the mark's file."""
        content = {"growth_staging": VERSION, "plan": self.plan, "parts": self.parts, "files": list(self.files)}
        return (json.dumps(content, indent=1) + "\n").encode()

    @classmethod
    def of_bytes(cls, content: bytes) -> Mark:
        """What `to_bytes` made.

        Raises:
            ValueError: the content is something else.

        >>> Mark.of_bytes(Mark("f", 1, ("config.json",)).to_bytes())
        Mark(plan='f', parts=1, files=('config.json',))
        """
        found = parse_json(content)
        if not (isinstance(found, dict) and found.get("growth_staging") == VERSION):
            raise ValueError("it is not a mark of this version")
        plan, parts, files = found.get("plan"), found.get("parts"), found.get("files")
        if not (isinstance(files, list) and all(isinstance(name, str) and _is_inside(name) for name in files)):
            raise ValueError("it lists something other than names of files")
        if not (isinstance(plan, str) and type(parts) is int and 1 <= parts <= len(files)):  # each part writes some
            raise ValueError("it does not name a plan and a number of parts")
        return cls(plan, parts, tuple(files))

    @property
    def notes(self) -> list[str]:
        """The names of all that parts say of themselves."""
        parts = [WriterRank(number, self.parts) for number in range(1, self.parts + 1)]
        written = [name for part in parts for name in (f"source-{part}", f"done-{part}.jsonl", f"finished-{part}")]
        return [*written, *(name + DRAFT for name in written), *(f"lock-{part}" for part in parts)]


def _is_inside(name: str) -> bool:
    """Whether a name leads to a file in the folder that it is relative to, or in a directory of that."""
    parts = PurePosixPath(name).parts
    known = "\0" not in name and "/".join(parts) == name and not {"..", "/"} & set(parts)
    return known and 1 <= len(parts) <= 2 and all(len(os.fsencode(part)) <= LONGEST_NAME for part in parts)


@dataclass(frozen=True)
class Staging:
    """The hidden folder of an output, and what is to be made there.

    resume: whether what an earlier run has left is kept.
    resumable: whether a later run could go on with what this one leaves.
    """

    output: Path
    mark: Mark
    part: WriterRank
    resume: bool = False
    resumable: bool = True

    @property
    def name(self) -> str:
        """The folder's name, beside the output."""
        return f".{self.output.name}.partial"

    @property
    def path(self) -> Path:
        """The folder's path."""
        return self.output.parent / self.name

    @property
    def joins(self) -> bool:
        """Whether this run goes on from what is there, or beside others."""
        return self.resume or not self.part.alone

    def check(self) -> int:
        """Refuses what `opened` would refuse, and changes nothing; returns how many bytes of the output are there.

        Raises:
            CheckpointError: the folder that is there is not ours, is of another plan, or somebody is at work there.
        """
        try:
            return self._checked()
        except OSError as error:
            raise CheckpointError(unwritable(error, self.path)) from error

    def _checked(self) -> int:
        try:
            parent = Directory.at(self.output.parent)
        except OSError:  # it is made, or refused, when the work begins
            return 0
        with parent, ExitStack() as stack:
            try:
                folder = stack.enter_context(self._child(parent))
            except FileNotFoundError:
                return 0
            mark = self._mark_of(folder)
            if mark is None:
                return 0
            if folder.has(LOCK):
                stack.enter_context(folder.locked(LOCK, wait=True))
            self._check_free(folder, mark)
            if not self.joins:
                return 0
            with suppress(FileNotFoundError), folder.child(CHECKPOINT) as checkpoint:
                found = [checkpoint.status(name) for name in mark.files]
                return sum(status.st_blocks * 512 for status in found if status is not None)
            return 0

    @contextmanager
    def opened(self) -> Iterator[StagingDirectory]:
        """The workplace, held by this part alone while it works there.

        An error removes it, unless a later run can go on from what it has written; a process that is killed leaves
        it behind, and so does an interruption from the keyboard if the work is resumable.

        Raises:
            CheckpointError: as for `check`, or the system refuses to write.
        """
        try:
            _check_can_open(OPEN)
            with ExitStack() as stack:
                stack.enter_context(_made(self.output.parent))
                work = self._begin(stack.enter_context(Directory.at(self.output.parent)), stack)
                with work.removed_on_error():
                    yield work
        except OSError as error:
            raise CheckpointError(unwritable(error, self.output)) from error

    def clear(self) -> None:
        """Removes what an earlier run of this plan has left, if nobody is at work there."""
        with (
            suppress(OSError, CheckpointError),
            Directory.at(self.output.parent) as parent,
            self._child(parent) as folder,
        ):
            with folder.locked(LOCK, wait=True) as there:
                mark = self._mark_of(folder)
                if there and (mark is None or (mark.plan == self.mark.plan and not _at_work(folder, mark))):
                    _remove(folder, mark)
            parent.remove_empty(self.name)

    # ------------------------------------------------- whose is it

    def _child(self, parent: Directory) -> Directory:
        """The folder as it stands.

        Raises:
            CheckpointError: a link or a file has its name, or it is another user's.
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

    def _mark_of(self, folder: Directory) -> Mark | None:
        """The folder's mark; None where nothing is, or what a process leaves that is killed before it has marked it.

        Raises:
            CheckpointError: there is something, and it is not this library's.
        """
        try:
            names: set[str] = set()
            while (content := folder.read(MARK, LARGEST_MARK)) is None:
                names = folder.names()
                if MARK not in names:  # or another process has just marked it
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
        strangers = sorted(names - _begun(folder))
        if strangers:
            raise CheckpointError(
                f"{self.path} was not made by this version of growth: it has no {MARK} and holds '{strangers[0]}'. "
                "Nothing was changed: move it away, or choose another --output."
            )
        return None

    def _check_free(self, folder: Directory, mark: Mark) -> None:
        """Raises CheckpointError where this run can neither join nor replace what is there."""
        if not self.joins:
            if busy := _at_work(folder, mark):
                raise CheckpointError(f"Another process is writing {self.output} ({busy}). Wait, or stop it.")
        elif mark != self.mark:
            raise CheckpointError(
                f"{self.path} was left by another growth: another source, recipe, seed, type or shard size, or "
                "another number of parts. Grow as then, or remove it."
            )
        elif folder.is_locked(f"lock-{self.part}"):
            raise CheckpointError(f"Another process is writing {self.output} (part {self.part}). Wait, or stop it.")
        self._check_clashes(folder, mark)

    def _check_clashes(self, folder: Directory, mark: Mark) -> None:
        """Raises CheckpointError where somebody's own file or directory has a name that is about to be used."""
        found = folder.names()
        names = {name.removesuffix("/") for name in found}
        ours, wanted = _files_of(mark), _files_of(self.mark)
        directories = {CHECKPOINT, SELECTED, *(str(PurePosixPath(name).parent) for name in wanted)} - {"."}
        clashes = {name for name in names & directories if f"{name}/" not in found}
        clashes |= {name for name in names & (ours | wanted) if name not in ours or folder.has_other(name)}
        if clashes:
            raise CheckpointError(
                f"{self.path / min(clashes)} does not belong to the run that was begun there. Nothing was changed: "
                "move it away, or choose another --output."
            )

    # ------------------------------------------------- beginning

    def _begin(self, parent: Directory, stack: ExitStack) -> StagingDirectory:
        """The workplace, marked and held until the stack is closed."""
        for _ in range(ATTEMPTS):
            new = parent.make(self.name)
            try:
                folder = stack.enter_context(self._child(parent))
                folder.exclusive = new and self.part.alone
                if not new:
                    self._mark_of(folder)  # not even a lock is made in a folder that is not ours
                with folder.locked(LOCK, wait=True) as there:
                    if there:
                        return self._taken(parent, folder, stack, new=new)
            except FileNotFoundError:  # another process has cleared it away
                continue
            except BaseException as error:
                if new and isinstance(error, LocksUnsupported):
                    folder.remove(LOCK)
                if new:
                    parent.remove_empty(self.name)
                raise
        raise CheckpointError(f"{self.path} was cleared away by other processes {ATTEMPTS} times. Grow again.")

    def _taken(self, parent: Directory, folder: Directory, stack: ExitStack, *, new: bool) -> StagingDirectory:
        mark = self._mark_of(folder)
        if mark is not None:
            self._check_free(folder, mark)
        if os.path.lexists(self.output):
            if new and mark is None:
                folder.remove(LOCK)
            raise CheckpointError(f"{self.output} exists already. Choose another --output, or remove it first.")
        if mark is not None and not self.joins:
            _clear(folder, mark)
        try:
            if mark != self.mark:
                folder.write_whole(MARK, self.mark.to_bytes())
            stack.enter_context(folder.locked(f"lock-{self.part}"))
            folder.make(CHECKPOINT)
            checkpoint = stack.enter_context(folder.child(CHECKPOINT))
        except BaseException:
            if mark is None:  # nothing else of ours is there, and perhaps nothing can be opened
                folder.remove_empty(CHECKPOINT)
                for name in (f"lock-{self.part}", MARK + DRAFT, MARK, LOCK):
                    folder.remove(name)
            raise
        _move_back(folder, checkpoint, self.mark)
        folder.remove(f"finished-{self.part}")
        return StagingDirectory(self, parent, folder, checkpoint)


def _files_of(mark: Mark) -> set[str]:
    """The names of all files that a run makes in its folder."""
    return {MARK, LOCK, *mark.notes, *(f"{place}/{name}" for place in (CHECKPOINT, SELECTED) for name in mark.files)}


def _begun(folder: Directory) -> set[str]:
    """What a process has made that was killed before it marked the folder: an empty lock, and the mark's beginning."""
    lock = folder.status(LOCK)
    draft = folder.read(MARK + DRAFT, len(START)) if folder.has(MARK + DRAFT) else None
    begun = {LOCK} if lock is not None and lock.st_size == 0 else set()
    return begun | ({MARK + DRAFT} if draft is not None and START.startswith(draft) else set())


def _at_work(folder: Directory, mark: Mark) -> str | None:
    """The name of a lock that somebody holds."""
    locks = (f"lock-{WriterRank(number, mark.parts)}" for number in range(1, mark.parts + 1))
    return next((lock for lock in locks if folder.is_locked(lock)), None)


def _clear(folder: Directory, mark: Mark) -> None:
    """Removes what the mark lists; directories, if they are empty then."""
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
    """Removes what the mark lists, and the mark if nobody else's is left there."""
    if mark is not None:
        _clear(folder, mark)
    if folder.names() <= {MARK, LOCK, MARK + DRAFT}:
        for name in (MARK + DRAFT, MARK, LOCK):
            folder.remove(name)


def _move_back(folder: Directory, checkpoint: Directory, mark: Mark) -> None:
    """Moves back what a process that was killed as it published had selected."""
    with suppress(FileNotFoundError), folder.child(SELECTED) as selected:
        for name in mark.files:
            if selected.has(name) and not checkpoint.has(name):
                selected.move(name, checkpoint)


def _check_can_open(count: int) -> None:
    """Raises OSError where the process can no longer open so many files, before it makes the first."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))


@contextmanager
def _made(path: Path) -> Iterator[None]:
    """Makes a directory and those above it; on an error those that were missing are removed again, if empty."""
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


class StagingDirectory:
    """The hidden folder of an output, as one part at work sees it; checkpoint: what is to be published."""

    def __init__(self, staging: Staging, parent: Directory, folder: Directory, checkpoint: Directory):
        self.staging, self.part, self.output = staging, staging.part, staging.output
        self.folder, self.checkpoint, self._parent = folder, checkpoint, parent
        self._journal = f"done-{self.part}.jsonl"
        self._writing = Lock()

    @contextmanager
    def removed_on_error(self) -> Iterator[None]:
        """Removes the workplace on an error from which no later run can go on."""
        try:
            yield
        except BaseException as error:
            if not self._useful(error):
                self._discard()
            elif isinstance(error, WorkerDied):
                raise WorkerDied(f"{error} What is written is not lost: grow again with --resume.") from None
            raise

    def _useful(self, error: BaseException) -> bool:
        """Whether what is here should outlive an error."""
        staging = self.staging
        if not staging.resumable:
            return False
        if isinstance(error, WorkerDied) or not isinstance(error, Exception) or not self.part.alone:
            return True
        return staging.resume and self.folder.has(self._journal)

    def _discard(self) -> None:
        with suppress(OSError):
            with self.folder.locked(LOCK, wait=True):
                _remove(self.folder, self.staging.mark)
            self._parent.remove_empty(self.staging.name)

    # ------------------------------------------------- what is done

    def done(self) -> dict[str, str]:
        """The tensors that earlier runs of this part say they have written, and their hashes."""
        text = self._text(self._journal)
        lines = [] if text is None else text.split("\n")[:-1]  # a line without an end was cut short
        try:
            return {str(name): str(digest) for name, digest in map(json.loads, lines)}
        except (ValueError, TypeError):
            raise CheckpointError(
                f"{self.folder.path / self._journal} is damaged. Remove {self.folder.path} and grow again."
            ) from None

    def note(self, name: str, digest: str) -> None:
        """Notes that a tensor is written."""
        with self._writing:
            self.folder.append(self._journal, f"{json.dumps([name, digest])}\n".encode())

    def keep_only(self, done: dict[str, str]) -> None:
        """Forgets what is not among `done`."""
        if self.folder.has(self._journal):
            self._say(self._journal, "".join(json.dumps(item) + "\n" for item in done.items()))

    def begin(self, source: dict[str, str]) -> None:
        """Says what this part read of the source: the hash of each tensor that its own ones copy.

        Raises:
            CheckpointError: an earlier run of this part read other values.
        """
        name, value = f"source-{self.part}", json.dumps(source, sort_keys=True)
        if self._text(name) not in (None, value):
            raise CheckpointError(
                f"{self.folder.path} was left by another growth: the source's tensors had other values. Grow as then, "
                "or remove it."
            )
        self._say(name, value)

    def finish(self, digests: dict[str, str]) -> None:
        """Says that all of this part's tensors are written and on disk."""
        self._say(f"finished-{self.part}", json.dumps(digests))

    def _text(self, name: str) -> str | None:
        content = self.folder.read(name, -1)
        return None if content is None else content.decode()

    def _say(self, name: str, text: str) -> None:
        self.folder.write_whole(name, text.encode())

    # ------------------------------------------------- publishing

    def publish(self, complete: Callable[[dict[str, str], dict[str, str]], None]) -> bool:
        """Makes the output appear if every part has finished; says whether it is there.

        complete: checks the shards and writes what is not tensors, given the hash of every tensor, of the source and
            of the output.

        Raises:
            CheckpointError: two parts read other values of one tensor.
        """
        parts = [WriterRank(number, self.part.count) for number in range(1, self.part.count + 1)]
        with self._guarded() as there:
            if not there or not self.folder.has(f"finished-{self.part}"):  # another part has published
                return os.path.lexists(self.output)
            if not all(self.folder.has(f"finished-{part}") for part in parts):
                return False
            complete(self._together("source", parts), self._together("finished", parts))
            self._appear()
            _remove(self.folder, self.staging.mark)
        self._parent.remove_empty(self.staging.name)
        return True

    @contextmanager
    def _guarded(self) -> Iterator[bool]:
        """Holds the folder's lock; says whether the folder is still there."""
        with ExitStack() as stack:
            try:
                there = stack.enter_context(self.folder.locked(LOCK, wait=True))
            except FileNotFoundError:
                there = False
            yield there

    def _together(self, what: str, parts: list[WriterRank]) -> dict[str, str]:
        """The hashes that all parts have noted."""
        found: dict[str, str] = {}
        for part in parts:
            for name, digest in json.loads(self._text(f"{what}-{part}") or "{}").items():
                if found.setdefault(name, digest) != digest:
                    raise CheckpointError(
                        f"Parts have read other values of tensor '{name}': the source was changed between them. "
                        f"Remove {self.folder.path} and grow again."
                    )
        return found

    def _strangers(self, folder: Directory) -> list[str]:
        """What is in a folder and not in the output."""
        files = set(self.staging.mark.files)
        directories = {f"{above}/" for name in files for above in map(str, PurePosixPath(name).parents) if above != "."}
        return sorted(folder.names() - files - directories)

    def _appear(self) -> None:
        """Renames the files that are listed, and nothing else, to the output's place."""
        place = CHECKPOINT if not self._strangers(self.checkpoint) else SELECTED
        if place == SELECTED:
            self.folder.make(SELECTED)
        with self.folder.child(place) as final:
            if place == SELECTED:
                for name in self.staging.mark.files:
                    if self.checkpoint.has(name):
                        self.checkpoint.move(name, final)
            if strangers := self._strangers(final):
                raise CheckpointError(
                    f"{final.path / strangers[0]} is not of this growth. Nothing was published: move it away, then "
                    "grow with --resume."
                )
            for name in sorted(final.names()):
                final.sync(name)
            final.sync()
        try:
            self.folder.move_directory(place, self._parent, self.output.name)
        except FileExistsError:
            raise CheckpointError(
                f"{self.output} appeared while its content was being written: nothing was replaced."
            ) from None
        self._parent.sync()


def refuse_output(output: Path, needed: int) -> None:
    """Raises CheckpointError where `output` exists or its file system has less than `needed` bytes free."""
    if output.exists() or output.is_symlink():
        raise CheckpointError(f"{output} exists already. Choose another --output, or remove it first.")
    home = next(parent for parent in output.absolute().parents if parent.exists())
    if not home.is_dir():
        raise CheckpointError(f"{output} cannot be made: {home}: Not a directory. Choose another --output.")
    if not os.access(home, os.W_OK):
        raise CheckpointError(f"{home} is not writable, so {output} cannot be made.")
    free = shutil.disk_usage(home).free
    if free < needed:
        raise CheckpointError(
            f"{output} needs {needed / 1e9:.2f} GB and {home} has {free / 1e9:.2f} GB free. "
            "Free some, or choose a smaller --dtype."
        )
