"""A directory that is open: what is done in it stays in it, whatever its path leads to by then.

No call here follows a link below the directory, and no name leads out of it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from growth.errors import CheckpointError

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
NO_EXCLUSIVE_RENAME = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
DRAFT = ".new"  # what the name of a file ends with while it is being written
LEVELS = 3  # of directories that are listed: no file of ours is deeper
NO_REPLACE = 1  # RENAME_NOREPLACE, as Linux defines it


class LocksUnsupported(CheckpointError):
    """A file system without locks."""


class Directory:
    """An open directory; path: the one under which it was found, for messages."""

    def __init__(self, path: Path, descriptor: int):
        self.path, self.descriptor = path, descriptor
        self.exclusive = False  # whether nobody else can be at work in it, so that it needs no locks

    @classmethod
    def at(cls, path: Path) -> Directory:
        """The directory at a path, whose links are followed.

        Raises:
            OSError: there is none, or it cannot be opened.
        """
        return cls(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY))

    def child(self, name: str) -> Directory:
        """A directory of this one, which must not be a link.

        Raises:
            OSError: there is none (FileNotFoundError), or it is something else (NotADirectoryError).
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        with self._full_names():
            return Directory(self.path / name, os.open(name, flags, dir_fd=self.descriptor))

    def close(self) -> None:
        """Closes it."""
        os.close(self.descriptor)

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def through(self) -> Path:
        """A path that leads here through the descriptor, for callees that only take paths; on Linux."""
        own = Path(f"/proc/self/fd/{self.descriptor}")
        return own if own.is_dir() else self.path

    # ------------------------------------------------- names

    @contextmanager
    def _full_names(self) -> Iterator[None]:
        """Has errors of the system state the whole path: calls that are relative to a descriptor state the name."""
        try:
            yield
        except OSError as error:
            if isinstance(error.filename, str):
                error.filename = str(self.path / error.filename)
            raise

    def names(self, levels: int = LEVELS) -> set[str]:
        """Everything in it; what is in directories as `directory/name`, and these themselves as `directory/`.

        levels: how deep; of directories below, only the name is found.
        """
        found = set()
        with os.scandir(self.descriptor) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    found.add(entry.name)
                    continue
                found.add(f"{entry.name}/")
                if levels > 1:
                    # another process may remove it at this moment
                    with suppress(FileNotFoundError, NotADirectoryError), self.child(entry.name) as child:
                        found |= {f"{entry.name}/{name}" for name in child.names(levels - 1)}
        return found

    def has(self, name: str) -> bool:
        """Whether a regular file of this name is there."""
        found = self._stat(name)
        return found is not None and stat.S_ISREG(found.st_mode)

    def has_other(self, name: str) -> bool:
        """Whether something that is not a regular file has this name."""
        found = self._stat(name)
        return found is not None and not stat.S_ISREG(found.st_mode)

    def status(self, name: str) -> os.stat_result | None:
        """What the system knows of a regular file; None where there is none."""
        return self._stat(name) if self.has(name) else None

    def _stat(self, name: str) -> os.stat_result | None:
        try:
            with self._home(name) as (home, last):
                return os.stat(last, dir_fd=home, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    @contextmanager
    def _home(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """The directory that a name is in, and its last part; make: directories that are missing."""
        *directories, last = PurePosixPath(name).parts
        if not directories:
            yield self.descriptor, last
            return
        if make:
            self.make(directories[0])
        with self.child(directories[0]) as child, child._home("/".join([*directories[1:], last]), make=make) as found:
            yield found

    # ------------------------------------------------- files

    def open(self, name: str, flags: int) -> int:
        """The descriptor of a regular file; one that is opened for writing alone has no second name.

        Raises:
            OSError: the system cannot, or it is another kind of file.
        """
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe would block until somebody reads
        with self._home(name, make=bool(flags & os.O_CREAT)) as (home, last):
            try:
                descriptor = os.open(last, flags, 0o666, dir_fd=home)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.path / name)) from None
        status, fault = os.fstat(descriptor), ""
        if not stat.S_ISREG(status.st_mode):
            fault = "Not a regular file"
        elif flags & os.O_WRONLY and status.st_nlink > 1:  # its other name may be anybody's
            fault = "It has a second name (a hard link)"
        if fault:
            os.close(descriptor)
            raise OSError(errno.EEXIST, fault, str(self.path / name))
        return descriptor

    @contextmanager
    def opened(self, name: str, flags: int) -> Iterator[int]:
        """The descriptor of a regular file, until the end of the context."""
        descriptor = self.open(name, flags)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, name: str, largest: int) -> bytes | None:
        """At most the first `largest` bytes of a file; None where there is none."""
        try:
            descriptor = self.open(name, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with os.fdopen(descriptor, "rb") as file:
            return file.read(largest)

    @contextmanager
    def new(self, name: str) -> Iterator[int]:
        """The descriptor of a file that is made anew: one that had this name is removed, and never written to."""
        self.remove(name)
        with self.opened(name, os.O_RDWR | os.O_CREAT | os.O_EXCL) as descriptor:
            yield descriptor

    def write(self, name: str, content: bytes) -> None:
        """Writes a file anew."""
        with self.new(name) as descriptor:
            write(descriptor, memoryview(content), 0)

    def write_whole(self, name: str, content: bytes) -> None:
        """Replaces a file, which is then there whole and on disk, whatever happens; one process at a time."""
        with self.new(name + DRAFT) as descriptor:
            write(descriptor, memoryview(content), 0)
            os.fsync(descriptor)
        with self._full_names():
            os.rename(name + DRAFT, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def append(self, name: str, content: bytes) -> None:
        """Writes to the end of a file, which is made where there is none."""
        with self.opened(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as descriptor:
            while content:
                content = content[_taken(os.write(descriptor, content)) :]

    def move(self, name: str, to: Directory) -> None:
        """Moves a file to the same name in another folder, in which it is not there."""
        with self._home(name) as (home, last), to._home(name, make=True) as (other, _):
            os.rename(last, last, src_dir_fd=home, dst_dir_fd=other)

    def remove(self, name: str) -> None:
        """Removes a file or link if it is there; a directory stays."""
        missing = suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError)
        with missing, self._full_names(), self._home(name) as (home, last):
            os.unlink(last, dir_fd=home)

    # ------------------------------------------------- directories

    def make(self, name: str) -> bool:
        """Makes a directory; says whether none was there."""
        try:
            os.mkdir(name, dir_fd=self.descriptor)
        except FileExistsError:
            return False
        return True

    def move_directory(self, name: str, to: Directory, new_name: str) -> None:
        """Moves a directory to a name in another folder.

        Raises:
            FileExistsError: something has that name, be it an empty directory.
        """
        old, new = os.fsencode(name), os.fsencode(new_name)
        try:
            call = ctypes.CDLL(None, use_errno=True).renameat2
        except (AttributeError, OSError, TypeError):  # a system without it
            code: int = errno.ENOSYS
        else:
            failed = call(self.descriptor, old, to.descriptor, new, NO_REPLACE)
            code = ctypes.get_errno() if failed else 0
        if code in NO_EXCLUSIVE_RENAME:
            code = errno.EEXIST if to._stat(new_name) is not None else 0
            if not code:
                os.rename(old, new, src_dir_fd=self.descriptor, dst_dir_fd=to.descriptor)
        if code:
            raise OSError(code, os.strerror(code), str(to.path / new_name))

    def remove_empty(self, name: str) -> bool:
        """Removes a directory if it is empty; says whether it is gone."""
        try:
            os.rmdir(name, dir_fd=self.descriptor)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def sync(self, name: str | None = None) -> None:
        """Waits until a file or directory in it, or this directory itself, is on disk."""
        if name is None:
            sync_directory(self.descriptor)
            return
        if name.endswith("/"):
            with self.child(name[:-1]) as child:
                child.sync()
            return
        with self.opened(name, os.O_RDONLY) as descriptor:
            os.fsync(descriptor)

    # ------------------------------------------------- locks

    @contextmanager
    def locked(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Holds a lock that ends with the process; says whether it was free, and its file is still there.

        Raises:
            LocksUnsupported: the file system has no locks.
        """
        with self.opened(name, os.O_RDWR | os.O_CREAT) as descriptor:
            yield self._lock(descriptor, wait=wait) and os.fstat(descriptor).st_nlink > 0

    def is_locked(self, name: str) -> bool:
        """Whether somebody holds a lock.

        Raises:
            LocksUnsupported: the file system has no locks.
        """
        if self._stat(name) is None:
            return False
        with self.opened(name, os.O_RDWR) as descriptor:
            return not self._lock(descriptor, wait=False)

    def _lock(self, descriptor: int, *, wait: bool) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            if not self.exclusive:
                raise LocksUnsupported(
                    f"{self.path} is on a file system without locks ({error.strerror}), so growth cannot tell whether "
                    "another process is at work there. If none is, remove that folder and grow without --resume and "
                    "--part, or choose another --output."
                ) from None
        return True


def sync_directory(descriptor: int) -> None:
    """Waits until a directory is on disk, where its file system lets one wait."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def write(descriptor: int, view: memoryview, offset: int) -> None:
    """Writes all of some bytes to a file at an offset.

    Raises:
        OSError: the system cannot, or takes none of them.
    """
    done = 0
    while done < len(view):
        done += _taken(os.pwrite(descriptor, view[done:] if done else view, offset + done))


def _taken(count: int) -> int:
    if count == 0:
        raise OSError(errno.EIO, "the system took none of the bytes")
    return count
