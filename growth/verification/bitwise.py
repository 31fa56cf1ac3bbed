"""verify_weights: is a grown checkpoint, bit for bit, what its recipe makes of its source?

The source, the recipe and the seed decide every byte of a grown folder. All bytes are computed again, by the code that
writes them, and compared with what the folder holds. What growth.json says is compared too, and never believed: if
something has to be taken from it because it was not given, the report says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from rich.filesize import decimal

from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.hub import COMMIT
from growth.checkpoints.source_card import CARD
from growth.checkpoints.untrusted import LARGEST_COMPANION, check_folder, read_file
from growth.errors import CheckpointError, VerificationError
from growth.output.contents import DEQUANTISED, FolderContents
from growth.output.differences import ABSENT, Comparison
from growth.planning.manifest import MANIFEST, hash_of, read_manifest, reworded, versions
from growth.planning.prepare import planned
from growth.planning.recipe import Recipe, RecipeLike, recipe_of
from growth.runtime.progress import draws_progress
from growth.runtime.workers import Progress
from growth.training.run_states import FULL_MODEL, state_file, state_names
from growth.verification.stored_tensors import (
    UNPLANNED,
    ComparedTensors,
    StoredTensors,
    compare_tensors,
    files_that_differ,
    stored_dtype,
    stored_tensors,
    unplanned,
)
from growth.version import __version__

if TYPE_CHECKING:
    from growth.training.moments import Fresh

LONGEST_NAME = 255  # characters of a source's name; file systems allow as many bytes
OF_THE_HUB = frozenset({".gitattributes", ".cache"})  # added by uploads and downloads


@dataclass(frozen=True)
class WeightsReport:
    """What `verify_weights` found.

    Attributes:
        source, grown: the folders.
        tensors, size: the number of tensors that were compared, and their bytes.
        files: the number of other files that were compared.
        problems: what differs, by the name of a tensor or a file.
        warnings: what is not a failure but should be known, by the name of a file.
        taken_from_folder: inputs that were not given and were therefore taken from the folder itself, each with the
            option that would set it.
        not_covered: files of which not every byte was compared.

    >>> import growth, tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "grown"
    >>> plan = growth.grow("phi-mini", "examples/phi-mini", folder)
    >>> report = growth.verify_weights("examples/phi-mini", folder, "phi-mini")
    >>> report.tensors, report.problems
    (117, {})
    """

    source: str
    grown: str
    tensors: int
    size: int
    files: int
    problems: Mapping[str, str]
    warnings: Mapping[str, str]
    taken_from_folder: Mapping[str, str]
    not_covered: Sequence[str]

    @property
    def passed(self) -> bool:
        """Whether nothing differs."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The findings as JSON values."""
        return {"passed": self.passed, **asdict(self)}

    def verdict(self) -> str:
        """What was compared, with which result; what was not compared, and what was taken from the folder itself."""
        what = f"{self.tensors:,} tensors, {decimal(self.size)}, and {self.files:,} other files"
        said = f"Every bit that was compared is what the recipe makes of the source: {what}."
        if not self.passed:
            count = len(self.problems)
            differ = "tensor or file differs" if count == 1 else "tensors and files differ"
            said = f"{count:,} {differ} from what the recipe makes of the source ({what})."
        if self.not_covered:
            said += f" Not covered: {', '.join(self.not_covered)}."
        if self.taken_from_folder:
            names, options = ", ".join(self.taken_from_folder), ", ".join(self.taken_from_folder.values())
            said += f" Taken from the folder itself: {names}; give {options} to check this too."
        return said


@draws_progress("bytes")
def verify_weights(
    source: str | Path,
    grown: str | Path,
    recipe: RecipeLike | None = None,
    *,
    seed: int | None = None,
    dtype: str | None = None,
    dequantize: bool = False,
    fresh: Fresh = "mean",
    progress: Progress | None = None,
    forks: bool = False,
) -> WeightsReport:
    """Compute every tensor and every other file again, and name each that differs in a bit, is missing or is extra.

    Args:
        source, grown: the folder or hub id of the source, and the grown folder.
        recipe, seed, dtype, dequantize: as given to `grow`. Without a recipe, the recipe and the seed are those that
            growth.json states; without a dtype, the tensors may have another one than the source's. The report says
            what was taken from the folder.
        fresh: as for `grow_training`, if the folder holds an optimizer's state.
        progress: called with (phase, bytes done, bytes in all); by default, bars are drawn on a terminal and in a
            notebook, unless the level of logging.getLogger("growth") is set above INFO.
        forks: as for `grow`.

    Raises:
        VerificationError: no recipe is given, and there is no growth.json or it has no recipe.
        GrowthError: the recipe does not apply to this source, or the source cannot be read.

    >>> import growth, tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "grown"
    >>> plan = growth.grow("phi-mini", "examples/phi-mini", folder)
    >>> growth.verify_weights("examples/phi-mini", folder, "phi-mini").passed
    True
    """
    grown = Path(grown).expanduser()
    if not grown.is_dir():
        raise CheckpointError(f"There is no checkpoint folder at {grown}: name the grown folder.")
    check_folder(grown)
    told = _told(grown, needed=recipe is None)
    taken: dict[str, str] = {}
    if recipe is None:
        recipe, taken["recipe"] = _recipe(grown, told), "--recipe"
        if seed is None:
            seed, taken["seed"] = told["seed"], "--seed"
    plan, checkpoint, content = planned(recipe, source, dtype or stored_dtype(grown), seed, dequantize=dequantize)
    if dtype is None and any(tensor_map.dtype != tensor_map.source.dtype for tensor_map in plan.tensors):
        taken["dtype"] = "--dtype"
    stored = stored_tensors(grown, plan)
    again = compare_tensors(plan, plan.tensors, stored.places, progress, forks=forks)
    contents = FolderContents(plan, checkpoint, content, stored.shards, _made_with(told), _origin(checkpoint, told))
    found = _Files(grown, told, contents, stored, fresh, progress)
    found.compare(again)
    return WeightsReport(
        source=str(source),
        grown=str(grown),
        tensors=len(stored.places),
        size=sum(info.bytes for info in stored.places.values()),
        files=found.count,
        problems={**stored.problems, **again.problems, **found.problems},
        warnings=found.warnings,
        taken_from_folder=taken,
        not_covered=found.not_covered,
    )


# ------------------------------------------------- what the folder says


def _told(grown: Path, *, needed: bool) -> dict[str, Any]:
    """The content of growth.json; empty if it cannot be read and is not needed, since its bytes are compared anyway."""
    try:
        told = read_manifest(grown)
    except CheckpointError:
        if needed:
            raise
        return {}
    if told is None and needed:
        raise VerificationError(
            f"{grown} has no {MANIFEST}, which would state the recipe. Give the recipe and the seed: --recipe, --seed."
        )
    return told or {}


def _recipe(grown: Path, told: Mapping[str, Any]) -> Recipe:
    content = told["recipe"]
    if "steps" not in content:
        raise VerificationError(
            f"{grown} was grown by operators given in Python, which {MANIFEST} does not hold: give them as `recipe`."
        )
    return recipe_of(content, MANIFEST)


def _made_with(told: Mapping[str, Any]) -> dict[str, str]:
    """The versions of packages that growth.json names, if they are those of the packages that it must name."""
    ours, theirs = versions(), told.get("versions", {})
    return theirs if theirs.keys() == ours.keys() or _other_version(told) else ours


def _origin(checkpoint: Checkpoint, told: Mapping[str, Any]) -> Mapping[str, str]:
    """What growth.json calls the source, if that can be a name; it is a label, and decides no other byte."""
    theirs = {
        key: value for key, value in told.get("source", {}).items() if key not in ("config", "xxh3_128", DEQUANTISED)
    }
    name, commit = theirs.get("name"), theirs.get("commit", "0" * 40)
    named = isinstance(name, str) and name.isprintable() and len(name) <= LONGEST_NAME
    committed = isinstance(commit, str) and COMMIT.fullmatch(commit) is not None
    return theirs if named and committed and theirs.keys() <= {"name", "commit"} else checkpoint.origin


def _other_version(told: Mapping[str, Any]) -> bool:
    """Whether growth.json says that another version of growth wrote it."""
    return bool(told.get("versions", {}).get("growth", __version__) != __version__)


# ------------------------------------------------- files beside the tensors


@dataclass
class _Files:
    """Compares every file of a folder except the values of tensors.

    Attributes:
        folder, told: the grown folder, and what its growth.json says.
        contents, stored: what the folder should hold, and what the headers in it say.
        fresh, progress: as for `verify_weights`.
        problems, warnings, not_covered, count: as in the report.
    """

    folder: Path
    told: Mapping[str, Any]
    contents: FolderContents
    stored: StoredTensors
    fresh: Fresh
    progress: Progress | None
    problems: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    not_covered: list[str] = field(default_factory=list)
    count: int = 0

    def compare(self, again: ComparedTensors) -> None:
        """Compare the folder with the contents that it should have, and look for anything else in it."""
        contents, others = self.contents, self._others()
        digests = {name: entry.get("xxh3_128", "") for name, entry in self.told.get("tensors", {}).items()}
        expected = contents.metadata_files(again.read, {**digests, **again.digests}, others)
        if _other_version(self.told):
            expected = self._in_its_words(expected)
        elif contents.versions != versions():
            self._warn(MANIFEST, f"it was written with {_named(contents.versions)}; installed are {_named(versions())}")
        if contents.origin != contents.checkpoint.origin:
            ours = _named(contents.checkpoint.origin)
            self._warn(MANIFEST, f"it calls the source {_named(contents.origin)}; the source given is {ours}")
        self._texts(expected)
        known = {*expected, *others, *(shard.name for shard in contents.shards)}
        extra = set(unplanned(self.folder, known))
        self.problems |= dict.fromkeys(sorted(extra - OF_THE_HUB), UNPLANNED)
        for name in sorted(extra & OF_THE_HUB):
            self._warn(name, "the hub adds it and no loader reads it, so it is not compared")
            self.not_covered.append(name)

    def _others(self) -> dict[str, str]:
        """Compare the files that hold further values, and return their hashes.

        If the folder's tensors are not the plan's, these files are not made again, because a growth.json may name a
        recipe that makes more than any machine can hold. The hashes are then those that growth.json states.
        """
        plan, checkpoint = self.contents.plan, self.contents.checkpoint
        others: dict[str, str] = {}
        if self.stored.engine_files:
            others |= self._stated(self.stored.engine_files) if self.stored.problems else self._engine_files()
        if not self._is_run:
            return others
        from growth.training.trainer_checkpoint import run_files

        texts = run_files(plan, checkpoint)
        self._texts(texts)
        others |= {name: hash_of(text) for name, text in texts.items()}
        if self.stored.problems:
            return others | self._stated(state_names(self.folder))
        return others | ({} if self.stored.engine_files else self._saved_files())

    @property
    def _is_run(self) -> bool:
        return bool(state_names(self.folder) and state_names(self.contents.checkpoint.folder))

    def _saved_files(self) -> dict[str, str]:
        """Compare the files of torch.save with what would be written; return their hashes."""
        from growth.distributed.run_folders import full_model_file, has_full_model
        from growth.training.trainer_checkpoint import training_files

        plan, checkpoint, found = self.contents.plan, self.contents.checkpoint, dict[str, str]()
        name = state_file(checkpoint.folder)
        writers = {name: training_files(plan, checkpoint, self.fresh)[0][name]}
        writers |= {FULL_MODEL: full_model_file(plan)[0]} if has_full_model(checkpoint.folder) else {}
        for name, write in writers.items():
            with Comparison(self.folder / name) as stream:
                write(cast("BinaryIO", stream))
            self._record(name, stream.problem)
            found[name] = stream.xxh3_128
        return found

    def _stated(self, names: Iterable[str]) -> dict[str, str]:
        """The hashes that growth.json states for files that are not made again."""
        self.not_covered += sorted(names)
        return {name: self.told.get("files", {}).get(name, "") for name in names}

    def _warn(self, name: str, text: str) -> None:
        self.warnings[name] = "; ".join([*filter(None, [self.warnings.get(name)]), text])

    def _record(self, name: str, problem: str | None) -> None:
        self.count += 1
        if problem is not None:
            self.problems[name] = problem

    def _texts(self, expected: Mapping[str, bytes]) -> None:
        """Compare files with the bytes that they should have."""
        self.count += len(expected)
        self.problems |= files_that_differ(self.folder, expected)

    def _engine_files(self) -> dict[str, str]:
        """Compare the files of torch.distributed.checkpoint with what that engine would write; return their hashes."""
        import torch

        from growth.distributed.dcp_writer import compare_dcp
        from growth.distributed.run_folders import run_folders

        plan, checkpoint = self.contents.plan, self.contents.checkpoint
        folders = run_folders(plan, checkpoint, self.fresh) if self._is_run else ()
        found = compare_dcp(plan, self.folder, self.progress, folders)
        whose = f" from what torch {torch.__version__} writes (other versions may write it otherwise)"
        for name, stream in found.items():
            differs = stream.problem not in (None, ABSENT)
            self._record(name, f"{stream.problem}{whose}" if differs else stream.problem)
        return {name: stream.xxh3_128 for name, stream in found.items()}

    def _in_its_words(self, expected: dict[str, bytes]) -> dict[str, bytes]:
        """The same files with the words that another version of growth wrote."""
        whose = f"growth {self.told['versions']['growth']} wrote it and this is growth {__version__}"
        card = self.folder / CARD
        words = read_file(card, LARGEST_COMPANION) if card.is_file() else expected[CARD]
        if words != expected[CARD]:
            self._warn(CARD, f"{whose}: its text is not compared")
            self.not_covered.append(CARD)
        self._warn(MANIFEST, f"{whose}: versions, explanations (why, made_by) and fingerprint are not compared")
        account = reworded(expected[MANIFEST].decode(), self.told, {CARD: hash_of(words)})
        return {**expected, CARD: words, MANIFEST: account.encode()}


def _named(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
