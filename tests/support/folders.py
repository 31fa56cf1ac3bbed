"""What a folder holds, to compare it with what another holds or with what it held."""

import os
import stat
from pathlib import Path


def state(folder):
    """Everything below a folder that a command could change: kinds, links, contents, inodes and times."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if stat.S_ISREG(kind) else None
        found[str(path.relative_to(folder))] = (kind, status.st_ino, status.st_mtime_ns, content)
    return found


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
