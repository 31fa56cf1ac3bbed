"""Where a source is: a folder, or a hub id that is fetched into huggingface_hub's cache."""

import os
import re
from pathlib import Path

from growth.errors import CheckpointError, MissingExtra

FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*"]


def resolve(source: str | Path) -> Path:
    """The local folder of a source.

    Raises:
        CheckpointError: neither a folder nor a hub id that can be had.
        MissingExtra: a hub id, and huggingface_hub is not installed.
    """
    if os.path.isdir(source):  # Path raises where a name is too long for a file system
        return Path(source)
    if not re.fullmatch(r"[\w.\-]+/[\w.\-]+", str(source)):
        raise CheckpointError(f"No checkpoint folder at {source}, and it is no hub id (organisation/name) either.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtra("huggingface_hub", "hub") from None
    try:
        return Path(snapshot_download(str(source), allow_patterns=FILES))
    except Exception as error:  # the hub's client raises many kinds; all mean that the source is not to be had
        raise CheckpointError(
            f"No checkpoint folder at {source}, and the hub does not give it: {str(error).splitlines()[0]}"
        ) from None
