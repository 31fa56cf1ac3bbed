"""Entries of a Trainer's log history: the growths of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from growth.errors import ConfigError, GrowthError
from growth.operators.base import Growth
from growth.planning.manifest import hash_of, sizes
from growth.planning.plan import Plan
from growth.planning.prepare import RecipeLike, growth_of

ENTRY = "growth"  # key of such an entry


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
        "layers": [vars(layer) for layer in growth.layers],
        "others": [one and vars(one) for one in (growth.mixing, growth.tokens)],
        **({"settings": dict(growth.settings)} if growth.settings else {}),
        **({"query_heads": [*growth.query_heads.runs()]} if growth.query_heads else {}),
    }
    content |= {"head": vars(growth.head)} if growth.head else {}
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
