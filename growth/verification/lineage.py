"""Lineage: how a grown checkpoint came from a source, computed from the source and the recipe.

What growth.json says is used only if the recipe was not given, and then the lineage says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growth.algebra.expansion import Expansion
from growth.architectures import architecture, find_family
from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.open import as_checkpoint
from growth.checkpoints.untrusted import read_config
from growth.errors import GrowthError, SwappedFolders, VerificationError
from growth.operators.base import Layer
from growth.operators.dense_to_moe import MIXTURES
from growth.planning.manifest import MANIFEST, expansion_from, history_of, labelled, read_manifest, sizes
from growth.planning.plan import Plan
from growth.planning.prepare import plan_next, planned
from growth.planning.recipe import RecipeLike, recipe_of
from growth.verification.stored_tensors import stored_dtype

USUAL = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
NO_MANIFEST = f"there is no {MANIFEST} and no recipe was given (--recipe)"
IN_PYTHON = f"{MANIFEST} does not hold operators given in Python; pass them to growth.verify as recipe"


@dataclass(frozen=True)
class Link:
    """What one growth does to the residual stream.

    Attributes:
        channels: the expansion of its channels.
        mean_factor: the factor by which the mean over the channels is multiplied, if it is corrected (docs/design.md).
        layers: for each layer of the result, the source's layer that it copies, if it is not new.
    """

    channels: Expansion
    mean_factor: float | None
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Lineage:
    """The growths that lead from a source to a grown checkpoint.

    Attributes:
        links: one per growth, the first growth first; empty if nothing is known.
        plans: the plan of each growth, if recipe and source give it; else empty, and `unknown` says why.
        checkpoint: the opened source.
        recipe: the last one, as growth.json records it.
        direct_source: the name of the folder that the last growth began from.
        from_folder: whether the recipe was taken from the grown folder's growth.json.
        unknown: why there are no plans.
    """

    links: tuple[Link, ...]
    plans: tuple[Plan, ...]
    checkpoint: Checkpoint
    recipe: Mapping[str, Any]
    direct_source: str
    from_folder: bool = False
    unknown: str = ""

    @property
    def plan(self) -> Plan | None:
        """The plan that makes the grown checkpoint."""
        return self.plans[-1] if self.plans else None

    @property
    def sizes(self) -> dict[str, Mapping[str, int]]:
        """The sizes of the source and of the grown model, by "before" and "after"; empty if there are no plans."""
        return {"before": sizes(self.plans[0].source), "after": sizes(self.plans[-1].target)} if self.plans else {}

    @property
    def preserving(self) -> bool | None:
        """Whether source and recipe promise the source's function; None if they are not known."""
        return all(plan.preserving for plan in self.plans) if self.plans else None

    @property
    def keeps_logits(self) -> bool | None:
        """Whether they promise the logits of the source's tokens; None if they are not known."""
        return all(plan.keeps_logits for plan in self.plans) if self.plans else None


def lineage(
    source: Path | Checkpoint, grown: Path, recipe: RecipeLike | None = None, seed: int | None = None
) -> Lineage:
    """Find out how `grown` came from `source`.

    Args:
        recipe, seed: as given to `grow`; by default those that growth.json states.

    Raises:
        VerificationError: the two are one folder or are swapped, or `grown` was not grown from `source`.
        GrowthError: the source cannot be read, or the given recipe does not apply to it.
    """
    checkpoint = as_checkpoint(source)
    after = read_config(grown / "config.json")
    _check_pair(checkpoint, grown, after)
    if recipe is not None:
        plan, _, content = planned(recipe, checkpoint, stored_dtype(grown), seed)
        _check_reaches(plan, plan, None, after, grown)
        return Lineage((_link(plan),), (plan,), checkpoint, content, checkpoint.name)
    told = read_manifest(grown)
    if told is None:
        return Lineage((), (), checkpoint, {}, "", unknown=NO_MANIFEST)
    steps, name = [*told.get("history", ()), told], str(told["source"].get("name", ""))
    begun = [number for number, step in enumerate(steps) if step["source"].get("config") == dict(checkpoint.config)]
    steps = steps[begun[-1] if begun else -1 :]  # from the last growth that began from this config, else the last one
    links = tuple(_told_link(step) for step in steps) if len(steps) == 1 else ()
    if any("steps" not in step["recipe"] for step in steps):
        return Lineage(links, (), checkpoint, told["recipe"], name, from_folder=True, unknown=IN_PYTHON)
    plans = _chain(steps, checkpoint, grown)
    _check_reaches(plans[0], plans[-1], told, after, grown)
    return Lineage(tuple(map(_link, plans)), tuple(plans), checkpoint, told["recipe"], name, from_folder=True)


def _chain(steps: Sequence[Mapping[str, Any]], checkpoint: Checkpoint, grown: Path) -> list[Plan]:
    """The plan of each growth that growth.json records.

    Raises:
        VerificationError: one does not apply.
    """
    plans: list[Plan] = []
    recipes = [recipe_of(step["recipe"], MANIFEST) for step in steps]
    try:
        for recipe, step in zip(recipes, steps, strict=True):
            if plans:
                plans.append(plan_next(recipe, plans[-1], step["seed"]))
            else:
                plans.append(planned(recipe, checkpoint, stored_dtype(grown), step["seed"])[0])
    except GrowthError as error:
        raise VerificationError(
            f"The recipe in {grown / MANIFEST} does not apply to {checkpoint.folder}: {error} Name the source that "
            f"{grown} was grown from."
        ) from None
    return plans


def _link(plan: Plan) -> Link:
    return Link(plan.growth.expansions["residual"], plan.mean_factors.get("residual"), plan.growth.layers)


def _told_link(told: Mapping[str, Any]) -> Link:
    """The residual stream's growth, from growth.json."""
    axis, size = told["axes"].get("residual"), told["sizes"]["before"].get("residual", 1)
    channels = expansion_from(axis) if axis else Expansion.identity(size)
    layers = tuple(
        Layer(0, layer["silent"], "stock") if layer["source"] is None else Layer(layer["source"], layer["silent"])
        for layer in told["layers"]
    )
    return Link(channels, told["levels"].get("residual"), layers)


# ------------------------------------------------- is it this source, and not the other way round


def _check_pair(checkpoint: Checkpoint, grown: Path, after: Mapping[str, Any]) -> None:
    """Raise VerificationError if the two are one folder, or the source cannot have become the other by growth."""
    source, before = checkpoint.folder, checkpoint.config
    if source.samefile(grown):
        raise VerificationError(f"{source} and {grown} are the same folder: name the source, then what it grew into.")
    swapped = dict(after) in _begun_from(source) and dict(before) != dict(after)
    if swapped and dict(before) not in _begun_from(grown):  # retie undoes untie
        raise SwappedFolders(f"{source / MANIFEST} says that {source} was grown from {grown}.", source, grown)
    old, new = _sizes(before), _sizes(after)
    families = tuple(str(config.get("model_type")) for config in (before, after))
    comparable = all(map(find_family, families))
    upcycled = set(families) in [{dense, mixture.model_type} for dense, mixture in MIXTURES.items()]
    for name, size in old.items():
        found = new.get(name, 0 if comparable else size)  # a mixture has experts, and a dense model has none
        if found < size and not (upcycled and name == "ffn"):  # an expert may be a part of the MLP
            if len(set(families)) > 1 and not upcycled:
                raise VerificationError(
                    f"{source} is a {families[0]} model and {grown} is a {families[1]} model, and no growth leads from "
                    f"one family to the other. Name the source that {grown} was grown from."
                )
            smaller = f"{grown} has {name} {found:,} and {source} has {size:,}: nothing is smaller in a grown model."
            raise SwappedFolders(smaller, source, grown)


def _begun_from(folder: Path) -> list[Any]:
    """The configs of the models that a folder was grown from, as its growth.json says."""
    return [step["source"].get("config") for step in history_of(folder)]


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of all axes for a family that can grow; else those that the config has under their usual names."""
    if find_family(config.get("model_type")):
        return dict(labelled(sizes(architecture(config))))  # query heads per KV head may become fewer
    return {key: config[key] for key in USUAL if type(config.get(key)) is int}


def _check_reaches(
    first: Plan, last: Plan, told: Mapping[str, Any] | None, after: Mapping[str, Any], grown: Path
) -> None:
    """Raise VerificationError unless the plans end with the config's sizes, and begin with those in growth.json."""
    begun, made = sizes(first.source), sizes(last.target)
    pairs = [(made, sizes(architecture(after)), f"{grown / 'config.json'} has {{}}")]
    if told is not None:
        before = f"the sizes in {grown / MANIFEST} say that the last growth began from {{}}"
        pairs.append((sizes(last.source), told["sizes"]["before"], before))
    for expected, found, says in pairs:
        for name, size in expected.items():
            if found.get(name) != size:
                raise VerificationError(
                    f"From this source, the recipe grows {name} from {begun.get(name, 'none')} to "
                    f"{made.get(name, 'none')}, and {says.format(found.get(name, 'none'))}. Name the source and the "
                    f"recipe that {grown} was grown from."
                )
