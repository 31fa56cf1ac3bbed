"""Locate a source: a local folder, or a hub id that is downloaded into huggingface_hub's cache."""

import os
import re
from difflib import get_close_matches
from pathlib import Path

from growth.checkpoints.companions import COMPANIONS, LICENCES
from growth.errors import CheckpointError, ConfigError, MissingExtra

ANY_CASE = ["".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in name) + "*" for name in LICENCES]
TEXTS = [name for name in COMPANIONS if name.endswith(".txt")]
FILES = ["*.json", "*.safetensors", "README.md", *TEXTS, "*.model", "*.jinja", *ANY_CASE]
ELSEWHERE = ["*/*.json", "*/*.safetensors", "*/*.model", "consolidated*"]  # other copies of the same model
COMMIT = re.compile(r"[0-9a-f]{40}")
CACHED = "models--"  # prefix of a repository's folder in the hub's cache, whose name has "--" for "/"
HUB = "hf://"  # in front of a hub id that is also the name of a folder
EXAMPLE = "examples/phi-mini"  # the shipped checkpoint: in the installed package, or beside it in a source tree
NEARLY = 0.9  # how alike a mistyped name of it is
WHY = {  # by the class of the hub client's error
    "GatedRepoError": "it is gated. Accept its terms at {page}, and log in: hf auth login",
    "RepositoryNotFoundError": "it does not exist, or it is private. Correct the name, or log in: hf auth login",
    "RevisionNotFoundError": "there is no such revision. Choose one of {page}/commits/main",
    "LocalEntryNotFoundError": "the hub cannot be reached, and its cache has no copy. Check the connection, or name a "
    "folder.",
}
HUB_ID = re.compile(r"(?P<name>[\w.\-]+/[\w.\-]+)(@(?P<revision>(?!.*\.\.)[\w.+\-/]+))?", re.ASCII)


def resolve(source: str | Path) -> Path:
    """Return the local folder of a source, from which transformers can load it; download it where it is a hub id.

    Args:
        source: a folder, or a hub id with or without a revision (organisation/name@revision). A revision is a branch, a
            tag or a commit. What begins like a path of this machine is never looked up on the hub; `hf://` in front of
            an id always is. `examples/phi-mini` is the shipped checkpoint, wherever the command runs.

    Raises:
        CheckpointError: the source is neither a folder nor a hub id that can be downloaded.
        MissingExtra: the source is a hub id, and huggingface_hub is not installed.

    >>> resolve("examples/phi-mini").name
    'phi-mini'
    """
    return _folder(source, FILES)


def config_file(model: str | Path) -> Path:
    """Return the config.json of a model: the file itself, that of a folder, or that of a hub id, downloaded alone.

    Raises:
        CheckpointError, MissingExtra: as for `resolve`.
        ConfigError: there is no such file.

    >>> config_file("examples/phi-mini").name
    'config.json'
    """
    named = os.path.expanduser(model)
    is_file = os.path.isfile(named) or (named.endswith(".json") and not os.path.isdir(named))
    path = Path(named) if is_file else _folder(model, ["config.json"]) / "config.json"
    if not os.path.isfile(path):
        raise ConfigError(f"There is no {path}. Name a config.json, a folder that holds it, or a hub id.")
    return path


def _folder(source: str | Path, files: list[str]) -> Path:
    """The local folder of a source, with these files at least."""
    source = os.path.expanduser(source)
    if os.path.isdir(source):  # Path raises where a name is too long for a file system
        return Path(source)
    if os.path.normpath(source) == EXAMPLE:
        here = Path(__file__).parents[1]
        return next(home / EXAMPLE for home in (here, here.parent) if (home / EXAMPLE).is_dir())
    if os.path.isfile(source):
        raise CheckpointError(
            f"{source} is a file, and a checkpoint is a folder. Name the folder that holds config.json and the weights."
        )
    match = HUB_ID.fullmatch(source.removeprefix(HUB))
    if match is None:
        raise CheckpointError(
            f"No checkpoint folder at {source}, and it is not a hub id either (organisation/name or "
            f"organisation/name@revision).{_like(source)}"
        )
    if not source.startswith(HUB) and (near := _looks_local(source)):
        raise CheckpointError(
            f"No checkpoint folder at {source}. It was not looked up on the hub, because {near}.{_like(source)}"
            f"{'' if source.startswith('.') else f' If it is a hub id, write {HUB}{source}.'}"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtra("huggingface_hub", "hub") from None
    name, revision = match["name"], match["revision"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files, ignore_patterns=ELSEWHERE))
    except Exception as error:  # the hub's client raises many kinds; all mean that the download failed
        at = f" at revision {revision}" if revision else ""
        raise CheckpointError(
            f"No checkpoint folder at {source}, and {name}{at} cannot be downloaded from the hub: {_why(error, name)}"
        ) from None


def _why(error: Exception, name: str) -> str:
    """Why a repository cannot be downloaded, and what to do."""
    known = next((WHY[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in WHY), None)
    if known is not None:
        return known.format(page=f"https://huggingface.co/{name}")
    reason = str(error).splitlines() or [type(error).__name__]
    return f"{reason[0].rstrip('.')}. Try again, or name a folder."


def _looks_local(source: str) -> str:
    """Why a name that could be a hub id is a path of this machine; empty if it is not."""
    if get_close_matches(source, [EXAMPLE], cutoff=NEARLY):
        return f"it is much like {EXAMPLE}, the shipped checkpoint"
    first, _, rest = source.partition("/")
    if first in (".", ".."):
        return f"it begins with '{first}/'"
    if os.path.isdir(first):
        return f"the folder '{first}' exists here"
    near = [name for name in _beside(Path(first)) if os.path.isdir(os.path.join(name, rest))]
    return f"the folder '{near[0]}/{rest}' exists here" if near else ""


def _like(source: str) -> str:
    """A question that names a checkpoint whose path is nearly this one; empty if there is none."""
    if source == Path(EXAMPLE).name:
        return f" Did you mean {EXAMPLE}, the shipped checkpoint?"
    found = Path()
    for part in Path(source).parts:
        exact = [part] if os.path.isdir(found / part) else _beside(found / part)
        if not exact:
            return ""
        found /= exact[0]
    return f" Did you mean {found}?" if (found / "config.json").exists() else ""


def _beside(path: Path) -> list[str]:
    """The names of folders in the same place that are nearly that of a path, the nearest first."""
    try:
        names = [entry.name for entry in os.scandir(path.parent) if entry.is_dir()]
    except (OSError, ValueError):  # a name that no file system takes
        return []
    return get_close_matches(path.name, names)


def hub_snapshot(folder: Path) -> tuple[str, str] | None:
    """The hub id and the commit of a folder in huggingface_hub's cache; None for any other folder.

    >>> hub_snapshot(Path("hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de289a04d12100db370d81485cdf75e47ca"))
    ('Qwen/Qwen3-0.6B', 'c1899de289a04d12100db370d81485cdf75e47ca')
    """
    folder = folder.resolve()
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not (repository.startswith(CACHED) and COMMIT.fullmatch(folder.name)):
        return None
    return repository.removeprefix(CACHED).replace("--", "/"), folder.name
