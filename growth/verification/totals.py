"""Totals: what `verify` checks in full, because it costs little and a few tokens would miss it.

Every row of the embedding and the head, every norm and bias, the matrices that are zero, every key of the configs and
every file beside the tensors are computed from the source and the recipe, by the code that writes them, and compared
with what the folder holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from growth.checkpoints.formats.safetensors import INDEX
from growth.checkpoints.source_card import CARD
from growth.checkpoints.untrusted import LARGEST_JSON, read_file
from growth.errors import CheckpointError
from growth.output.contents import CONFIG, FolderContents
from growth.planning.manifest import MANIFEST, is_sealed, read_manifest
from growth.planning.tensor_map import TensorMap
from growth.training.run_states import state_names
from growth.training.trainer_checkpoint import run_files
from growth.verification.lineage import Lineage
from growth.verification.stored_tensors import UNPLANNED, compare_tensors, files_that_differ, stored_tensors, unplanned

UNREAD = re.compile(r"^\.|\.(md|html|png|svg|log|csv)$", re.IGNORECASE)  # names of files that no loader reads
WHOLE_AXES = ("vocab", "positions")


@dataclass(frozen=True)
class Totals:
    """What was checked in full.

    Attributes:
        problems: what differs, by the name of a tensor or a file.
        covered, not_covered: what was checked and what was not, in words.
    """

    problems: Mapping[str, str]
    covered: Sequence[str]
    not_covered: Sequence[str] = ()


def check_totals(line: Lineage, grown: Path) -> Totals:
    """Compare what a grown folder holds, except the weights within its layers, with what the recipe makes.

    Raises:
        CheckpointError: the source cannot be read.
    """
    problems, covered = _checksum(grown)
    if line.plan is None:
        left = f"configs, embedding, head, norms and list of files: {line.unknown}"
        return Totals(problems, covered, (left,))
    stored = stored_tensors(grown, line.plan)
    problems |= stored.problems
    expected = FolderContents(line.plan, line.checkpoint, line.recipe, stored.shards).files_before_manifest()
    del expected[CARD]
    training = state_names(grown) if state_names(line.checkpoint.folder) else set()
    if len(line.plans) > 1:
        expected = {name: text for name, text in expected.items() if name in (CONFIG, INDEX)}
    elif training:
        expected |= run_files(line.plan, line.checkpoint)
    problems |= files_that_differ(grown, expected)
    covered.append(f"every key and byte of {', '.join(expected)}")
    if len(line.plans) > 1:
        left = "embedding, head, norms, tokenizer, other files and their list: name the direct source, "
        return Totals(problems, covered, (f"{left}'{line.direct_source}'",))
    known = {CARD, MANIFEST, *expected, *training, *stored.engine_files, *(shard.name for shard in stored.shards)}
    problems |= {name: UNPLANNED for name in unplanned(grown, known) if not UNREAD.search(name)}
    covered.append("the list of files that a loader may pick up")
    tensor_maps = [
        tensor_map for tensor_map in line.plan.tensors if tensor_map.target in stored.places and _is_cheap(tensor_map)
    ]
    problems |= compare_tensors(line.plan, tensor_maps, stored.places).problems
    count = f"{len(tensor_maps):,} tensors, {sum(tensor_map.bytes for tensor_map in tensor_maps) / 1e6:.1f} MB"
    covered.append(f"every row of the embedding and the head, every norm and bias, and every matrix of zeros: {count}")
    if problems and (said := _told_otherwise(line, grown)):
        problems = {MANIFEST: said, **problems}
    return Totals(problems, covered, (", ".join([CARD, *training]),))


def _told_otherwise(line: Lineage, grown: Path) -> str:
    """In what growth.json contradicts the source and the recipe that were given; it only explains a failure."""
    try:
        told = read_manifest(grown) or {}
    except CheckpointError:
        return ""
    recipe, source = told.get("recipe", {}), told.get("source", {})
    said = []
    config = source.get("config", {})
    if config and config != dict(line.checkpoint.config):
        said.append(
            f"that another source was grown ('{source.get('name', '')}', in {config.get('dtype', 'its dtype')})"
        )
    if "steps" in recipe and recipe["steps"] != line.recipe.get("steps"):
        said.append(
            f"that another recipe made the folder ({recipe.get('description', '')}); to verify that growth, give its "
            "recipe"
        )
    return "it says " + " and ".join(said) if said else ""


def _checksum(grown: Path) -> tuple[dict[str, str], list[str]]:
    """Check growth.json, if there is one, against the hash that it ends with."""
    path = grown / MANIFEST
    if not path.exists():
        return {}, []
    sealed = is_sealed(read_file(path, LARGEST_JSON).decode("utf-8", errors="replace"))
    problems = {} if sealed else {MANIFEST: "its content does not have the hash that it ends with"}
    return problems, [f"the checksum of {MANIFEST}"]


def _is_cheap(tensor_map: TensorMap) -> bool:
    """Whether a tensor is a bias, a norm's (Cohere's have two dimensions), zero, or has a row per token or position."""
    axes = {space for part in tensor_map.weight.parts for spaces in part.dimensions for space in spaces}
    return (
        tensor_map.zero
        or len(tensor_map.shape) == 1
        or tensor_map.weight.norm_inputs is not None
        or not axes.isdisjoint(WHOLE_AXES)
    )
