"""Entries of a Trainer's log history that say which growths a run has done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from growth.operators.base import Growth
from growth.planning.manifest import hash_of, sizes
from growth.planning.plan import Plan

ENTRY = "growth"  # key of such an entry


def history_entry(plan: Plan) -> dict[str, Any]:
    """What the log history says of a growth: its steps in words, every size that changed, and the grown model's.

    >>> import growth
    >>> history_entry(growth.plan(growth.operators.widen("ffn", factor=2), "examples/phi-mini"))
    {'growth': 'widen ffn 512 → 1024, tile', 'sizes': {'ffn': [512, 1024]}, 'num_parameters': 2504192}
    """
    before, after = sizes(plan.source), sizes(plan.target)
    changed = {axis: [before[axis], size] for axis, size in after.items() if before.get(axis, size) != size}
    return {ENTRY: steps_in_words(plan.growth), "sizes": changed, "num_parameters": plan.parameters}


def steps_in_words(growth: Growth) -> str:
    """The steps of a growth, as an entry has them."""
    return ", then ".join(step.operator for step in growth.steps)


def digest(growth: Growth, seed: int) -> str:
    """The hash of all that decides which values a growth makes of given weights; words are left out.

    >>> import growth
    >>> source = growth.plan(growth.operators.deepen(to=7), "examples/phi-mini").source
    >>> start = growth.operators.base.Growth.start(source)
    >>> digest(start, 0) == digest(start.noted("nothing", True, ""), 0) != digest(start, 1)
    True
    """
    content = {
        "seed": seed,
        "axes": {name: [*expansion.runs()] for name, expansion in growth.expansions.items()},
        "layers": [vars(layer) for layer in growth.layers],
        "others": [one and vars(one) for one in (growth.noise, growth.mixing, growth.tokens)],
    }
    return hash_of(json.dumps(content, sort_keys=True))


def growths(log_history: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries of growths in a log history, however they were done."""
    return [entry for entry in log_history if ENTRY in entry]
