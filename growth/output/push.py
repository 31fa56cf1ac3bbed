"""Upload a grown folder to the Hugging Face Hub, as it was grown."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from growth.checkpoints.hub import HUB_ID
from growth.checkpoints.open import open_stored
from growth.checkpoints.published import hash_of_tensor
from growth.errors import CheckpointError, MissingExtra
from growth.output.finished import hash_of_file
from growth.planning.manifest import MANIFEST, is_sealed, read_manifest


@dataclass(frozen=True)
class Pushed:
    """What was uploaded.

    repository, url: where to.
    commit: the commit that holds it.
    files: the names of the files.
    """

    repository: str
    url: str
    commit: str
    files: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def push(folder: str | Path, repository: str, *, private: bool = False, message: str | None = None) -> Pushed:
    """Upload a folder that `grow` made to a repository of the hub, which is created if it does not exist.

    Only the files that growth.json lists are uploaded, in one commit. The token is that of `hf auth login` or HF_TOKEN.

    private: whether a new repository is private.
    message: of the commit.

    Raises:
        CheckpointError: the folder is incomplete, was changed after it was grown, or has no safetensors; the name is
            not that of a repository; or the hub refuses it.
        MissingExtra: huggingface_hub is not installed.
    """
    folder = Path(folder).expanduser()
    match = HUB_ID.fullmatch(repository)
    if match is None or match["revision"]:
        raise CheckpointError(f"'{repository}' is not the name of a repository: write organisation/name.")
    files = _files(folder)
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise MissingExtra("huggingface_hub", "hub") from None
    api = HfApi()
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message=message or "Add a grown model",
        )
    except Exception as error:  # the hub's client raises many kinds; all mean that the upload failed
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"The hub does not take {folder} as {repository}: {reason} If you are not logged in: hf auth login."
        ) from None
    return Pushed(repository, str(done.commit_url).rpartition("/commit/")[0], str(done.oid), files)


def _files(folder: Path) -> tuple[str, ...]:
    """The names of a grown folder's files.

    Raises:
        CheckpointError: it is incomplete, or was changed after it was grown.
    """
    stored = open_stored(folder).tensors
    account = read_manifest(folder)
    other = f"To upload another folder: hf upload REPOSITORY {folder}."
    if account is None:
        raise CheckpointError(f"{folder} has no {MANIFEST}: it is not a folder that growth made. {other}")
    if not account["headers"]:
        raise CheckpointError(f"{folder} holds no safetensors, which the hub expects: grow it without --format dcp.")
    if not is_sealed((folder / MANIFEST).read_text()):
        raise CheckpointError(f"{folder / MANIFEST} was changed after the folder was grown. {other}")
    for name, recorded in account["files"].items():
        if not (folder / name).is_file() or hash_of_file(folder / name) != recorded:
            raise CheckpointError(f"{folder / name} was removed or changed after the folder was grown. {other}")
    for name, entry in account["tensors"].items():
        if name not in stored:
            raise CheckpointError(f"Tensor '{name}' was removed from {folder} after it was grown. {other}")
        if hash_of_tensor(stored[name]) != entry["xxh3_128"]:
            raise CheckpointError(f"Tensor '{name}' in {stored[name].path} was changed after it was grown. {other}")
    return (*account["files"], *account["headers"], MANIFEST)
