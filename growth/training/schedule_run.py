"""A run of a plain training loop whose model grows by a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from growth.errors import ConfigError
from growth.output.in_memory import plan_in_memory
from growth.output.model_checks import check_hooks
from growth.planning.plan import Plan
from growth.planning.recipe import RecipeLike, as_recipe
from growth.training.flops import flops_spent, model_flops_per_token
from growth.training.in_place import grow_in_place
from growth.training.last_batch import loss_on
from growth.training.moments import Fresh
from growth.training.optimizer import check_optimizer
from growth.training.schedule import Schedule, Stage, plan_stages
from growth.training.stage_rates import Removable, set_rates
from growth.training.trainer_history import check_resumed, history_entry, identity, plan_again

LONG_AGO = 1 << 31  # steps; more than a second warm-up has


class ScheduleRun:
    """A run whose model and optimizer grow in place by a schedule: both stay the objects that the loop holds.

    Call `step` once after each step of the optimizer and of the scheduler.

    steps, tokens: those that the run has taken.
    history: an entry for each growth: the step, what grew, the numbers of parameters, the loss before and after.

    >>> import growth, torch, transformers
    >>> model = transformers.AutoModelForCausalLM.from_pretrained("examples/phi-mini")
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> run = growth.load_schedule("double").over(steps=4).start(model, optimizer)
    >>> [entry["growth"] for entry in run.step()], run.state_dict()["steps"]
    (['widen residual 128 → 256, pad, then widen query heads 4 → 8, pad, then widen ffn 512 → 1024, pad'], 1)
    """

    def __init__(
        self,
        schedule: Schedule,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        state = state or {"steps": 0, "tokens": 0, "history": []}
        self.schedule, self.model, self.optimizer = schedule, model, optimizer
        self.steps, self.tokens = int(state["steps"]), int(state["tokens"])
        self.history: list[dict[str, Any]] = [dict(entry) for entry in state["history"]]
        check_resumed(self.history, [(stage.at, stage.recipe) for stage in schedule.stages], model)
        check_stages(self.left, model, optimizer, schedule.name)
        self._per_token = model_flops_per_token(model)
        self._rates = resumed_rates(schedule.stages, self.history, self.steps, model, optimizer)

    @property
    def flops(self) -> int:
        """The FLOPs of the run so far (growth.training.flops)."""
        return flops_spent(self.history, self.tokens, self._per_token)

    @property
    def stage(self) -> Stage | None:
        """The stage in force; None before the first growth."""
        return self.schedule.stages[len(self.history) - 1] if self.history else None

    @property
    def left(self) -> tuple[Stage, ...]:
        """The stages whose growths are still to come."""
        return self.schedule.stages[len(self.history) :]

    @property
    def finished(self) -> bool:
        """Whether the run has reached the length that the schedule states."""
        return self.schedule.until is not None and self.schedule.until.is_past(**self._reached)

    def step(self, batch: Mapping[str, Any] | None = None, *, tokens: int | None = None) -> list[dict[str, Any]]:
        """Count a step, and grow the model by each stage whose time has come; return the new entries of `history`.

        batch: the arguments of the model's call in this step, such as `input_ids` and `labels`, on which the loss
            before and after a growth is measured.
        tokens: the tokens of the step, by default those of the batch's `input_ids`.

        Raises:
            ConfigError: the schedule counts tokens or FLOPs, and neither batch nor tokens are given.
        """
        if tokens is None:
            tokens = int(batch["input_ids"].numel()) if batch is not None and "input_ids" in batch else None
        units = {
            moment.unit for moment in (self.schedule.until, *(stage.at for stage in self.schedule.stages)) if moment
        }
        if tokens is None and units & {"tokens", "flops"}:
            raise ConfigError(
                f"{self.schedule.name} counts {' and '.join(sorted(units))}: give the step's batch or its tokens."
            )
        self.steps, self.tokens = self.steps + 1, self.tokens + (tokens or 0)
        inputs, grown = None if batch is None else dict(batch), len(self.history)
        for stage in self.left:
            if not stage.at.is_past(**self._reached):
                break
            before, flops = loss_on(self.model, inputs), self.flops
            plan, entry = grow_by_stage(stage, self.model, self.optimizer, self._rates, self.steps)
            self.history.append(entry | {"tokens": self.tokens, "flops": flops})
            self._per_token = model_flops_per_token(self.model)
            self._rates = set_rates(stage, self.optimizer, self.model, plan)
            losses = {"loss_before": before, "loss_after": loss_on(self.model, inputs)}
            self.history[-1] |= {key: loss for key, loss in losses.items() if loss is not None}
        return self.history[grown:]

    def state_dict(self) -> dict[str, Any]:
        """What `Schedule.start` needs to resume the run, as values that `json.dumps` accepts."""
        return {"steps": self.steps, "tokens": self.tokens, "history": [dict(entry) for entry in self.history]}

    @property
    def _reached(self) -> dict[str, float]:
        return {"steps": self.steps, "tokens": self.tokens, "flops": self.flops}


def check_stages(
    stages: Sequence[Stage], model: PreTrainedModel, optimizer: torch.optim.Optimizer, name: str | None = None
) -> None:
    """Refuse stages that cannot grow a model and its optimizer in place, before anything is trained.

    Raises:
        GrowthError: a recipe that does not apply, hooks that would be lost, an optimizer whose state cannot grow.
    """

    def first(recipe: RecipeLike) -> Plan:
        return plan_in_memory(recipe, model)

    if stages:
        check_hooks(model, own=False)
    for stage, plan in zip(stages, plan_stages(stages, first, name), strict=True):
        if stage.optimizer != "fresh":
            check_optimizer(optimizer, model, plan)


def grow_by_stage(
    stage: Stage,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    rates: Sequence[Removable],
    step: int,
    fresh: Fresh = "mean",
) -> tuple[Plan, dict[str, Any]]:
    """Grow a model and its optimizer in place; return the plan, and the entry of the growth in a history.

    rates: what scales updates in the stage before, which ends.
    fresh: as for `growth.grow_optimizer`, where the stage carries the optimizer's state.
    """
    ways: dict[str, Fresh] = {"carry": fresh, "reset": "reset", "fresh": "all"}
    recipe = as_recipe(stage.recipe)
    parameters = model.num_parameters()
    plan = grow_in_place(model, optimizer, recipe, fresh=ways[stage.optimizer])
    for scaled in rates:
        scaled.remove()
    entry = {"step": step, "num_parameters_before": parameters, **history_entry(plan)}
    return plan, entry | {"moment": stage.at.words, **identity(recipe, plan.stored.config)}


def resumed_rates(
    stages: Sequence[Stage],
    history: Sequence[Mapping[str, Any]],
    steps: int,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
) -> list[Removable]:
    """Resume the learning rates of the stage in force.

    history: the entries of the growths so far. steps: those that the run has taken.
    """
    if not history:
        return []
    stage, entry = stages[len(history) - 1], history[-1]
    if stage.rates is None and stage.rewarm is None:
        return []
    since = steps - int(entry["step"]) if entry["step"] else LONG_AGO  # step 0: in a run before this one
    return set_rates(stage, optimizer, model, plan_again(stage.recipe, entry), since)
