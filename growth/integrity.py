"""verify_weights: is a grown checkpoint, bit for bit, what its recipe makes of its source?

Every output tensor is computed again from the source by the plan and compared with the bytes on disk, streaming;
every other file is held to the hash that growth.json has of it, and growth.json to its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import local
from typing import Any

from growth.api import How, planned
from growth.checkpoint import TensorInfo
from growth.contents import sources_of
from growth.errors import GrowthError, VerificationError
from growth.execution import Disk, Grower, blocks_of, measure, silent
from growth.foreign import LARGEST_JSON
from growth.hands import Meter, Progress, hands
from growth.manifest import MANIFEST, dump, hash_of, read_manifest
from growth.opening import open_checkpoint
from growth.planning import Plan
from growth.reading import Files
from growth.recipe import Recipe, recipe_of
from growth.row import Row
from growth.workspace import Workspace
from growth.writing import hash_of_file


@dataclass(frozen=True)
class WeightsReport:
    """What `verify_weights` found.

    source, grown: the folders.
    tensors: how many were compared; size: their bytes.
    problems: what differs, by the name of a tensor or a file.
    """

    source: str
    grown: str
    tensors: int
    size: int
    problems: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether nothing differs."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The findings as JSON-able values."""
        return {"passed": self.passed, **asdict(self)}

    def verdict(self) -> str:
        """One sentence."""
        what = f"{self.tensors:,} tensors, {self.size / 1e9:.2f} GB"
        if self.passed:
            return f"Every bit is what the recipe makes of the source: {what}, and every other file."
        return (
            f"{len(self.problems)} of the files and tensors differ from what the recipe makes of the source ({what})."
        )


def verify_weights(
    source: str | Path,
    grown: str | Path,
    recipe: How | None = None,
    *,
    progress: Progress | None = None,
    forks: bool = False,
) -> WeightsReport:
    """Computes every output tensor again and names each that differs in a bit, and each other file that does.

    recipe: as for `grow`; by default the one in growth.json, which has none where operators were given in Python.
    progress: called with (phase, bytes done, bytes in all).
    forks: as for `grow`.

    Raises:
        VerificationError: there is no growth.json, or it holds no recipe and none is given.
        GrowthError: the recipe does not apply to this source, or a checkpoint cannot be read.

    >>> import growth, tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "grown"
    >>> plan = growth.grow("phi-mini", "examples/phi-mini", folder)
    >>> growth.verify_weights("examples/phi-mini", folder).passed
    True
    """
    source, grown = Path(source), Path(grown)
    told = read_manifest(grown)
    if told is None:
        raise VerificationError(f"{grown} has no growth.json of this format, so nothing says how it was made.")
    problems = _files(grown, told)
    try:
        found = open_checkpoint(grown).tensors
    except GrowthError as error:
        return WeightsReport(str(source), str(grown), 0, 0, problems | {"headers": str(error)})
    dtypes = {info.dtype for info in found.values()}
    made_by = recipe if recipe is not None else _recipe(grown, told)
    try:
        plan, _, _ = planned(made_by, source, dtypes.pop() if len(dtypes) == 1 else None, told["seed"])
    except GrowthError as error:
        if MANIFEST not in problems:
            raise
        return WeightsReport(str(source), str(grown), 0, 0, problems | {"recipe": str(error)})
    problems |= _shapes(plan, found)
    same = [row for row in plan.rows if row.target in found and row.target not in problems]
    problems |= _compare(plan, same, found, progress, forks=forks)
    return WeightsReport(str(source), str(grown), len(same), sum(row.bytes for row in same), problems)


def _recipe(grown: Path, told: Mapping[str, Any]) -> Recipe:
    content = told["recipe"]
    if "steps" not in content:
        raise VerificationError(
            f"{grown} was made by operators given in Python, which growth.json does not hold: give them as `recipe`."
        )
    return recipe_of(content, MANIFEST)


def _files(grown: Path, told: Mapping[str, Any]) -> dict[str, str]:
    """Files that are missing, unknown, or not what growth.json says."""
    problems: dict[str, str] = {}
    if hash_of(dump({key: value for key, value in told.items() if key != "itself"})) != told.get("itself") or (
        (grown / MANIFEST).read_text(encoding="utf-8") != dump(dict(told))
    ):
        problems[MANIFEST] = "it is not as it was written"
    known = {MANIFEST, *told.get("files", {}), *told.get("headers", {})}
    for path in sorted(grown.iterdir()):
        if path.name not in known:
            problems[path.name] = "growth.json does not know this file"
    for name, digest in told.get("files", {}).items():
        if not (grown / name).is_file():
            problems[name] = "it is missing"
        elif hash_of_file(grown / name) != digest:
            problems[name] = "its bytes are not those that were written"
    for name, digest in told.get("headers", {}).items():
        if not (grown / name).is_file():
            problems[name] = "it is missing"
        elif hash_of(_header(grown / name)) != digest:
            problems[name] = "its header is not the one that was written"
    return problems


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        prefix = file.read(8)
        return prefix + file.read(min(int.from_bytes(prefix, "little"), LARGEST_JSON))


def _shapes(plan: Plan, found: Mapping[str, TensorInfo]) -> dict[str, str]:
    wanted = {row.target: (row.dtype, row.shape) for row in plan.rows}
    problems = dict.fromkeys(found.keys() - wanted.keys(), "the recipe does not make it")
    for name, (dtype, shape) in wanted.items():
        if name not in found:
            problems[name] = "it is missing"
        elif (found[name].dtype, found[name].shape) != (dtype, shape):
            problems[name] = (
                f"it is {found[name].dtype} {list(found[name].shape)}, the recipe makes {dtype} {list(shape)}"
            )
    return problems


def _compare(
    plan: Plan, rows: Sequence[Row], found: Mapping[str, TensorInfo], progress: Progress | None, *, forks: bool
) -> dict[str, str]:
    source = Files(sources_of(rows))
    stored = Files(found)
    meter = Meter("compare", sum(row.bytes for row in rows), progress)
    thread = local()

    @silent()
    def difference(row: Row) -> str | None:
        """Where a tensor first differs."""
        workspace = thread.__dict__.setdefault("workspace", Workspace())
        disk = Disk(source)
        grower = Grower(row, disk, plan.seed, measure(row, disk, workspace), workspace)
        place = found[row.target]
        fill = stored.filling(place)
        for start, stop in blocks_of(row):
            expected = grower.bytes(start, stop)
            actual = memoryview(bytearray(len(expected)))
            fill(start, stop, [actual])
            if actual != expected:
                meter.add(place.bytes - start * place.row_bytes)
                return f"its bytes differ from the recipe's between rows {start} and {stop - 1}"
            meter.add(len(expected))
        return None

    with hands(forks=forks) as many:
        differences = many.run([partial(difference, row) for row in rows], meter)
    return {row.target: text for row, text in zip(rows, differences, strict=True) if text is not None}
