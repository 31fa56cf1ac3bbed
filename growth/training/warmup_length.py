"""The length of a stage's second warm-up in steps, and whether it ends before the stage does."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping

from growth.training.schedule import Moment, Stage

Amounts = Mapping[str, float]  # steps, tokens and FLOPs, as far as they are known
STEPS: Amounts = {"steps": 1}


def pace(steps: int, tokens: int, flops_per_token: int = 0) -> Amounts:
    """What a run takes in one step: on average tokens, and the FLOPs of these in the model as it is now."""
    if not steps or not tokens:
        return STEPS
    per_step = {"steps": 1, "tokens": tokens / steps, "flops": flops_per_token * tokens / steps}
    return {unit: amount for unit, amount in per_step.items() if amount}


def in_steps(stage: Stage, until: Moment | None, per_step: Amounts) -> Stage:
    """A stage whose second warm-up is a number of steps instead of a share of a run by tokens or FLOPs.

    until: the length of the run. per_step: what one step takes of it.
    """
    if stage.rewarm is None or stage.rewarm.share is None or until is None:
        return stage
    return stage.with_warmup_within(Moment(steps=max(1, round(until.number / per_step[until.unit]))))


def warn_at_start(stages: Iterable[Stage], ends: Iterable[Moment | None], name: str, done: int = 0) -> None:
    """Warn of second warm-ups that do not end before the next growth or the run does, where steps tell so.

    ends: what ends the run. name: of the schedule. done: how many stages of the schedule are before these.
    """
    listed, last = tuple(stages), [end for end in ends if end is not None]
    for number, stage in enumerate(listed, 1):
        following = [later.at for later in listed[number : number + 1]]
        begin = {stage.at.unit: stage.at.number}
        _warn(stage, [*following, *last], begin, STEPS, f"{name}, stage {done + number}")


def warn_at_growth(stage: Stage, ends: Iterable[Moment | None], reached: Amounts, per_step: Amounts, name: str) -> None:
    """Warn of a second warm-up that does not end in time, at the pace of the run so far.

    ends: the time of the next growth, and the end of the run. Where all times are steps, the start has warned.
    name: of the schedule and the stage.
    """
    untold = [end for end in ends if end is not None and {end.unit, stage.at.unit} != {"steps"}]
    _warn(stage, untold, reached, per_step, name)


def _warn(stage: Stage, ends: Iterable[Moment], begin: Amounts, per_step: Amounts, name: str) -> None:
    if stage.rewarm is None or stage.rewarm.steps is None:
        return
    left = min((_steps_until(end, begin, per_step) for end in ends), default=math.inf)
    if stage.rewarm.steps > left:
        start = float(stage.rewarm.start)
        last = start + (1 - start) * left / stage.rewarm.steps
        warnings.warn(
            f"{name}: the second warm-up takes {stage.rewarm.steps:,} steps, and the stage has {left:,.0f}: when it "
            f"ends, the learning rate is at {100 * last:.2g} % of what the stage states. Give the warm-up fewer steps, "
            "or a share of the run: 'rewarm: {share: 0.01}'.",
            stacklevel=5,
        )


def _steps_until(end: Moment, begin: Amounts, per_step: Amounts) -> float:
    """The steps between two times; infinitely many where that is not known."""
    unit = end.unit
    return (end.number - begin[unit]) / per_step[unit] if unit in begin and unit in per_step else math.inf
