"""Foreign data: the one door through which files of strangers come in, and what they may hold.

A file is a regular one, of a bounded size, in its own folder. What it says is plain: objects with text keys,
lists, text, finite numbers, flags and null, not deeply nested. What is read further in need only ask for the
right type.
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
LARGEST_JSON = 100_000_000  # the safetensors library's limit of a header
# Memory goes by values, not by bytes: the worst of them, objects under keys of their own, take some 250 bytes each
# parsed. A header or growth.json has 8 to 14 of them a tensor; DeepSeek-V3 has 91,991 tensors.
LARGEST_COUNT = 2**22
LARGEST_FLAT = 2**19  # values that are not in objects or lists of a few each; no model has half as many tensors
EACH = 16  # values that an object or list has on average at most, beside these
LARGEST_FOLDER = 2**14  # entries of a checkpoint folder; a rank's file each, of the largest clusters
DEEPEST = 32  # levels of nesting; configs have 4, and Python's own limit would strike far from the cause
LARGEST_COMPANION = 128 << 20  # of the files beside the tensors; Gemma 3's tokenizer has 33 MB
LARGEST_INTEGER = 2**64  # no seed, size or offset of a file is beyond it, and floats of it are finite


def read_file(path: Path, largest: int) -> bytes:
    """The content of a regular file of at most `largest` bytes.

    Raises:
        CheckpointError: a pipe, device or folder, or a file above the limit.
        OSError: missing or unreadable.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would block until somebody writes
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path} is not a regular file, so it is not read.")
    with os.fdopen(descriptor, "rb") as file:
        check_size(path, found.st_size, largest)
        content = file.read(largest + 1)
    if len(content) > largest:
        raise CheckpointError(f"{path} grows while it is read: at most {largest:,} bytes are read.")
    return content


def check_size(path: Path, size: int, largest: int) -> int:
    """The size of a file of at most `largest` bytes.

    Raises:
        CheckpointError: it is larger.
    """
    if size > largest:
        raise CheckpointError(f"{path} has {size:,} bytes; at most {largest:,} are read.")
    return size


def check_folder(folder: Path, home: Path | None = None) -> None:
    """Holds a checkpoint folder, or a folder in it, to its own files: all that is in it is a regular file or a folder.

    A link may lead to a file of the same folder or, in a snapshot of the hub's cache
    (models--x/snapshots/y), to the same repository's models--x/blobs, and nowhere else.

    home: the checkpoint folder, where the folder is one in it.

    Raises:
        CheckpointError: a link that leads elsewhere or nowhere, a pipe, a device, too many entries.
    """
    home = (home or folder).resolve()
    allowed = [home]
    if home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--"):
        allowed.append(home.parent.parent / "blobs")
    with os.scandir(folder) as scan:
        entries = list(islice(scan, LARGEST_FOLDER + 1))
    if len(entries) > LARGEST_FOLDER:
        raise CheckpointError(
            f"{folder} has more than {LARGEST_FOLDER:,} entries, the most that are read. Put the checkpoint in a "
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
        raise CheckpointError(f"{path} holds no JSON object.")
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
    """Strict, plain JSON: no duplicate keys, no NaN, no numbers that overflow, no half characters, few values.

    Raises:
        ValueError: anything else.

    >>> parse_json(b'{"a": [1, 2.5, null]}')
    {'a': [1, 2.5, None]}
    >>> parse_json(b'{"a": NaN}')
    Traceback (most recent call last):
    ...
    ValueError: NaN is no JSON number
    """
    flat, nested = content.count(b","), content.count(b"[") + content.count(b"{")  # every value stands behind one
    if flat + nested > LARGEST_COUNT:
        raise ValueError(f"it has more than {LARGEST_COUNT:,} values, and no more are read")
    if flat > LARGEST_FLAT + EACH * nested:
        raise ValueError(f"it has an object or list of more than {LARGEST_FLAT:,} values, and no more are read")
    try:
        text = content.decode("utf-8")
        result = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check_plain(result)
    return result


def check_plain(value: Any) -> None:
    """Raises ValueError unless a value is plain data, whatever parser it comes from.

    >>> check_plain({"a": float("inf")})
    Traceback (most recent call last):
    ...
    ValueError: inf is no finite number
    """
    level: Iterable[Any] = [value]
    for _ in range(DEEPEST + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                for key in item:
                    if type(key) is not str:
                        raise ValueError(f"the key {str(key)[:80]!r} is no text")
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
            raise ValueError(f"{value[:80]!a} holds half a character (a lone surrogate)")
    elif kind is float:
        if not math.isfinite(value):
            raise ValueError(f"{value} is no finite number")
    elif kind is int:
        if not -LARGEST_INTEGER < value < LARGEST_INTEGER:
            raise ValueError("a whole number is beyond 64 bits")
    elif kind is not bool and value is not None:
        raise ValueError(f"a {kind.__name__} is neither text, number, flag, null, list nor object")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > LARGEST_FLAT:
        raise ValueError(f"an object has {len(pairs):,} keys; at most {LARGEST_FLAT:,} are read")
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate keys in one object")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
