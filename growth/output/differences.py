"""Describe how a file differs from its expected content."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from growth.checkpoints.untrusted import LARGEST_COMPANION, check_folder, parse_json, read_file
from growth.errors import CheckpointError

NAMED = 3  # keys that a description names
LONGEST = 60  # characters that are quoted of a value
ABSENT = "it is missing"


def keys_that_differ(found: Any, expected: Any, at: str = "") -> Iterator[str]:
    """Describe each value of a JSON document that differs from the expected one, with its key and both values.

    >>> list(keys_that_differ({"a": 1, "b": {"c": [1, 2]}}, {"b": {"c": [1, 3]}, "d": None}))
    ['a is 1 and should be absent', 'b.c.1 is 2 instead of 3', 'd is absent instead of null']
    """
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in [*found, *(expected.keys() - found.keys())]:
            where = f"{at}.{key}" if at else key
            if key not in expected:
                yield f"{where} is {_quoted(found[key])} and should be absent"
            elif key not in found:
                yield f"{where} is absent instead of {_quoted(expected[key])}"
            else:
                yield from keys_that_differ(found[key], expected[key], where)
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from keys_that_differ(one, other, f"{at}.{number}" if at else str(number))
    elif type(found) is not type(expected) or found != expected:
        yield f"{at or 'the value'} is {_quoted(found)} instead of {_quoted(expected)}"


def difference(found: bytes, expected: bytes) -> str | None:
    """Describe how a file differs from its expected content: by keys if both are JSON, else by the first byte.

    >>> difference(b'{"eps": 0.1}', b'{"eps": 1e-05}')
    'eps is 0.1 instead of 1e-05'
    >>> difference(b"abc", b"abd"), difference(b"abc", b"abc")
    ('it differs from byte 2 on', None)
    """
    if found == expected:
        return None
    keys = _by_key(found, expected)
    if keys:
        others = len(keys) - NAMED
        more = f", and {others:,} more key{'s' * (others > 1)}" if others > 0 else ""
        return ", ".join(keys[:NAMED]) + more
    return _from_byte(_common_prefix(found, expected))


def file_difference(folder: Path, name: str, expected: bytes) -> str | None:
    """Describe how a file of a folder differs from its expected content; links out of the folder are not followed."""
    path = folder / name
    try:
        if path.parent != folder:
            check_folder(path.parent, home=folder)
        return difference(read_file(path, LARGEST_COMPANION), expected)
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


class Comparison:
    """A stream that compares what is written to it with a file.

    Attributes:
        problem: how the file differs, complete once the stream is closed; None where it does not.
    """

    def __init__(self, path: Path):
        there = path.is_file()
        self.problem = None if there else ABSENT
        self._file = path.open("rb") if there else io.BytesIO()
        self._digest, self._count = xxhash.xxh3_128(), 0

    @property
    def xxh3_128(self) -> str:
        """The hash of the bytes written to the stream."""
        return self._digest.hexdigest()

    def write(self, content: Any) -> int:
        """Compare further bytes."""
        expected = memoryview(content).cast("B")
        self._digest.update(expected)
        if self.problem is None:
            found = self._file.read(len(expected))
            if found != expected:
                self.problem = _from_byte(self._count + _common_prefix(found, bytes(expected)))
        self._count += len(expected)
        return len(expected)

    def tell(self) -> int:
        """The number of bytes written to the stream."""
        return self._count

    def flush(self) -> None:
        """Do nothing: no bytes are kept."""

    def close(self) -> None:
        """End the comparison; further bytes in the file are a difference."""
        if not self._file.closed and self.problem is None and self._file.read(1):
            self.problem = _from_byte(self._count)
        self._file.close()

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _from_byte(count: int) -> str:
    return f"it differs from byte {count:,} on"


def _common_prefix(found: bytes, expected: bytes) -> int:
    """The length of the common prefix."""
    low, high = 0, min(len(found), len(expected))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if found[low:middle] == expected[low:middle] else (low, middle - 1)
    return low


def _by_key(found: bytes, expected: bytes) -> list[str]:
    try:
        return list(keys_that_differ(parse_json(found), parse_json(expected)))
    except (ValueError, CheckpointError):
        return []


def _quoted(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
