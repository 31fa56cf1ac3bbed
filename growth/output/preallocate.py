"""Space for an output: checked, then taken by files of their full size, before anything is computed."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from growth.errors import CheckpointError
from growth.output.shards import Shard
from growth.runtime.directory import Directory, write

PREALLOC_STEP = 1 << 20  # bytes that are preallocated first; each further step is twice as large
PREALLOC_TIMEOUT = 0.01  # seconds: a step that takes longer writes the space instead of reserving it
UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.ENODEV)


def refuse_output(output: Path, needed: int) -> None:
    """Raise CheckpointError where `output` exists, or its file system has less than `needed` bytes free."""
    if output.exists() or output.is_symlink():
        raise CheckpointError(f"{output} exists already. Choose another --output, or remove it first.")
    home = next(parent for parent in output.absolute().parents if parent.exists())
    if not home.is_dir():
        raise CheckpointError(
            f"{output} cannot be created, because {home} is not a directory. Choose another --output."
        )
    if not os.access(home, os.W_OK):
        raise CheckpointError(f"{output} cannot be created, because {home} is not writable. Choose another --output.")
    free = shutil.disk_usage(home).free
    if free < needed:
        raise CheckpointError(
            f"{output} needs {needed / 1e9:.2f} GB and {home} has {free / 1e9:.2f} GB free. "
            "Free some, or choose a smaller --dtype."
        )


def allocate(folder: Directory, shards: Sequence[Shard]) -> dict[str, bool]:
    """Make the files that an earlier run did not make, at their full size and with their headers.

    Returns:
        Whether each file is new, by name: a new file reads as zero behind its header.

    Raises:
        CheckpointError: the system does not allow it, or has no space.
    """
    new = [shard for shard in shards if not _was_begun(folder, shard)]
    try:
        for shard in new:
            with folder.new(shard.name) as descriptor:
                write(descriptor, memoryview(shard.header), 0)
                os.ftruncate(descriptor, shard.size)
        _preallocate(folder, new)
    except OSError as error:
        raise CheckpointError(f"{folder.path} cannot hold the output: {error.strerror}. Free some space.") from None
    return {shard.name: shard in new for shard in shards}


def _was_begun(folder: Directory, shard: Shard) -> bool:
    """Whether an earlier run made this file, and it has no other hard link."""
    found = folder.status(shard.name)
    return found is not None and found.st_nlink == 1 and shard.is_in(folder)


def _preallocate(folder: Directory, shards: Iterable[Shard]) -> None:
    """Reserve space on disk, so that nobody else takes it and each file lies in one piece.

    Preallocation stops where the file system does not support it, or where it takes as long as writing does.
    """
    for shard in shards:
        with folder.opened(shard.name, os.O_WRONLY) as descriptor:
            start, step = 0, PREALLOC_STEP
            while start < shard.size:
                began = time.perf_counter()
                try:
                    os.posix_fallocate(descriptor, start, min(step, shard.size - start))
                except OSError as error:
                    if error.errno in UNSUPPORTED:
                        return
                    raise
                if time.perf_counter() - began > PREALLOC_TIMEOUT:
                    return
                start, step = start + step, 2 * step
