"""Work in an open directory: every call stays inside it, even if its path leads elsewhere by then.

No call follows a symbolic link below the directory, and no name leads out of it.
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
DRAFT = ".new"  # suffix of a file that is being written
LEVELS = 3  # depth to which directories are listed: no file of a run is deeper
RENAME_NOREPLACE = 1  # as Linux defines it


class LocksUnsupported(CheckpointError):
    """A file system without locks."""


class Directory:
    """An open directory.

    Attributes:
        path: where it was found, for messages.
        exclusive: whether no other process can be at work in it, so that it needs no locks.
    """

    def __init__(self, path: Path, descriptor: int):
        self.path, self.descriptor = path, descriptor
        self.exclusive = False

    @classmethod
    def at(cls, path: Path) -> Directory:
        """Open the directory at a path, following links.

        Raises:
            OSError: it is missing or cannot be opened.
        """
        return cls(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY))

    def child(self, name: str) -> Directory:
        """Open a directory in this one.

        Raises:
            OSError: it is missing (FileNotFoundError), or a link or a file (NotADirectoryError).
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        with self._full_names():
            return Directory(self.path / name, os.open(name, flags, dir_fd=self.descriptor))

    def close(self) -> None:
        """Close the directory."""
        os.close(self.descriptor)

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def through(self) -> Path:
        """A path through the descriptor, for callees that only take paths; the plain path where /proc is missing."""
        own = Path(f"/proc/self/fd/{self.descriptor}")
        return own if own.is_dir() else self.path

    # ------------------------------------------------- names

    @contextmanager
    def _full_names(self, name: str = "") -> Iterator[None]:
        """Make errors of the system state the whole path, where calls relative to a descriptor state the name at most.

        Args:
            name: what is worked on; by default what the error states.
        """
        try:
            yield
        except OSError as error:
            if name or isinstance(error.filename, str):
                error.filename = str(self.path / (name or error.filename))
            raise

    def names(self, levels: int = LEVELS) -> set[str]:
        """The names of all files, those in directories as `directory/name`, and of directories as `directory/`.

        Args:
            levels: the depth to which directories are listed; below it, only their names are found.
        """
        found = set()
        with os.scandir(self.descriptor) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    found.add(entry.name)
                    continue
                found.add(f"{entry.name}/")
                if levels > 1:
                    # another process may be removing it
                    with suppress(FileNotFoundError, NotADirectoryError), self.child(entry.name) as child:
                        found |= {f"{entry.name}/{name}" for name in child.names(levels - 1)}
        return found

    def status(self, name: str) -> os.stat_result | None:
        """The status of a regular file; None where there is none."""
        found = self._stat(name)
        return found if found is not None and stat.S_ISREG(found.st_mode) else None

    def has(self, name: str) -> bool:
        """Whether a regular file has this name."""
        return self.status(name) is not None

    def has_other(self, name: str) -> bool:
        """Whether something that is not a regular file has this name."""
        return self._stat(name) is not None and not self.has(name)

    def _stat(self, name: str) -> os.stat_result | None:
        try:
            with self._home(name) as (home, last):
                return os.stat(last, dir_fd=home, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    @contextmanager
    def _home(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """The descriptor of the directory that holds a name, and the name's last part.

        Args:
            make: whether to make missing directories.
        """
        *directories, last = PurePosixPath(name).parts
        if not directories:
            yield self.descriptor, last
            return
        if make:
            self.make(directories[0])
        with self.child(directories[0]) as child, child._home("/".join([*directories[1:], last]), make=make) as found:
            yield found

    # ------------------------------------------------- files

    @contextmanager
    def opened(self, name: str, flags: int) -> Iterator[int]:
        """The descriptor of a regular file, open until the context ends.

        Raises:
            OSError: the system cannot open it, it is not a regular file, or it would be written through one of several
                hard links.
        """
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe would block until somebody reads
        with self._full_names(name), self._home(name, make=bool(flags & os.O_CREAT)) as (home, last):
            descriptor = os.open(last, flags, 0o666, dir_fd=home)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EEXIST, "Not a regular file", str(self.path / name))
            if flags & os.O_WRONLY and status.st_nlink > 1:  # its other name may belong to anybody
                raise OSError(errno.EEXIST, "It has a second name (a hard link)", str(self.path / name))
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, name: str, largest: int) -> bytes | None:
        """At most the first `largest` bytes of a file, all if it is negative; None where the file is missing."""
        missing = suppress(FileNotFoundError, NotADirectoryError)
        with missing, self.opened(name, os.O_RDONLY) as descriptor, open(descriptor, "rb", closefd=False) as file:
            return file.read(largest)
        return None

    @contextmanager
    def new(self, name: str) -> Iterator[int]:
        """The descriptor of a new file; an older file of this name is removed and never written to."""
        self.remove(name)
        with self.opened(name, os.O_RDWR | os.O_CREAT | os.O_EXCL) as descriptor:
            yield descriptor

    def write(self, name: str, content: bytes) -> None:
        """Write a new file in place of an older one."""
        with self.new(name) as descriptor:
            write(descriptor, memoryview(content), 0)

    def write_whole(self, name: str, content: bytes) -> None:
        """Replace a file atomically; it is on disk when this returns. Only one process may do so at a time."""
        with self.new(name + DRAFT) as descriptor:
            write(descriptor, memoryview(content), 0)
            os.fsync(descriptor)
        with self._full_names():
            os.rename(name + DRAFT, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def append(self, name: str, content: bytes) -> None:
        """Write to the end of a file, which is made if missing."""
        with self.opened(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as descriptor:
            while content:
                content = content[_taken(os.write(descriptor, content)) :]

    def move(self, name: str, to: Directory) -> None:
        """Move a file to the same name in another directory, where the name must be free."""
        with self._home(name) as (home, last), to._home(name, make=True) as (other, _):
            os.rename(last, last, src_dir_fd=home, dst_dir_fd=other)

    def remove(self, name: str) -> None:
        """Remove a file or link if it exists; a directory stays."""
        missing = suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError)
        with missing, self._full_names(), self._home(name) as (home, last):
            os.unlink(last, dir_fd=home)

    # ------------------------------------------------- directories

    def make(self, name: str) -> bool:
        """Make a directory; return whether it was missing."""
        try:
            os.mkdir(name, dir_fd=self.descriptor)
        except FileExistsError:
            return False
        return True

    def move_directory(self, name: str, to: Directory, new_name: str) -> None:
        """Move a directory to a new name in another directory.

        Raises:
            FileExistsError: the name is taken, be it by an empty directory.
        """
        old, new = os.fsencode(name), os.fsencode(new_name)
        try:
            call = ctypes.CDLL(None, use_errno=True).renameat2
        except (AttributeError, OSError, TypeError):  # not on this system
            code: int = errno.ENOSYS
        else:
            failed = call(self.descriptor, old, to.descriptor, new, RENAME_NOREPLACE)
            code = ctypes.get_errno() if failed else 0
        if code in NO_EXCLUSIVE_RENAME:
            code = errno.EEXIST if to._stat(new_name) is not None else 0
            if not code:
                os.rename(old, new, src_dir_fd=self.descriptor, dst_dir_fd=to.descriptor)
        if code:
            raise OSError(code, os.strerror(code), str(to.path / new_name))

    def remove_empty(self, name: str) -> bool:
        """Remove a directory if it is empty; return whether it is gone."""
        try:
            os.rmdir(name, dir_fd=self.descriptor)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def sync(self, name: str = "") -> None:
        """Wait until a file, a directory (`name/`) or by default this directory itself is on disk."""
        if name.endswith("/"):
            with self.child(name[:-1]) as child:
                child.sync()
        elif name:
            with self.opened(name, os.O_RDONLY) as descriptor, self._full_names(name):
                os.fsync(descriptor)
        else:
            try:
                os.fsync(self.descriptor)
            except OSError as error:  # not every file system can
                if error.errno not in NO_SYNC:
                    raise

    # ------------------------------------------------- locks

    @contextmanager
    def locked(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Hold a lock that ends with the process; whether it was free, and its file still exists.

        Raises:
            LocksUnsupported: the file system has no locks.
        """
        with self.opened(name, os.O_RDWR | os.O_CREAT) as descriptor:
            yield self._lock(descriptor, wait=wait) and os.fstat(descriptor).st_nlink > 0

    def is_locked(self, name: str) -> bool:
        """Whether a process holds a lock.

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
                    "another process works there. If none does, remove that folder and grow without --resume and "
                    "--part, or choose another --output."
                ) from None
        return True


def write(descriptor: int, view: memoryview, offset: int) -> None:
    """Write bytes to a file at an offset, all of them.

    Raises:
        OSError: the system cannot write, or accepts none of them.
    """
    done = 0
    while done < len(view):
        done += _taken(os.pwrite(descriptor, view[done:] if done else view, offset + done))


def _taken(count: int) -> int:
    if count == 0:
        raise OSError(errno.EIO, "the system accepted none of the bytes")
    return count
