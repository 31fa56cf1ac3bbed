"""Companions: the files that travel with the weights, from a source into what is grown from it.

Tokenizer, generation settings, chat templates, and what the licence asks to be passed on.
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
LICENCES = ("license", "licence", "notice", "use_policy")  # how a name begins, in any case
TEMPLATES = "additional_chat_templates"  # the folder in which transformers stores all chat templates but the default
PLAIN = re.compile(r"[\w.,+()' \-]+")  # names that are carried and written down
MOST = 256  # companions; published models have some ten
LARGEST_TOGETHER = 4 * LARGEST_COMPANION  # bytes


def companions(folder: Path) -> list[str]:
    """The names of the companions in a folder, relative to it; none of them is read.

    Raises:
        CheckpointError: a link that leads elsewhere or nowhere, a name that cannot be written down, too many, or too
            large.
    """
    check_folder(folder)
    names = [path.name for path in folder.iterdir() if path.name in COMPANIONS or _is_licence(path.name)]
    templates = folder / TEMPLATES
    if templates.is_dir():
        check_folder(templates, home=folder)
        names += [f"{TEMPLATES}/{path.name}" for path in templates.iterdir() if path.suffix == ".jinja"]
    names = sorted(name for name in names if (folder / name).is_file())
    if len(names) > MOST:
        raise CheckpointError(f"{folder} has {len(names):,} licences and templates; at most {MOST} are carried along.")
    left = LARGEST_TOGETHER
    for name in names:
        if not PLAIN.fullmatch(name.rpartition("/")[2]):
            raise CheckpointError(f"{folder / name} has a name that cannot be carried along: rename the file.")
        left -= check_size(folder / name, os.stat(folder / name).st_size, min(LARGEST_COMPANION, left))
    return names


def _is_licence(name: str) -> bool:
    return name.lower().startswith(LICENCES)


def kept_files(folder: Path) -> dict[str, bytes]:
    """The companions in a folder, by their names relative to it.

    Raises:
        CheckpointError: as `companions`.
    """
    return {name: read_file(folder / name, LARGEST_COMPANION) for name in companions(folder)}
