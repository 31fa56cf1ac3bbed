"""Companions: files that are copied with the weights from a source to the checkpoint grown from it.

They are the tokenizer, generation settings, chat templates, and what the licence requires to be passed on.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from growth.checkpoints.untrusted import LARGEST_COMPANION, check_folder, check_size, read_file
from growth.errors import CheckpointError

COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tekken.json", "vocab.json",
    "vocab.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
LICENCES = ("license", "licence", "notice", "use_policy")  # prefixes of names of files and folders, in any case
TEMPLATES = "additional_chat_templates"  # the folder in which transformers stores chat templates besides the default
PLAIN = re.compile(r"[\w.,+()' \-]+")  # names that growth.json can record
HOMES = rf"({TEMPLATES}|(?i:{'|'.join(LICENCES)})({PLAIN.pattern})?)"  # folders of companions
MOST = 256  # companions; published models have about ten
LARGEST_TOGETHER = 4 * LARGEST_COMPANION  # bytes of all companions


def companions(folder: Path) -> list[str]:
    """The names of the companions in a folder, relative to it; their content is not read.

    Raises:
        CheckpointError: a link leads elsewhere or nowhere, a name cannot be recorded, a folder is named as a file is,
            there are too many, or they are too large.
    """
    check_folder(folder)
    names = sorted(name for entry in os.listdir(folder) for name in _held(folder, entry))
    if len(names) > MOST:
        raise CheckpointError(
            f"{folder} has {len(names):,} licences and templates, and at most {MOST} are copied. Remove some."
        )
    left = LARGEST_TOGETHER
    for name in names:
        if not all(PLAIN.fullmatch(part) for part in name.split("/")):
            raise CheckpointError(
                f"{folder / name} has a name that cannot be recorded in growth.json: rename the file."
            )
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name} is a folder, and a file of this name is copied: put the file there, or rename it."
            )
        left -= check_size(folder / name, os.stat(folder / name).st_size, min(LARGEST_COMPANION, left))
    return names


def _held(folder: Path, entry: str) -> list[str]:
    """The names of the companions that an entry of a folder is, or holds."""
    is_licence, is_folder = entry.lower().startswith(LICENCES), (folder / entry).is_dir()
    if is_folder and (is_licence or entry == TEMPLATES):
        check_folder(folder / entry, home=folder)
        return [f"{entry}/{name}" for name in os.listdir(folder / entry) if is_licence or name.endswith(".jinja")]
    return [entry] if is_licence or entry in COMPANIONS else []


def kept_files(folder: Path) -> dict[str, bytes]:
    """Read the companions in a folder, by name relative to it.

    Raises:
        CheckpointError: as `companions`.
    """
    return {name: read_file(folder / name, LARGEST_COMPANION) for name in companions(folder)}
