"""The growths of a run: entries of a Trainer's log history, or of the history of a plain loop."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from growth.architectures import architecture
from growth.arrays.tensor_info import TensorInfo
from growth.errors import ConfigError, GrowthError
from growth.operators.base import Growth
from growth.planning.manifest import hash_of, sizes
from growth.planning.plan import Plan, make_plan
from growth.planning.prepare import growth_of
from growth.planning.recipe import RecipeLike

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from growth.training.schedule import Moment

ENTRY = "growth"  # key of such an entry
FROZEN = "frozen"  # key of the names of the parameters that were frozen after a growth, until the run was saved


def history_entry(plan: Plan) -> dict[str, Any]:
    """The entry of a growth: its steps in words, the sizes that changed, and the number of parameters.

    >>> import growth
    >>> history_entry(growth.plan(growth.operators.widen("ffn", factor=2), "examples/phi-mini"))
    {'growth': 'widen ffn 512 → 1024, pad', 'sizes': {'ffn': [512, 1024]}, 'num_parameters': 2504192}
    """
    before, after = sizes(plan.source), sizes(plan.target)
    changed = {axis: [before[axis], size] for axis, size in after.items() if before.get(axis, size) != size}
    return {ENTRY: steps_in_words(plan.growth), "sizes": changed, "num_parameters": plan.parameters}


def steps_in_words(growth: Growth) -> str:
    """The steps of a growth as text."""
    return ", then ".join(step.operator for step in growth.steps)


def digest(growth: Growth, seed: int) -> str:
    """The hash of everything that determines the values that a growth makes of given weights; texts are left out.

    >>> import growth
    >>> source = growth.plan(growth.operators.deepen(to=7), "examples/phi-mini").source
    >>> start = growth.operators.base.Growth.start(source)
    >>> digest(start, 0) == digest(start.noted("nothing", True, ""), 0) != digest(start, 1)
    True
    """
    content = {
        "seed": seed,
        "axes": {name: [*expansion.runs()] for name, expansion in growth.expansions.items()},
        "splits": dict(growth.splits),
        "layers": [layer.to_dict() for layer in growth.layers],
        "others": [one and vars(one) for one in (growth.mixing, growth.tokens)],
        **({"settings": dict(growth.settings)} if growth.settings else {}),
        **({"query_heads": [*growth.query_heads.runs()]} if growth.query_heads else {}),
    }
    content |= {"head": vars(growth.head)} if growth.head else {}
    content |= {"blank": vars(growth.blank)} if growth.blank else {}
    return hash_of(json.dumps(content, sort_keys=True))


def growths(log_history: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries of all growths in a log history."""
    return [entry for entry in log_history if ENTRY in entry]


def scheduled(log_history: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries of the growths that a schedule called for."""
    return [entry for entry in growths(log_history) if "moment" in entry]


def identity(how: RecipeLike, config: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a recipe in an entry: the hash of the growth that it makes of a config, and the config."""
    plain = json.loads(json.dumps(dict(config)))  # as in a checkpoint, whose keys are strings
    return {"recipe": digest(*growth_of(how, plain)), "source_config": plain}


def check_recipe(entry: Mapping[str, Any], how: RecipeLike) -> None:
    """Refuse a recipe that is not the one by which a run has grown.

    Raises:
        ConfigError: the recipe makes another growth of the config that the run grew from.
    """
    if "recipe" not in entry:  # an earlier version did not write it
        return
    try:
        growth, seed = growth_of(how, entry["source_config"])
        if digest(growth, seed) == entry["recipe"]:
            return
        found = f"'{steps_in_words(growth)}'"
    except GrowthError as error:
        found = f"a recipe that does not apply ({error})"
    if found == f"'{entry['growth']}'":
        found = "the same operators with another seed, or other shares"
    raise ConfigError(
        f"The run that is resumed has grown {entry['moment']} by '{entry['growth']}', and the schedule has {found} "
        "there. Resume it with the recipes by which it has grown, or start a new run from its weights."
    )


def note_frozen(entries: Sequence[Mapping[str, Any]], model: PreTrainedModel) -> None:
    """Note in the last growth's entry which parameters of the grown model are frozen."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if entries and frozen != entries[-1].get(FROZEN, []):
        cast("dict[str, Any]", entries[-1])[FROZEN] = frozen


def _check_frozen(entry: Mapping[str, Any], model: PreTrainedModel) -> None:
    """Refuse to resume a run with parameters trained that it had frozen: a growth moves layers, and so their names."""
    frozen = set(entry.get(FROZEN, ())) if entry.get("step") else set()  # step 0: in a run before this one
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad and name in frozen]
    if trained:
        more = f" and {len(trained) - 1} more" if trained[1:] else ""
        raise ConfigError(
            f"The run that is resumed had '{trained[0]}'{more} frozen, and this model trains what it had frozen. After "
            "a growth, what grew from frozen parameters is frozen, also in new layers. Freeze the same parameters "
            f"before the optimizer is made: '{FROZEN}' in the last growth's entry lists them."
        )


def check_resumed(
    entries: Sequence[Mapping[str, Any]],
    schedule: Sequence[tuple[Moment, RecipeLike]],
    model: PreTrainedModel,
    *,
    last: Mapping[str, Any] | None = None,
) -> None:
    """Refuse to resume a run with another schedule, or with a model of another size.

    entries: of the growths that the schedule of the run called for.
    last: of the last growth of any kind, by default of the last of these.

    Raises:
        ConfigError: the schedule does not begin with the growths of the run, or the model has another size.
    """
    planned = [when.words for when, _ in schedule]
    was = [entry["moment"] for entry in entries]
    if planned[: len(was)] != was:
        raise ConfigError(
            f"The run that is resumed has grown {', '.join(was)}, and this schedule says {', '.join(planned)}. "
            "Begin the schedule with the entries that the run has applied. Shares of a run move with its length "
            "(max_steps, until): to change that, give the times in steps or tokens."
        )
    for entry, (_, how) in zip(entries, schedule, strict=False):
        check_recipe(entry, how)
    last = last or (entries[-1] if entries else None)
    if entries and last is not None:
        _check_frozen(last, model)
    if last is not None and last["num_parameters"] != model.num_parameters():
        raise ConfigError(
            f"The run that is resumed has grown to {last['num_parameters']:,} parameters and the model has "
            f"{model.num_parameters():,}. Build it as large as the checkpoint: from_pretrained(checkpoint)."
        )


def plan_again(how: RecipeLike, entry: Mapping[str, Any]) -> Plan:
    """Plan the growth of an entry once more, from the config that it was applied to."""
    config = entry["source_config"]
    growth, seed = growth_of(how, config)
    source = architecture(config)
    headers = {name: TensorInfo(name, "F32", shape) for name, shape in source.shapes().items()}
    return make_plan(source, growth, headers, seed=seed)
