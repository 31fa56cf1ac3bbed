"""Limits of the system that a process can reach, each as one sentence for its user."""

from __future__ import annotations

import errno
from pathlib import Path

from growth.errors import printable

LEAST_MEMORY = 192 << 20  # bytes of address space that a command needs to start
# The exit status that shells report where SIGPIPE has ended a command, as in `cat FILE | head -1`. Python ignores the
# signal itself, and so do we: it would end a run that writes to a pipe without clearing up.
CLOSED_PIPE = 141
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MEMORY_SIGNS = ("can't allocate memory", "cannot allocate memory", "failed to map segment", "not enough memory")
THREAD_SIGNS = ("can't start new thread", "resource temporarily unavailable", "thread creation failed")


def shortage(error: BaseException) -> str | None:
    """The message for an error that says that the process has run out of something; None for any other error.

    >>> shortage(MemoryError())
    'Memory has run out: the system gave no more. Free some, or raise the limit (ulimit -v).'
    >>> shortage(ValueError("no")) is None
    True
    """
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or code == errno.ENOMEM or _says(error, MEMORY_SIGNS):
        return (
            f"Memory has run out: the system gave no more{_limit('RLIMIT_AS')}. Free some, or raise the limit "
            "(ulimit -v)."
        )
    if code == errno.EAGAIN or _says(error, THREAD_SIGNS):
        return (
            f"No further process or thread can be started{_limit('RLIMIT_NPROC')}. End some, or raise the limit "
            "(ulimit -u)."
        )
    if code in (errno.EMFILE, errno.ENFILE):
        return f"No further file can be opened{_limit('RLIMIT_NOFILE')}. Close some, or raise the limit (ulimit -n)."
    return None


def unwritable(error: OSError, path: Path) -> str:
    """The message for a path that cannot be written, with the reason and the remedy.

    >>> unwritable(OSError(errno.EROFS, "Read-only file system"), Path("out"))
    'out cannot be written: Read-only file system. Choose another --output.'
    """
    if text := shortage(error):
        return text
    limit = _limit("RLIMIT_FSIZE") if error.errno == errno.EFBIG else ""
    remedy = "Free some space there, or choose" if error.errno in FULL else "Choose"
    return f"{error.filename or path} cannot be written: {error.strerror or error}{limit}. {remedy} another --output."


def too_little_memory() -> str | None:
    """The message for a memory limit below what a command needs to start; None where it is sufficient.

    OpenBLAS, which numpy loads, ends the process without an exception where it gets no memory.
    """
    limit = _soft_limit("RLIMIT_AS")
    if limit is None or limit >= LEAST_MEMORY:
        return None
    return (
        f"A command needs {LEAST_MEMORY:,} bytes of memory at least, and its limit is {limit:,}: raise it (ulimit -v)."
    )


def one_sentence(error: BaseException) -> str | None:
    """The message for an error of the system, on one line; None for any other error, which is a bug."""
    text = shortage(error)
    if text is None and isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}." if error.filename and error.strerror else str(error)
    return None if text is None else printable(text)


def _says(error: BaseException, signs: tuple[str, ...]) -> bool:
    """Whether a library's error, which has no errno, contains one of some texts."""
    if not isinstance(error, RuntimeError | ImportError | SystemError):
        return False
    text = str(error).lower()
    return any(sign in text for sign in signs)


def _limit(name: str) -> str:
    limit = _soft_limit(name)
    unit = " bytes" if name in ("RLIMIT_AS", "RLIMIT_FSIZE") else ""
    return "" if limit is None else f" (limit: {limit:,}{unit})"


def _soft_limit(name: str) -> int | None:
    try:
        import resource

        limit, _ = resource.getrlimit(getattr(resource, name))
    except (ImportError, AttributeError, OSError, ValueError):  # not on this system, or no memory to ask
        return None
    return None if limit == resource.RLIM_INFINITY else limit
