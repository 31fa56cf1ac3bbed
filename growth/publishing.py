"""Publishing: an output that is written beside its place by one process or many, and appears there whole.

Beside `output` stands a hidden folder while work is going on:

    .NAME.partial/
        fingerprint           what is being made; another growth does not join
        source-I-of-N         the source tensors that part I copies, and the xxh3_128 of their bytes
        done-I-of-N.jsonl     a line for each tensor that part I has written: its name and its bytes' xxh3_128
        finished-I-of-N       part I has written everything that is its own, and it is on disk
        lock-…                held by a part at work, or by the one that publishes
        checkpoint/           what becomes `output`, by one rename

A process that is killed leaves this folder, and its next run goes on from there: what a line names is there if
its bytes still have the hash. Nothing but the file system is needed for several processes to work together, and
nobody waits for anybody.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TypeVar

from growth.errors import CheckpointError, ProcessLost, RecipeError

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
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


def checked_part(index: int, count: int) -> Part:
    """Part `index` of `count`.

    Raises:
        RecipeError: no such part.
    """
    if not 1 <= index <= count:
        raise RecipeError(f"There is no part {index} of {count}: parts are numbered from 1 to their number.")
    return Part(index, count)


class Workplace:
    """The hidden folder of an output, as one part sees it."""

    def __init__(self, output: Path, part: Part):
        self.output, self.part = output, part
        self.folder = output.parent / f".{output.name}.partial"
        self.checkpoint = self.folder / "checkpoint"
        self._journal = self.folder / f"done-{part}.jsonl"
        self._writing = Lock()

    @classmethod
    @contextmanager
    def opened(cls, output: Path, fingerprint: str, part: Part, *, resume: bool) -> Iterator[Workplace]:
        """The workplace, held by this part alone while it works there.

        An error removes it, unless there are other parts or `resume` is set; a process that is killed, or stopped by
        the keyboard, leaves it behind.

        Raises:
            CheckpointError: this part is at work already, what is there is another growth, or the system refuses
                to write.
        """
        work, goes_on = cls(output, part), resume or not part.alone
        try:
            work.checkpoint.mkdir(parents=True, exist_ok=True)
            with _locked(work.folder / f"lock-{part}") as free:
                if not free:
                    raise CheckpointError(f"Another process is writing {output} (part {part}). Wait, or stop it.")
                with work._kept_if(goes_on):
                    work._join(fingerprint, resume=goes_on)
                    yield work
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            remedy = "Free some space there, or choose" if full else "Choose"
            raise CheckpointError(
                f"{error.filename or output} cannot be written: {error.strerror or error}. {remedy} another --output."
            ) from error

    @contextmanager
    def _kept_if(self, useful: bool) -> Iterator[None]:
        """Removes the workplace on an error, unless a later run can go on with it."""
        try:
            yield
        except ProcessLost as error:
            raise ProcessLost(f"{error} What is written is not lost: grow again with --resume.") from None
        except Exception:
            if not useful:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _join(self, fingerprint: str, *, resume: bool) -> None:
        """Takes part in what is being made here, or begins it."""
        if not resume:
            self._check_idle()
            shutil.rmtree(self.checkpoint)
            self.checkpoint.mkdir()
            for path in self.folder.glob("[dfs]*"):  # all that parts have said, but not their locks
                path.unlink(missing_ok=True)
        (self.folder / f"finished-{self.part}").unlink(missing_ok=True)
        self._agree("fingerprint", f"{fingerprint}, {self.part.count} parts")

    def _check_idle(self) -> None:
        """Raises CheckpointError where another part, whatever their number, is at work."""
        for path in sorted(self.folder.glob("lock-*")):
            if path.name != f"lock-{self.part}":
                with _locked(path) as free:
                    if not free:
                        raise CheckpointError(
                            f"Another process is writing {self.output} ({path.name}). Wait, or stop it."
                        )

    def _agree(self, what: str, value: str) -> None:
        """Says what is being made; raises CheckpointError where something else is."""
        mark = self.folder / what
        if mark.exists() and mark.read_text() != value:
            raise CheckpointError(
                f"{self.folder} was left by another growth: another source, recipe, seed, type or shard size, or "
                "another number of parts. Grow as then, or remove it."
            )
        write_whole(mark, value)

    # ------------------------------------------------- what is done

    def done(self) -> dict[str, str]:
        """The tensors that earlier runs of this part say they have written, and their hashes."""
        if not self._journal.exists():
            return {}
        lines = self._journal.read_text().split("\n")[:-1]  # a line without an end was cut short
        try:
            return {str(name): str(digest) for name, digest in map(json.loads, lines)}
        except (ValueError, TypeError):
            raise CheckpointError(f"{self._journal} is damaged. Remove {self.folder} and grow again.") from None

    def note(self, name: str, digest: str) -> None:
        """Notes that a tensor is written."""
        with self._writing, self._journal.open("a") as journal:
            journal.write(json.dumps([name, digest]) + "\n")

    def keep_only(self, done: dict[str, str]) -> None:
        """Forgets what is not among `done`."""
        write_whole(self._journal, "".join(json.dumps(item) + "\n" for item in done.items()))

    def begin(self, source: dict[str, str]) -> None:
        """Says what this part read of the source: the hash of each tensor that its own ones copy.

        Raises:
            CheckpointError: an earlier run of this part read other values.
        """
        self._agree(f"source-{self.part}", json.dumps(source, sort_keys=True))

    def finish(self, digests: dict[str, str]) -> None:
        """Says that all of this part's tensors are written and on disk."""
        write_whole(self.folder / f"finished-{self.part}", json.dumps(digests))

    # ------------------------------------------------- publishing

    def publish(self, complete: Callable[[dict[str, str], dict[str, str]], None]) -> bool:
        """Makes the output appear if every part has finished; says whether it is there.

        complete: checks the shards and writes what is not tensors, given the hash of every tensor, of the source and
            of the output.

        Raises:
            CheckpointError: two parts read other values of one tensor.
        """
        parts = [Part(number, self.part.count) for number in range(1, self.part.count + 1)]
        try:
            with _locked(self.folder / "lock-publish", wait=True):
                if self.checkpoint.exists() and all((self.folder / f"finished-{part}").exists() for part in parts):
                    complete(self._together("source", parts), self._together("finished", parts))
                    self._rename()
                    return True
        except FileNotFoundError:
            if self.folder.exists():
                raise
        return self.output.exists() and not self.folder.exists()

    def _together(self, what: str, parts: list[Part]) -> dict[str, str]:
        """The hashes that all parts have noted."""
        found: dict[str, str] = {}
        for part in parts:
            for name, digest in json.loads((self.folder / f"{what}-{part}").read_text()).items():
                if found.setdefault(name, digest) != digest:
                    raise CheckpointError(
                        f"Parts have read other values of tensor '{name}': the source was changed between them. "
                        f"Remove {self.folder} and grow again."
                    )
        return found

    def _rename(self) -> None:
        for path in [*sorted(self.checkpoint.iterdir()), self.checkpoint]:
            sync(path)
        if self.output.exists() or self.output.is_symlink():  # rename would replace an empty folder
            raise CheckpointError(f"{self.output} appeared while its content was being written: nothing was replaced.")
        self.checkpoint.rename(self.output)
        sync(self.output.parent)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def _locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Holds a lock that ends with the process; says whether it was free."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.urandom(4).hex()}")  # several parts may write the same file
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


def sync(path: Path) -> None:
    """Waits until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
