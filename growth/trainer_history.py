"""Entries of a Trainer's log history that say which growths a run has done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from growth.manifest import sizes
from growth.planning import Plan

ENTRY = "growth"  # key of such an entry


def history_entry(plan: Plan) -> dict[str, Any]:
    """What the log history says of a growth: its steps in words, every size that changed, and the grown model's.

    >>> import growth
    >>> history_entry(growth.plan(growth.operators.widen("ffn", factor=2), "examples/phi-mini"))
    {'growth': 'widen ffn 512 → 1024, tile', 'sizes': {'ffn': [512, 1024]}, 'num_parameters': 2504192}
    """
    before, after = sizes(plan.source), sizes(plan.target)
    changed = {axis: [before[axis], size] for axis, size in after.items() if before.get(axis, size) != size}
    steps = ", then ".join(step.operator for step in plan.growth.steps)
    return {ENTRY: steps, "sizes": changed, "num_parameters": plan.parameters}


def growths(log_history: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries of growths in a log history, however they were done."""
    return [entry for entry in log_history if ENTRY in entry]
