"""A run of a plain training loop whose model grows by a schedule, and what it has in common with a Trainer's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from growth.errors import ConfigError
from growth.planning.plan import Plan
from growth.planning.recipe import as_recipe
from growth.training.flops import flops_spent, model_flops_per_token
from growth.training.in_place import Optimizers, grow_in_place, listed
from growth.training.last_batch import loss_on
from growth.training.moments import Fresh
from growth.training.schedule import Moment, Schedule, SecondWarmup, Stage
from growth.training.stage_checks import check_stages, ways
from growth.training.stage_rates import end_rates, factors_in_force, set_rates, updates_at_rates
from growth.training.trainer_history import check_resumed, history_entry, identity, note_frozen, plan_again
from growth.training.warmup_length import in_steps, pace, warn_at_growth, warn_at_start

STATEFUL = "stateful"  # key of a saved run: whether each of its optimizers had state
REWARM = "rewarm"  # key of an entry: the second warm-up of its stage, in steps
UPDATES = "updates"  # key of an entry: the steps at the rates of its stage that each optimizer has taken
LONG_AGO = 1 << 31  # steps; more than a second warm-up has


class ScheduleRun:
    """A run whose model and optimizer grow in place by a schedule: both stay the objects that the loop holds.

    Call `step` once after each step of the optimizer and of the scheduler.

    steps, tokens: those that the run has taken.
    history: an entry for each growth: the step, what grew, the numbers of parameters, the loss before and after.

    >>> import growth, torch, transformers
    >>> model = transformers.AutoModelForCausalLM.from_pretrained(growth.resolve("examples/phi-mini"))
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> run = growth.load_schedule("double").over(steps=4).start(model, optimizer)
    >>> [entry["growth"] for entry in run.step()], run.state_dict()["steps"]
    (['widen residual 128 → 256, pad, then widen query heads 4 → 8, pad, then widen ffn 512 → 1024, pad'], 1)
    """

    def __init__(
        self,
        schedule: Schedule,
        model: PreTrainedModel,
        optimizer: Optimizers,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        state = state or {"steps": 0, "tokens": 0, "history": []}
        self.schedule, self.model, self.optimizers = schedule, model, listed(optimizer)
        self.steps, self.tokens = int(state["steps"]), int(state["tokens"])
        self._uncounted = int(state.get("uncounted", 0 if self.tokens else self.steps))
        self._check_counted()
        self.history: list[dict[str, Any]] = [dict(entry) for entry in state["history"]]
        check_resumed(self.history, [(stage.at, stage.recipe) for stage in schedule.stages], model)
        check_stages(self.left, model, self.optimizers, schedule.name, done=len(self.history))
        _warn_of_lost_state(state.get(STATEFUL, ()), self.optimizers)
        warn_at_start(self.left, [schedule.until], schedule.name, len(self.history))
        self._per_token = model_flops_per_token(model)
        resume_rates(schedule.stages, self.history, self.steps, model, self.optimizers)

    @property
    def flops(self) -> int:
        """The FLOPs of the run so far (growth.training.flops)."""
        return flops_spent(self.history, self.tokens, self._per_token)

    @property
    def stage(self) -> Stage | None:
        """The stage in force; None before the first growth."""
        return self.schedule.stages[len(self.history) - 1] if self.history else None

    @property
    def rate_factors(self) -> dict[str, float]:
        """The factors on the next update by kind of value; empty where the learning rate is in force as it is."""
        return next(filter(None, map(factors_in_force, self.optimizers)), {})

    @property
    def left(self) -> tuple[Stage, ...]:
        """The stages whose growths are still to come."""
        return self.schedule.stages[len(self.history) :]

    @property
    def finished(self) -> bool:
        """Whether the run has reached the length that the schedule states."""
        return self.schedule.until is not None and self.schedule.until.is_past(**self._reached)

    def step(
        self, batch: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None, *, tokens: int | None = None
    ) -> list[dict[str, Any]]:
        """Count a step, and grow the model by each stage whose time has come; return the new entries of `history`.

        batch: the arguments of the model's call in this step, such as `input_ids` and `labels`; with gradient
            accumulation, a list of those of all its calls. The loss before and after a growth is that on the last.
        tokens: the tokens of the step, by default those of the `input_ids` of all its batches. State it where the
            batch is not all that the step has seen: with gradient accumulation, or several processes.

        Raises:
            ConfigError: the schedule counts tokens or FLOPs, and neither batch nor tokens are given.
        """
        batches = [batch] if isinstance(batch, Mapping) else [*(batch or ())]
        if tokens is None and batches and all("input_ids" in each for each in batches):
            tokens = sum(int(each["input_ids"].numel()) for each in batches)
        if tokens is None and self._units & {"tokens", "flops"}:
            raise ConfigError(
                f"{self.schedule.name} counts {' and '.join(sorted(self._units))}: give the step's batch or its tokens."
            )
        self.steps, self.tokens = self.steps + 1, self.tokens + (tokens or 0)
        self._uncounted += tokens is None
        inputs, grown = dict(batches[-1]) if batches else None, len(self.history)
        for stage in self.left:
            if not stage.at.is_past(**self._reached):
                break
            before, flops = loss_on(self.model, inputs), self.flops
            plan, entry = grow_by_stage(stage, self.model, self.optimizers, self.steps)
            self.history.append(entry | {"tokens": self.tokens, "flops": flops})
            self._per_token = model_flops_per_token(self.model)
            note_frozen(self.history, self.model)
            per_step = pace(self.steps, self.tokens, self._per_token)
            stage = in_steps(stage, self.schedule.until, per_step)
            warn_at_growth(
                stage, self._ends, self._reached, per_step, f"{self.schedule.name}, stage {len(self.history)}"
            )
            begin_rates(stage, self.history[-1], self.model, self.optimizers, plan)
            losses = {"loss_before": before, "loss_after": loss_on(self.model, inputs)}
            self.history[-1] |= {key: loss for key, loss in losses.items() if loss is not None}
        return self.history[grown:]

    def state_dict(self) -> dict[str, Any]:
        """What `Schedule.start` needs to resume the run, as values that `json.dumps` accepts."""
        note_updates(self.history, self.optimizers)
        note_frozen(self.history, self.model)
        counts: dict[str, Any] = {"steps": self.steps, "tokens": self.tokens, "uncounted": self._uncounted}
        counts[STATEFUL] = list(map(_has_state, self.optimizers))
        return {**counts, "history": [dict(entry) for entry in self.history]}

    @property
    def _units(self) -> set[str]:
        return {
            moment.unit for moment in (self.schedule.until, *(stage.at for stage in self.schedule.stages)) if moment
        }

    @property
    def _ends(self) -> tuple[Moment | None, ...]:
        """What may end the stage in force: the next growth and the end of the run."""
        return *(stage.at for stage in self.left[:1]), self.schedule.until

    def _check_counted(self) -> None:
        """Refuse a schedule by tokens or FLOPs where earlier steps did not state theirs.

        Raises:
            ConfigError: it would count from zero.
        """
        counted = self._units & {"tokens", "flops"}
        if counted and self._uncounted:
            raise ConfigError(
                f"{self.schedule.name} counts {' and '.join(sorted(counted))}, and of the {self.steps} steps that the "
                f"run has taken, {self._uncounted} did not state their batch or tokens. Give times in steps, or start "
                "a new run from the model's weights."
            )

    @property
    def _reached(self) -> dict[str, float]:
        return {"steps": self.steps, "tokens": self.tokens, "flops": self.flops}


def _has_state(optimizer: torch.optim.Optimizer) -> bool:
    return any(map(len, optimizer.state.values()))


def _warn_of_lost_state(saved: Sequence[bool], optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Warn where a run resumes with an optimizer that has lost its state.

    saved: whether each optimizer had state when the run was saved.
    """
    for had, optimizer in zip(saved, optimizers, strict=False):
        if had and not _has_state(optimizer):
            warnings.warn(
                f"The run's {type(optimizer).__name__} had state when it was saved, and this one has none, so its "
                "moments start anew. To resume them, load the saved state (optimizer.load_state_dict) before start.",
                stacklevel=4,
            )


def grow_by_stage(
    stage: Stage,
    model: PreTrainedModel,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    fresh: Fresh = "mean",
) -> tuple[Plan, dict[str, Any]]:
    """Grow a model and its optimizers in place; return the plan, and the entry of the growth in a history.

    The rates of the stage before end.

    fresh: as for `growth.grow_optimizer`, where the stage carries the optimizer's state.
    """
    recipe = as_recipe(stage.recipe)
    parameters = model.num_parameters()
    plan = grow_in_place(model, optimizers, recipe, fresh=ways(stage, fresh))
    for optimizer in optimizers:
        end_rates(optimizer)
    entry = {"step": step, "num_parameters_before": parameters, **history_entry(plan), "lossy": not plan.preserving}
    return plan, entry | {"moment": stage.at.words, **identity(recipe, plan.stored.whole_config)}


def begin_rates(
    stage: Stage,
    entry: dict[str, Any],
    model: PreTrainedModel,
    optimizers: Sequence[torch.optim.Optimizer],
    plan: Plan,
) -> None:
    """Begin the learning rates of a stage; state them, and what became of the optimizer, in the growth's entry."""
    entry["optimizer"] = stage.optimizer
    stated = {REWARM: stage.rewarm, "rates": stage.rates}
    entry |= {key: value.model_dump(exclude_none=True) for key, value in stated.items() if value is not None}
    for optimizer in optimizers:
        set_rates(stage, optimizer, model, plan)


def resume_rates(
    stages: Sequence[Stage],
    history: Sequence[Mapping[str, Any]],
    steps: int,
    model: PreTrainedModel,
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Resume the learning rates of the stage in force.

    history: the entries of the growths so far. steps: those that the run has taken.
    """
    for optimizer in optimizers:
        end_rates(optimizer)
    if not history:
        return
    stage, entry = stages[len(history) - 1], history[-1]
    if stage.rates is None and stage.rewarm is None:
        return
    if stage.rewarm is not None and stage.rewarm.share is not None:
        stage = stage.model_copy(update={REWARM: SecondWarmup(**entry[REWARM])})
    since = steps - int(entry["step"]) if entry["step"] else LONG_AGO  # step 0: in a run before this one
    noted = entry.get(UPDATES, ()) if entry["step"] else ()
    updates = noted if len(noted) == len(optimizers) else [since] * len(optimizers)
    for optimizer, done in zip(optimizers, updates, strict=True):
        set_rates(stage, optimizer, model, plan_again(stage.recipe, entry), since if done is None else done)


def note_updates(history: Sequence[Mapping[str, Any]], optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Note in the last growth's entry how many steps each optimizer has taken since, without skipped ones."""
    updates = [updates_at_rates(optimizer) for optimizer in optimizers]
    if history and history[-1]["step"] and updates != [None] * len(updates):
        cast("dict[str, Any]", history[-1])[UPDATES] = updates
