"""What a source's own model card says of its licence and origin, which the card of a grown model repeats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from growth.checkpoints.untrusted import check_folder, read_file
from growth.errors import CheckpointError

CARD = "README.md"
LARGEST = 1 << 20  # bytes
FRONT = re.compile(r"\A---\r?\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
KEYS = {  # of the metadata, and what a value looks like; anything else is left out
    "license": r"[A-Za-z][\w.+\-]{0,63}",
    "license_name": r"[A-Za-z][\w.+\-]{0,63}",
    "license_link": r"[A-Za-z][\w.:/+\-]{0,199}",
    "base_model": r"\w[\w.\-]{0,95}/[\w.\-]{1,95}",
}


def source_metadata(folder: Path) -> Mapping[str, str]:
    """The licence and the base model that the model card of a folder states; empty if it states none.

    Only single values of the expected form are read, line by line: a card is anyone's text.

    Raises:
        CheckpointError: the folder has links out of it.
    """
    check_folder(folder)
    try:
        found = FRONT.match(read_file(folder / CARD, LARGEST).decode())
    except (CheckpointError, OSError, UnicodeDecodeError):
        return {}
    return stated(found[1]) if found else {}


def stated(front: str) -> Mapping[str, str]:
    r"""The known keys of a card's metadata.

    >>> stated("license: apache-2.0\nbase_model:\n- 'Qwen/Qwen3-0.6B'\ntags: [x]\nlicense_link: <b>\n")
    {'license': 'apache-2.0', 'base_model': 'Qwen/Qwen3-0.6B'}
    """
    matches = {
        key: re.search(rf"^{key}:(?:[ \t]*\r?\n[ \t]*-)?[ \t]*([\"']?)({form})\1[ \t]*\r?$", front, re.MULTILINE)
        for key, form in KEYS.items()
    }
    return {key: match[2] for key, match in matches.items() if match}
