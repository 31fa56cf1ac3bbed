"""A transformers Trainer whose model grows while it trains.

The training loop holds the model and the optimizer in local variables, which a callback cannot replace. So they grow in
place: both objects stay, and the loop, the accelerator, the scheduler and other callbacks need no change.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import copy
from itertools import dropwhile
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from transformers import (
    DefaultFlowCallback,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.training_args import ParallelMode

from growth.errors import ConfigError, RecipeError
from growth.planning.recipe import RecipeLike, as_recipe
from growth.training.data_parallel import data_parallel, rewrap_model
from growth.training.flops import flops_spent, model_flops_per_token
from growth.training.in_place import unwrapped
from growth.training.last_batch import LastBatch, loss_on
from growth.training.moments import Fresh
from growth.training.schedule import Moment, Schedule, ScheduleLike, Stage, load_schedule
from growth.training.schedule_run import begin_rates, grow_by_stage, note_updates, resume_rates
from growth.training.stage_checks import check_stages
from growth.training.stage_rates import end_rates, factors_in_force
from growth.training.trainer_history import check_resumed, growths, note_frozen, scheduled
from growth.training.trainer_log import calling_trainer, log_growth
from growth.training.warmup_length import in_steps, pace, warn_at_growth, warn_at_start


class GrowthCallback(TrainerCallback):  # type: ignore[misc]
    """Grow the model of a transformers Trainer, and its optimizer state, at the times of a schedule.

    schedule: {steps: recipe, ...}, or pairs (Moment(steps=...) or Moment(tokens=...), recipe) in the order of growth;
        recipes as for `growth.plan`.
    fresh: as for `growth.grow_optimizer`.

    The model grows at the end of a step, before the Trainer logs, evaluates and saves. The learning rate, step counts
    and groups do not change. Each growth is logged with the number of parameters and the loss on the step's last batch
    (without dropout) before and after, for integrations and `on_log` too. Its entry in `trainer.state.log_history`, and
    so in every later checkpoint, also states the growth in words and a hash of its recipe. A resumed run must
    use the same schedule up to the checkpoint's step, and a model of the checkpoint's size:
    `from_pretrained(checkpoint)`.

    `GrowthCallback.from_schedule` takes the schedule from a YAML file, which can also state what becomes of the
    optimizer's state and learning rates in each stage. Here, the state grows and no rate changes.

    Each entry of the schedule is applied to a model once. A second call of `train()` with the same callback and model
    counts its steps from 0 and applies only the rest. A new model, from `model_init` for instance, starts with the
    whole schedule.

    All recipes are planned when training begins, so an impossible schedule is refused there. At that point the callback
    also warns of entries that the run cannot reach with its number of steps and tokens. When training ends, it warns of
    entries that were not reached.

    Raises:
        ConfigError, RecipeError: an invalid time, or a recipe that cannot be read: an unknown name, a mistyped key.

    Raises (when training begins):
        ConfigError: something that prevents growing in place (DataParallel, FSDP, DeepSpeed, torch.compile,
            NEFTune, `auto_find_batch_size`, `load_best_model_at_end`), a second GrowthCallback, or a schedule that is
            not that of the resumed run.
        GrowthError: a recipe that does not apply, hooks on submodules or parameters, or an optimizer whose state
            cannot grow.

    >>> callback = GrowthCallback({1000: "double-depth", 3000: "double-width"})
    >>> callback.schedule[0]
    (Moment(steps=1000), 'double-depth')
    """

    def __init__(self, schedule: ScheduleLike, *, fresh: Fresh = "mean") -> None:
        self.stages = self._stated = tuple(Stage(at=when, recipe=_known(when, how)) for when, how in _pairs(schedule))
        self.fresh = fresh
        self._file: Schedule | None = None
        self._grown: WeakKeyDictionary[PreTrainedModel, list[Mapping[str, Any]]] = WeakKeyDictionary()
        self._batch: LastBatch | None = None
        self._flops_per_token = 0
        self._unreachable: list[Moment] = []

    @classmethod
    def from_schedule(cls, schedule: Schedule | str | Path) -> GrowthCallback:
        """Grow by a schedule: a YAML file, the name of a shipped one, or what `growth.load_schedule` returned.

        Shares of the run are shares of `until`, by default of the Trainer's `max_steps`. The run ends at `until`.

        Raises:
            GrowthError: no such file or name, or content that is not a schedule.

        >>> GrowthCallback.from_schedule("double").schedule[0][0]
        Moment(share=0.25)
        """
        callback = cls(())
        callback._file = load_schedule(schedule) if isinstance(schedule, str | Path) else schedule
        callback.stages = callback._stated = callback._file.stages
        return callback

    @property
    def schedule(self) -> tuple[tuple[Moment, RecipeLike], ...]:
        """The time and the recipe of each stage."""
        return tuple((stage.at, stage.recipe) for stage in self.stages)

    @property
    def _until(self) -> Moment | None:
        return None if self._file is None else self._file.until

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **held: Any
    ) -> None:
        """Refuse an impossible schedule, and warn of entries out of reach."""
        model: PreTrainedModel = held["model"]
        optimizer = unwrapped(held["optimizer"])
        if self._file is not None:
            self.stages = self._file.over().stages if self._until else self._file.within(Moment(steps=state.max_steps))
        is_data_parallel = data_parallel(calling_trainer(state)) is not None
        _check_arguments(args, is_data_parallel, bool(self._units & {"tokens", "flops"}))
        _check_alone(state)
        self._take_up(state, model)
        self._flops_per_token = model_flops_per_token(model) if "flops" in self._units else 0
        self._check_counts(state)
        done, last = scheduled(state.log_history), growths(state.log_history)[-1:]
        check_stages(
            self._left(state),
            model,
            [optimizer],
            None if self._file is None else self._name,
            self.fresh,
            done=len(done),
        )
        warn_at_start(self._left(state), self._ends(state), self._name, len(done))
        resume_rates(self.stages, done if last == done[-1:] else (), state.global_step, model, [optimizer])
        self._unreachable = self._beyond(args, state, model)
        for when in self._unreachable:
            warnings.warn(
                f"The growth {when.words} will not happen: this run ends after {state.max_steps} steps"
                f"{'' if when.tokens is None else ', which cannot hold as many tokens'}.",
                stacklevel=2,
            )

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **held: Any) -> None:
        """Keep the batch of a step after which the model may grow."""
        left = self._left(state)
        if self._batch is not None:
            self._batch.release()  # left by an interrupted run
        self._batch = LastBatch(held["model"]) if left and left[0].at.is_near(state.global_step) else None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **held: Any) -> None:
        """Grow the model by each entry whose moment has come."""
        model: PreTrainedModel = held["model"]
        optimizer = unwrapped(held["optimizer"])
        batch, self._batch = self._batch, None
        inputs = None if batch is None else batch.release()
        note_updates(scheduled(state.log_history), [optimizer])
        note_frozen(scheduled(state.log_history), model)
        if self._until is not None and self._until.is_past(**self._reached(state)):
            _end_run(args, state, control)
        for stage in self._left(state):
            reached = self._reached(state)
            if not stage.at.is_past(**reached):
                return
            before = loss_on(model, inputs)
            plan, entry = grow_by_stage(stage, model, [optimizer], state.global_step, self.fresh)
            if "flops" in self._units:
                entry |= {"tokens": reached["tokens"], "flops": reached["flops"]}
                self._flops_per_token = model_flops_per_token(model)
            state.log_history.append(entry)  # before anything that may fail: the model has grown
            self._grown[model] = scheduled(state.log_history)
            note_frozen(self._grown[model], model)
            per_step = pace(state.global_step, state.num_input_tokens_seen, self._flops_per_token)
            stage = in_steps(stage, self._until, per_step)
            ends = (*(one.at for one in self._left(state)[:1]), *self._ends(state))
            warn_at_growth(
                stage, ends, self._reached(state), per_step, f"{self._name}, stage {len(self._grown[model])}"
            )
            begin_rates(stage, entry, model, [optimizer], plan)
            _checkpoint_activations(model, args)
            rewrap_model(calling_trainer(state))
            numbers = {key: entry[key] for key in ("num_parameters_before", "num_parameters")}
            numbers |= {"loss_before": before, "loss_after": loss_on(model, inputs)}
            log_growth(state, control, {key: value for key, value in numbers.items() if value is not None}, entry)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **held: Any) -> None:
        """State the factors on the logged learning rate, where updates are not whole."""
        factors = factors_in_force(unwrapped(held["optimizer"])) if held.get("optimizer") is not None else {}
        logs = held.get("logs") or {}
        if factors and "learning_rate" in logs:
            for entry in (logs, state.log_history[-1]):
                entry["rate_factors"] = factors

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **held: Any) -> None:
        """Warn of entries that the run did not reach."""
        end_rates(unwrapped(held["optimizer"]))
        for stage in self._left(state):
            if stage.at not in self._unreachable:
                warnings.warn(
                    f"The growth {stage.at.words} has not happened: this run ended after {state.global_step} steps and "
                    f"{state.num_input_tokens_seen} tokens.",
                    stacklevel=2,
                )

    def _ends(self, state: TrainerState) -> tuple[Moment, ...]:
        """What ends the run: the schedule's `until`, or the Trainer's `max_steps`."""
        last = (Moment(steps=state.max_steps),) if state.max_steps > 0 else ()
        return last if self._until is None else (self._until, *last)

    @property
    def _name(self) -> str:
        return "schedule" if self._file is None else self._file.name

    @property
    def _units(self) -> set[str]:
        return {moment.unit for moment in (self._until, *(when for when, _ in self.schedule)) if moment is not None}

    def _reached(self, state: TrainerState) -> dict[str, float]:
        reached = {"steps": state.global_step, "tokens": state.num_input_tokens_seen}
        if "flops" in self._units:
            reached["flops"] = flops_spent(scheduled(state.log_history), reached["tokens"], self._flops_per_token)
        return reached

    def _left(self, state: TrainerState) -> tuple[Stage, ...]:
        return self.stages[len(scheduled(state.log_history)) :]

    def _take_up(self, state: TrainerState, model: PreTrainedModel) -> None:
        """Find the entries that are done: by the resumed run, or by earlier runs of this process."""
        earlier = self._grown.get(model, [])
        if state.global_step == 0 and not scheduled(state.log_history):
            now = {"step": 0, "num_parameters": model.num_parameters()}
            now |= {"tokens": 0, "flops": 0} if "flops" in self._units else {}
            entries = zip(earlier, self._stated, self.stages, strict=False)
            state.log_history.extend(  # later checkpoints must know
                {**entry, **now} | ({"moment": stage.at.words} if stated.at.share else {})
                for entry, stated, stage in entries
            )
        if len(scheduled(state.log_history)) < len(earlier):
            raise ConfigError(
                f"The model has been grown {earlier[-1]['moment']}, and the checkpoint to resume from is from before "
                "that. Build the model as large as the checkpoint: from_pretrained(checkpoint)."
            )
        last = growths(state.log_history)[-1:]
        check_resumed(scheduled(state.log_history), self.schedule, model, last=last[0] if last else None)
        self._grown[model] = scheduled(state.log_history)

    def _check_counts(self, state: TrainerState) -> None:
        """Refuse to resume a run of which no count has been kept that the schedule needs, or one at its end."""
        uncounted = "FLOPs" if any("flops" not in entry for entry in scheduled(state.log_history)) else None
        uncounted = None if "flops" not in self._units else uncounted
        if state.global_step and not state.num_input_tokens_seen and self._units & {"tokens", "flops"}:
            uncounted = "tokens"
        if uncounted is not None:
            raise ConfigError(
                f"The schedule counts {' and '.join(sorted(self._units))}, and the run that is resumed has not counted "
                f"its {uncounted} up to step {state.global_step}. Give times in steps, or start a new run from the "
                "model's weights."
            )
        if self._until is not None and self._until.is_past(**self._reached(state)):
            raise ConfigError(
                f"The run that is resumed is at step {state.global_step}, and the schedule ends it {self._until.words}:"
                " nothing is left to train. Raise 'until' in the schedule to continue."
            )

    def _beyond(self, args: TrainingArguments, state: TrainerState, model: PreTrainedModel) -> list[Moment]:
        """The entries that a run will not reach: the first such entry and all after it."""
        if state.max_steps <= 0:
            return []
        tokens, positions = None, getattr(model.config, "max_position_embeddings", None)
        if isinstance(positions, int):
            rows = args.train_batch_size * args.gradient_accumulation_steps
            tokens = state.num_input_tokens_seen + (state.max_steps - state.global_step) * rows * positions
        moments = (stage.at for stage in self._left(state))
        return list(dropwhile(lambda when: when.is_past(steps=state.max_steps, tokens=tokens), moments))


def _pairs(schedule: ScheduleLike) -> list[tuple[Moment, RecipeLike]]:
    """The times and recipes of a schedule, in order; a number stands for steps.

    Raises:
        ConfigError: something else than a mapping or pairs.
    """
    if isinstance(schedule, Schedule | str | Path):
        raise ConfigError(
            "GrowthCallback takes {steps: recipe, ...}, such as {1000: 'double-depth'}. For a schedule, its file or "
            "its name, use GrowthCallback.from_schedule."
        )
    try:
        pairs = [(when, how) for when, how in (schedule.items() if isinstance(schedule, Mapping) else schedule)]
    except (TypeError, ValueError):
        raise ConfigError(
            f"GrowthCallback takes {{steps: recipe, ...}}, or pairs (Moment(...), recipe), and not {schedule!r}."
        ) from None
    timed = [(when if isinstance(when, Moment) else Moment(when), how) for when, how in pairs]
    return sorted(timed, key=lambda pair: pair[0].steps or 0) if isinstance(schedule, Mapping) else timed


def _known(when: Moment, recipe: RecipeLike) -> RecipeLike:
    """A recipe that can be read, as it is stated.

    Raises:
        RecipeError: it cannot.
    """
    try:
        as_recipe(recipe)
    except RecipeError as error:
        raise RecipeError(f"The growth {when.words}: {error.args[0]}", *error.args[1:]) from None
    return recipe


def _end_run(args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
    """Stop after this step, and log, evaluate and save as the Trainer does after its last one."""
    last = copy(state)
    last.max_steps = state.global_step
    DefaultFlowCallback().on_step_end(args, last, control)


def _checkpoint_activations(model: PreTrainedModel, args: TrainingArguments) -> None:
    """Checkpoint activations as the Trainer does before training."""
    if not args.activation_checkpointing:
        return
    options = dict(args.activation_checkpointing_kwargs or {})
    every, offload = options.pop("every_n_layers", 1), options.pop("offload", False)
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs=options or None, every_n_layers=every, offload=offload
    )


def _check_alone(state: TrainerState) -> None:
    """Refuse a second GrowthCallback, since each would count the other's growths as its own."""
    trainer = calling_trainer(state)
    callbacks = trainer.callback_handler.callbacks if trainer is not None else ()
    if sum(isinstance(callback, GrowthCallback) for callback in callbacks) > 1:
        raise ConfigError(
            "The Trainer has more than one GrowthCallback, and the log history does not say which of them made a "
            "growth. Give one callback the entries of all schedules."
        )


def _check_arguments(args: TrainingArguments, is_data_parallel: bool, by_tokens: bool) -> None:
    """Refuse a Trainer whose model cannot grow in place."""
    reasons = {
        "DeepSpeed": bool(args.deepspeed),
        "FSDP": bool(args.fsdp),
        "DataParallel (several GPUs in one process)": args.parallel_mode == ParallelMode.NOT_DISTRIBUTED,
        "several processes that do not use DDP": not is_data_parallel
        and args.parallel_mode not in (ParallelMode.NOT_PARALLEL, ParallelMode.NOT_DISTRIBUTED),
        "torch_compile": bool(args.torch_compile),
        "neftune_noise_alpha": args.neftune_noise_alpha is not None,
        "auto_find_batch_size": args.auto_find_batch_size,
    }
    for reason, is_so in reasons.items():
        if is_so:
            config = " --config MODEL" if reason == "FSDP" else ""
            raise ConfigError(
                f"A model cannot grow during a Trainer's run with {reason}. Stop the run at a checkpoint, grow that "
                f"(growth grow RECIPE --source CHECKPOINT --output LARGER --training{config}), and resume from LARGER, "
                "with a model of its config.json."
            )
    if args.load_best_model_at_end:
        raise ConfigError(
            "load_best_model_at_end may load a checkpoint from before a growth, which has another size: leave it out, "
            "and load the best checkpoint by from_pretrained."
        )
    if by_tokens and args.include_num_input_tokens_seen == "no":
        raise ConfigError("A schedule by tokens or FLOPs needs TrainingArguments(include_num_input_tokens_seen='all').")
