"""The learning rates of a stage: by kind of value, and a second warm-up.

They scale updates, by hooks on the optimizer. Its groups and their learning rates stay as they are, so a scheduler and
a checkpoint of the optimizer need no change. An optimizer has those of one stage at most: the growth that begins the
next removes the hooks, and so does a run that resumes with the same optimizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from growth.training.rewarm import check_trains
from growth.training.scaled_updates import Factor, ScaledGroups, ScaledKinds, ScaledUpdates, in_force, put_in_force
from growth.training.value_kinds import KINDS, OLD, Origin

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from growth.training.schedule import Stage

_PURPOSE = "stage"


def set_rates(
    stage: Stage, optimizer: torch.optim.Optimizer, model: PreTrainedModel, origin: Origin, done: int = 0
) -> None:
    """Begin the learning rates of a stage, or resume them `done` steps after its growth; under FSDP2 too.

    model: the grown model, and the optimizer that trains it.
    origin: as for `growth.Rewarm`.

    Raises:
        CheckpointError: the model is not the grown one.
        OptimizerError: an optimizer of another model, or a warm-up of groups without a learning rate.
    """
    end_rates(optimizer)
    rates = dict.fromkeys(KINDS, 1.0) | (stage.rates.by_kind if stage.rates is not None else {})
    factors = {kind: Factor(rate) for kind, rate in rates.items()}
    begun: list[ScaledUpdates] = []
    if stage.rewarm is not None:
        assert stage.rewarm.steps is not None, "a share of a run has become steps when its growth comes"
        start, steps = float(stage.rewarm.start), stage.rewarm.steps
        check_trains(optimizer, model, stage.rewarm.of)
        if stage.rewarm.of == "all":
            begun.append(ScaledGroups(optimizer, Factor(1.0, start, steps), done))
        else:
            factors |= {kind: Factor(rates[kind], start, steps) for kind in KINDS[OLD + 1 :]}
    if any(factor != Factor(1.0) for factor in factors.values()):
        begun.append(ScaledKinds(optimizer, model, origin, factors, done))
    put_in_force(optimizer, _PURPOSE, begun)


def end_rates(optimizer: torch.optim.Optimizer) -> None:
    """Leave the optimizer's updates as they are."""
    put_in_force(optimizer, _PURPOSE, ())


def updates_at_rates(optimizer: torch.optim.Optimizer) -> int | None:
    """The steps that an optimizer has taken at the rates of a stage, without skipped ones; None without such rates."""
    return max((scaled.done for scaled in in_force(optimizer, _PURPOSE)), default=None)


def factors_in_force(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The factors on the next update by kind of value; empty where all updates are whole."""
    factors = dict.fromkeys(KINDS, 1.0)
    for scaled in in_force(optimizer, _PURPOSE):
        factors = {kind: factor * scaled.factor_of(kind) for kind, factor in factors.items()}
    return factors if any(factor != 1 for factor in factors.values()) else {}
