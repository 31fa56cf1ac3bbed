"""growth.json: the source and recipe of a grown checkpoint, and which of its values are copies, fresh or silent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numkong
import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from growth.algebra.expansion import FRESH, Expansion
from growth.architectures.config import LARGEST_AXIS, LARGEST_DEPTH
from growth.checkpoints.companions import HOMES, PLAIN
from growth.checkpoints.untrusted import check_folder, read_json
from growth.errors import CheckpointError
from growth.planning.plan import Plan
from growth.planning.tensor_map import TensorMap, true_runs
from growth.version import __version__

MANIFEST = "growth.json"
FORMAT = 1
MOST_GROWTHS = 64  # of the history
END = "\n}\n"  # of the text of growth.json


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide the bytes of a grown checkpoint."""
    return {"growth": __version__, **{package.__name__: package.__version__ for package in (np, numkong)}}


def manifest(
    plan: Plan,
    recipe: dict[str, Any],
    source: dict[str, Any],
    made_with: Mapping[str, str] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return the content of growth.json; docs/growth-json.md describes its entries.

    history: the growths that the source itself came from (`history_of`).
    made_with: the versions of packages, by default the installed ones.
    """
    return {
        "format": FORMAT,
        "versions": dict(made_with or versions()),
        "source": source,
        "history": list(history),
        "recipe": recipe,
        "seed": plan.seed,
        "preserving": plan.preserving,
        "steps": [vars(step) for step in plan.growth.steps],
        "sizes": {"before": sizes(plan.source), "after": sizes(plan.target)},
        "levels": dict(plan.mean_factors),
        "splits": dict(plan.growth.splits),
        "axes": {name: _axis(e) for name, e in plan.growth.expansions.items() if not e.is_identity},
        **({"query_heads": _axis(plan.growth.query_heads)} if plan.growth.query_heads is not None else {}),
        "layers": [layer.to_dict() for layer in plan.growth.layers],
        "tensors": {tensor_map.target: _tensor(plan, tensor_map) for tensor_map in plan.tensors},
    }


def sizes(architecture: Any) -> dict[str, int]:
    """Return the sizes of all axes, and the number of layers."""
    return {name: axis.size for name, axis in architecture.axes.items()} | {"layers": architecture.depth}


def labelled(sizes: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield sizes under the names that tables print: query heads beside KV heads.

    >>> dict(labelled({"heads": 2, "queries": 4, "layers": 3}))
    {'query heads': 8, 'KV heads': 2, 'layers': 3}
    """
    for name, size in sizes.items():
        if name == "heads":
            yield "query heads", size * sizes.get("queries", 1)
            yield "KV heads", size
        elif name != "queries":
            yield name, size


def _axis(expansion: Expansion) -> dict[str, Any]:
    return {"before": expansion.size, "after": len(expansion), "runs": list(map(list, expansion.runs()))}


def _tensor(plan: Plan, tensor_map: TensorMap) -> dict[str, Any]:
    def axes(spaces: Sequence[str]) -> list[str]:
        return [plan.source.axis(space) for space in spaces]

    weight = tensor_map.weight
    entry: dict[str, Any] = {
        "source": tensor_map.source.name or None,
        "axes": list(map(axes, weight.parts[0].dimensions)),
        "new_layer": tensor_map.new_layer,
        "made_by": tensor_map.what,
    }
    if len(weight.parts) > 1:
        parts = [axes(part.dimensions[weight.fused][len(weight.within) :]) for part in weight.parts]
        entry["fused"] = {"dimension": weight.fused, "within": axes(weight.within), "parts": parts}
    if weight.units:
        entry["units"] = list(weight.units)
    if plan.growth.mixing is not None and plan.growth.mixing.reinit and tensor_map.source.name:
        redrawn = [true_runs(dimension.fresh) for dimension in tensor_map.dimensions]
        entry |= {"redrawn": redrawn} if any(redrawn) else {}
    return entry


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, defer_build=True)  # most runs read no growth.json


Size = Annotated[int, Field(gt=0, le=LARGEST_AXIS)]
Count = Annotated[int, Field(ge=0, le=LARGEST_AXIS)]
Version = Annotated[str, Field(pattern=r"^[\w.+!\-]{1,64}$")]
FileName = Annotated[str, Field(pattern=rf"^({HOMES}/)?{PLAIN.pattern}$")]


class _AxisEntry(_Model):
    before: Size
    after: Size
    runs: list[Annotated[tuple[Count, Count, Count | None, float, float], Strict(strict=False)]]

    @model_validator(mode="after")
    def _whole(self) -> _AxisEntry:
        at = 0
        for start, stop, first, _, _ in self.runs:
            if start != at or stop <= start or (first is not None and first + stop - start > self.before):
                raise ValueError(
                    f"the run from {start} to {stop} does not fit an axis that grows from {self.before} to "
                    f"{self.after} units"
                )
            at = stop
        if at != self.after:
            raise ValueError(f"the runs end at unit {at}, and the axis has {self.after}")
        return self


class _LayerEntry(_Model):
    source: Annotated[int, Field(ge=0, lt=LARGEST_DEPTH)] | None
    silent: bool


class _StepEntry(_Model):
    operator: str
    preserving: bool
    why: str


class _TensorEntry(_Model):
    source: str | None
    axes: list[list[str]]
    redrawn: list[list[Annotated[tuple[Count, Count], Strict(strict=False)]]] = []
    made_by: str = ""
    xxh3_128: str = ""


class _Ancestor(_Model):
    """A growth that the source came from."""

    source: dict[str, Any]
    recipe: dict[str, Any]
    seed: Annotated[int, Field(ge=0, lt=2**64)]


class _Manifest(_Ancestor):
    """The entries of growth.json that growth reads."""

    versions: dict[str, Version] = {}
    history: Annotated[list[_Ancestor], Field(max_length=MOST_GROWTHS)] = []
    preserving: bool
    steps: list[_StepEntry]
    sizes: Annotated[dict[Literal["before", "after"], dict[str, Count]], Field(min_length=2)]
    levels: dict[str, float]
    axes: dict[str, _AxisEntry]
    query_heads: _AxisEntry | None = None
    layers: Annotated[list[_LayerEntry], Field(max_length=LARGEST_DEPTH)]
    tensors: dict[str, _TensorEntry]
    fingerprint: str = ""
    files: dict[FileName, str] = {}
    headers: dict[FileName, str] = {}
    itself: str = ""

    @model_validator(mode="after")
    def _agrees(self) -> _Manifest:
        for name, axis in self.axes.items():
            before, after = (self.sizes[when].get(name) for when in ("before", "after"))
            if (axis.before, axis.after) != (before, after):
                raise ValueError(
                    f"axis '{name}' grows from {axis.before} to {axis.after} under 'axes', and from {before} to "
                    f"{after} under 'sizes'"
                )
        sizes = (self.sizes["before"], self.sizes["after"])
        depth = self.sizes["after"].get("layers")
        if depth != len(self.layers):
            raise ValueError(f"there are {len(self.layers)} entries under 'layers', and {depth} layers under 'sizes'")
        for name in (name for each in sizes for name, size in each.items() if not size and name != "layers"):
            raise ValueError(f"axis '{name}' has no units under 'sizes'")
        expected = [each.get("heads", 0) * each.get("queries", 0) for each in sizes]
        if self.query_heads and [self.query_heads.before, self.query_heads.after] != expected:
            raise ValueError("the query heads have another number than heads and queries among the sizes")
        return self


class NewerFormat(CheckpointError):
    """A growth.json in a format that this version does not know."""


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the growth.json of a grown checkpoint, or None if there is none; docs/growth-json.md describes it.

    Raises:
        CheckpointError: it is malformed, or a link out of the folder, or a later version of growth wrote it in a
            format that this one does not know.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    check_folder(folder)
    content = read_json(path)
    account: dict[str, Any] = content if isinstance(content, dict) else {}
    stated = account.get("format", "missing")
    if type(stated) is not int or stated < 1:
        raise CheckpointError(
            f"{path} is not a valid growth.json: its format is {stated}, and must be a whole number from 1 to "
            f"{FORMAT}. Restore the file, or grow the checkpoint again."
        )
    if stated > FORMAT:
        raise NewerFormat(
            f"{path} has format {stated}, and growth {__version__} reads formats up to {FORMAT}. "
            f"{_writer(account)} wrote it: install that version, or a later one."
        )
    try:
        _Manifest.model_validate(account)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{path} is not a valid growth.json: {where or 'as a whole'}: {first['msg']}. Restore the file, or "
            "grow the checkpoint again."
        ) from None
    return account


def _writer(content: Mapping[str, Any]) -> str:
    versions = content.get("versions")
    version = versions.get("growth") if isinstance(versions, dict) else None
    return f"growth {version}" if isinstance(version, str) else "A later version of growth"


def history_of(folder: Path) -> list[dict[str, Any]]:
    """Return the growths that a folder came from, the first one first: source, recipe and seed of each.

    Empty if the folder has no growth.json, or another file of that name.

    Raises:
        NewerFormat: a later version of growth wrote it in a format that this one does not know.
    """
    try:
        told = read_manifest(folder)
    except NewerFormat:
        raise
    except CheckpointError:
        told = None
    if told is None:
        return []
    own = {key: told[key] for key in ("source", "recipe", "seed")}
    return [*told.get("history", ()), own][-MOST_GROWTHS:]


def expansion_from(axis: dict[str, Any]) -> Expansion:
    """Return the expansion that an entry of `axes` describes."""
    source = np.full(axis["after"], FRESH, np.int64)
    write, read = np.zeros(axis["after"]), np.zeros(axis["after"])
    for start, stop, first, run_write, run_read in axis["runs"]:
        if first is not None:
            source[start:stop] = np.arange(first, first + stop - start)
        write[start:stop], read[start:stop] = run_write, run_read
    return Expansion(axis["before"], source, write, read)


def dump(content: dict[str, Any]) -> str:
    """Return JSON with one line for each entry of the long tables."""
    lines = []
    for key, value in content.items():
        if key in ("tensors", "axes") and value:
            rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items())
            lines.append(f"  {json.dumps(key)}: {{\n{rows}\n  }}")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + END


def hash_of(content: str | bytes | memoryview) -> str:
    """Return the xxh3_128 of a text or of bytes."""
    return xxhash.xxh3_128_hexdigest(content.encode() if isinstance(content, str) else content)


def sealed(content: dict[str, Any]) -> str:
    """Return the text of growth.json with its own hash as the last entry.

    >>> print(sealed({"format": 1}), end="")
    {
      "format": 1,
      "itself": "188512cc1355921c3a1c747e79f4f700"
    }
    """
    text = dump(content)
    return f'{text.removesuffix(END)},\n  "itself": "{hash_of(text)}"{END}'


def is_sealed(text: str) -> bool:
    """Whether the text of a growth.json ends with the hash of everything before it.

    >>> is_sealed(sealed({"format": 1})), is_sealed(sealed({"format": 1}).replace("1", "2", 1))
    (True, False)
    """
    before, mark, end = text.rpartition(',\n  "itself": ')
    return bool(mark) and end == f'"{hash_of(before + END)}"{END}'


def reworded(text: str, other: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Return a growth.json with the explanations of another one, which another version of growth may have worded.

    files: the hash of each file whose wording differs too.
    """
    account: dict[str, Any] = json.loads(text)
    del account["itself"]
    if len(account["steps"]) == len(other["steps"]):
        for step, theirs in zip(account["steps"], other["steps"], strict=True):
            step["why"] = theirs["why"]
    for name, entry in account["tensors"].items():
        entry["made_by"] = other["tensors"].get(name, {}).get("made_by", entry["made_by"])
    account["fingerprint"] = other.get("fingerprint", "")
    account["files"] |= files
    return sealed(account)
