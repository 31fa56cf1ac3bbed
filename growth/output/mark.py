"""The mark of a staging folder: which run it belongs to, and the names of the files that the run makes there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import PurePosixPath

from growth.checkpoints.untrusted import parse_json
from growth.output.writer_rank import WriterRank
from growth.runtime.directory import DRAFT

MARK, LOCK, CHECKPOINT, SELECTED = "growth-staging.json", "lock", "checkpoint", "selected"
LONGEST_NAME = 255  # bytes, on all common file systems
VERSION = 1
START = f'{{\n "growth_staging": {VERSION},'.encode()  # the first bytes of a mark


@dataclass(frozen=True)
class Mark:
    """The content of a staging folder's mark.

    Attributes:
        plan: the fingerprint of the run.
        parts: the number of processes that share it.
        files: the name of every file of the output, and of those that exist only while it is written.
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
        """The mark that `to_bytes` stored.

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
    def locks(self) -> list[str]:
        """The name of each process's lock."""
        return [f"lock-{rank}" for rank in WriterRank.all(self.parts)]

    @property
    def notes(self) -> list[str]:
        """The names of all files in which processes record what they did, and of their locks."""
        written = [
            name
            for rank in WriterRank.all(self.parts)
            for name in (f"source-{rank}", f"done-{rank}.jsonl", f"finished-{rank}")
        ]
        return [*written, *(name + DRAFT for name in written), *self.locks]

    @property
    def all_files(self) -> set[str]:
        """The names of all files that the run makes in the staging folder."""
        output = (f"{place}/{name}" for place in (CHECKPOINT, SELECTED) for name in self.files)
        return {MARK, LOCK, *self.notes, *output}


def _is_inside(name: str) -> bool:
    """Whether a relative name leads to a file in the folder, or in a directory of it."""
    parts = PurePosixPath(name).parts
    known = "\0" not in name and "/".join(parts) == name and not {"..", "/"} & set(parts)
    return known and 1 <= len(parts) <= 2 and all(len(os.fsencode(part)) <= LONGEST_NAME for part in parts)
