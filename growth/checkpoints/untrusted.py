"""Validate untrusted files in one place, before anything else reads them.

A file must be a regular one, of a bounded size, in its own folder. JSON must be plain: objects with text keys, lists,
text, finite numbers, booleans and null, not deeply nested. Code that reads the result only has to check types.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from growth.errors import CheckpointError

LARGEST_CONFIG = 1 << 20  # bytes; configs have some kilobytes, with labels of classes some hundred
LARGEST_JSON = 100_000_000  # bytes, as the safetensors library limits a header
# Memory depends on values, not on bytes: the worst, objects under keys of their own, take about 250 bytes each when
# parsed. A header or growth.json has 8 to 14 values per tensor; DeepSeek-V3 has 91,991 tensors.
LARGEST_COUNT = 2**22  # values of a JSON file
LARGEST_FLAT = 2**19  # values in a single object or list; no model has half as many tensors
EACH = 16  # values per object or list on average, beyond LARGEST_FLAT
LARGEST_FOLDER = 2**14  # entries of a folder: one file per rank on the largest clusters
DEEPEST = 32  # levels of nesting; configs have 4, and Python's own limit would be reached far from the cause
LARGEST_COMPANION = 128 << 20  # bytes of one file beside the tensors; Gemma 3's tokenizer has 33 MB
LARGEST_INTEGER = 2**64  # above every seed, size and offset, and finite as a float


def read_file(path: Path, largest: int) -> bytes:
    """Read a regular file of at most `largest` bytes.

    Raises:
        CheckpointError: it is a pipe, a device or a folder, or larger.
        OSError: it is missing or unreadable.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would block until another process writes
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise CheckpointError(
            f"{path} is not a regular file. Replace it by one: pipes, devices and folders are not read."
        )
    with os.fdopen(descriptor, "rb") as file:
        check_size(path, found.st_size, largest)
        content = file.read(largest + 1)
    if len(content) > largest:
        raise CheckpointError(f"{path} grew while it was read, and at most {largest:,} bytes are read.")
    return content


def check_size(path: Path, size: int, largest: int) -> int:
    """Return a file's size if it is at most `largest` bytes.

    Raises:
        CheckpointError: the file is larger.
    """
    if size > largest:
        raise CheckpointError(f"{path} has {size:,} bytes; at most {largest:,} are read.")
    return size


def check_folder(folder: Path, home: Path | None = None) -> None:
    """Check that a checkpoint folder, or a folder in it, contains only regular files and folders of its own.

    A link may lead to a file of the same folder or, in a snapshot of the hub's cache (models--x/snapshots/y), to the
    blobs of the same repository (models--x/blobs).

    Args:
        folder: the folder to check.
        home: the checkpoint folder, if `folder` is inside it.

    Raises:
        CheckpointError: a link leads elsewhere or nowhere, an entry is a pipe or a device, or there are too many.
    """
    home = (home or folder).resolve()
    allowed = [home]
    if home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--"):
        allowed.append(home.parent.parent / "blobs")
    with os.scandir(folder) as scan:
        entries = list(islice(scan, LARGEST_FOLDER + 1))
    if len(entries) > LARGEST_FOLDER:
        raise CheckpointError(
            f"{folder} has more than {LARGEST_FOLDER:,} entries, the limit of a folder. Put the checkpoint in a "
            "folder of its own."
        )
    for entry in entries:
        _check_entry(entry, allowed)


def _check_entry(entry: os.DirEntry[str], allowed: Sequence[Path]) -> None:
    if entry.is_symlink():
        target = Path(os.path.realpath(entry.path))
        if not any(target.is_relative_to(place) for place in allowed):
            raise CheckpointError(
                f"{entry.path} is a link to {target}, outside the checkpoint's folder. Put the file itself there."
            )
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        found = f"is a link to {os.readlink(entry.path)}, which" if entry.is_symlink() else ""
        raise CheckpointError(
            f"{entry.path} {found} cannot be read: {error.strerror}. Put the file itself there, or remove the link."
        ) from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise CheckpointError(f"{entry.path} is neither a file nor a folder. Remove it from the checkpoint.")


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a config.json.

    Raises:
        CheckpointError: the file is missing, malformed, too large, or not an object.
    """
    config = read_json(path, LARGEST_CONFIG)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} does not contain a JSON object. Restore the model's own file.")
    return config


def read_json(path: Path, largest: int = LARGEST_JSON) -> Any:
    """The content of a JSON file of at most `largest` bytes, as `parse_json` reads it.

    Raises:
        CheckpointError: the file is missing, malformed or too large.
    """
    try:
        return parse_json(read_file(path, largest))
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing. Name a folder that holds a checkpoint, with its {path.name}, or restore the file."
        ) from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from None


def parse_json(content: bytes) -> Any:
    """Parse strict, plain JSON: no duplicate keys, no NaN, no overflowing numbers, no lone surrogates, few values.

    Raises:
        ValueError: the content is anything else.

    >>> parse_json(b'{"a": [1, 2.5, null]}')
    {'a': [1, 2.5, None]}
    >>> parse_json(b'{"a": NaN}')
    Traceback (most recent call last):
    ...
    ValueError: NaN is not a JSON number
    """
    flat, nested = content.count(b","), content.count(b"[") + content.count(b"{")  # every value follows one of them
    if flat + nested > LARGEST_COUNT:
        raise ValueError(f"it has more than {LARGEST_COUNT:,} values, the limit")
    if flat > LARGEST_FLAT + EACH * nested:
        raise ValueError(f"it has an object or list of more than {LARGEST_FLAT:,} values, the limit")
    try:
        result = json.loads(content.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check_plain(result)
    return result


def check_plain(value: Any) -> None:
    """Raise ValueError unless a value, from whatever parser, is plain data.

    >>> check_plain({"a": float("inf")})
    Traceback (most recent call last):
    ...
    ValueError: inf is not a finite number
    """
    level: Iterable[Any] = [value]
    for _ in range(DEEPEST + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                for key in item:
                    if type(key) is not str:
                        raise ValueError(f"the key {str(key)[:80]!r} is not a string")
                    _check_scalar(key)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            else:
                _check_scalar(item)
        if not below:
            return
        level = below
    raise ValueError(f"it is nested too deeply: at most {DEEPEST} levels are read")


def _check_scalar(value: Any) -> None:
    kind = type(value)
    if kind is str:
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"{value[:80]!a} contains a lone surrogate")
    elif kind is float:
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
    elif kind is int:
        if not -LARGEST_INTEGER < value < LARGEST_INTEGER:
            raise ValueError("an integer exceeds 64 bits")
    elif kind is not bool and value is not None:
        raise ValueError(f"a {kind.__name__} is not a string, number, boolean, null, list or object")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > LARGEST_FLAT:
        raise ValueError(f"an object has {len(pairs):,} keys; at most {LARGEST_FLAT:,} are read")
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate keys in one object")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
