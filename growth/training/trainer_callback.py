"""A transformers Trainer whose model grows while it trains.

The training loop holds the model and the optimizer in local variables, which a callback cannot replace. So they grow in
place: both objects stay, and the loop, the accelerator, the scheduler and other callbacks need no change.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import dropwhile
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import ParallelMode

from growth.errors import ConfigError
from growth.output.in_memory import plan_in_memory
from growth.output.model_checks import check_hooks
from growth.planning.plan import Plan
from growth.planning.prepare import RecipeLike, plan_next
from growth.planning.recipe import load_recipe
from growth.training.in_place import grow_in_place, unwrapped
from growth.training.last_batch import LastBatch, loss_on
from growth.training.moments import Fresh
from growth.training.optimizer import check_optimizer
from growth.training.schedule import Moment, Schedule
from growth.training.trainer_history import check_recipe, growths, history_entry, identity, scheduled
from growth.training.trainer_log import calling_trainer, log_growth


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

    Each entry of the schedule is applied to a model once. A second call of `train()` with the same callback and model
    counts its steps from 0 and applies only the rest. A new model, from `model_init` for instance, starts with the
    whole schedule.

    All recipes are planned when training begins, so an impossible schedule is refused there. At that point the callback
    also warns of entries that the run cannot reach with its number of steps and tokens. When training ends, it warns of
    entries that were not reached.

    Raises (when training begins):
        ConfigError: something that prevents growing in place (DDP, DataParallel, FSDP, DeepSpeed, torch.compile,
            NEFTune, `auto_find_batch_size`, `load_best_model_at_end`), a second GrowthCallback, or a schedule that is
            not that of the resumed run.
        GrowthError: a recipe that does not apply, hooks on submodules or parameters, or an optimizer whose state
            cannot grow.

    >>> callback = GrowthCallback({1000: "double-depth", 3000: "double-width"})
    >>> callback.schedule[0]
    (Moment(steps=1000, tokens=None), 'double-depth')
    """

    def __init__(self, schedule: Schedule, *, fresh: Fresh = "mean") -> None:
        if isinstance(schedule, Mapping):
            schedule = sorted(((Moment(n), how) for n, how in schedule.items()), key=lambda entry: entry[0].steps or 0)
        self.schedule = tuple(schedule)
        self.fresh = fresh
        self._grown: WeakKeyDictionary[PreTrainedModel, list[Mapping[str, Any]]] = WeakKeyDictionary()
        self._batch: LastBatch | None = None
        self._unreachable: list[Moment] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **held: Any
    ) -> None:
        """Refuse an impossible schedule, and warn of entries out of reach."""
        model: PreTrainedModel = held["model"]
        _check_arguments(args, any(when.tokens is not None for when, _ in self.schedule))
        _check_alone(state)
        self._take_up(state, model)
        if self._left(state):
            check_hooks(model, own=False)
        plan: Plan | None = None
        for _, how in self._left(state):
            plan = plan_in_memory(how, model) if plan is None else plan_next(how, plan)
            check_optimizer(unwrapped(held["optimizer"]), model, plan)
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
        self._batch = LastBatch(held["model"]) if left and left[0][0].is_near(state) else None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **held: Any) -> None:
        """Grow the model by each entry whose moment has come."""
        model: PreTrainedModel = held["model"]
        batch, self._batch = self._batch, None
        inputs = None if batch is None else batch.release()
        for when, how in self._left(state):
            if not when.is_past(state):
                return
            recipe = load_recipe(how) if isinstance(how, str | Path) else how
            parameters, before = model.num_parameters(), loss_on(model, inputs)
            plan = grow_in_place(model, unwrapped(held["optimizer"]), recipe, fresh=self.fresh)
            entry = {"step": state.global_step, "num_parameters_before": parameters, **history_entry(plan)}
            entry |= {"moment": when.words, **identity(recipe, plan.stored.config)}
            state.log_history.append(entry)  # before anything that may fail: the model has grown
            self._grown[model] = scheduled(state.log_history)
            _checkpoint_activations(model, args)
            numbers = {key: entry[key] for key in ("num_parameters_before", "num_parameters")}
            numbers |= {"loss_before": before, "loss_after": loss_on(model, inputs)}
            log_growth(state, control, {key: value for key, value in numbers.items() if value is not None}, entry)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **held: Any) -> None:
        """Warn of entries that the run did not reach."""
        for when, _ in self._left(state):
            if when not in self._unreachable:
                warnings.warn(
                    f"The growth {when.words} has not happened: this run ended after {state.global_step} steps and "
                    f"{state.num_input_tokens_seen} tokens.",
                    stacklevel=2,
                )

    def _left(self, state: TrainerState) -> tuple[tuple[Moment, RecipeLike], ...]:
        return self.schedule[len(scheduled(state.log_history)) :]

    def _take_up(self, state: TrainerState, model: PreTrainedModel) -> None:
        """Find the entries that are done: by the resumed run, or by earlier runs of this process."""
        earlier = self._grown.get(model, [])
        if state.global_step == 0 and not scheduled(state.log_history):
            now = {"step": 0, "num_parameters": model.num_parameters()}
            state.log_history.extend({**entry, **now} for entry in earlier)  # later checkpoints must know
        if len(scheduled(state.log_history)) < len(earlier):
            raise ConfigError(
                f"The model has been grown {earlier[-1]['moment']}, and the checkpoint to resume from is from before "
                "that. Build the model as large as the checkpoint: from_pretrained(checkpoint)."
            )
        self._check_resumed(state, model)
        self._grown[model] = scheduled(state.log_history)

    def _beyond(self, args: TrainingArguments, state: TrainerState, model: PreTrainedModel) -> list[Moment]:
        """The entries that a run will not reach: the first such entry and all after it."""
        if state.max_steps <= 0:
            return []
        tokens, positions = None, getattr(model.config, "max_position_embeddings", None)
        if isinstance(positions, int):
            rows = args.train_batch_size * args.gradient_accumulation_steps
            tokens = state.num_input_tokens_seen + (state.max_steps - state.global_step) * rows * positions
        moments = (when for when, _ in self._left(state))
        return list(dropwhile(lambda when: when.is_within(state.max_steps, tokens), moments))

    def _check_resumed(self, state: TrainerState, model: PreTrainedModel) -> None:
        entries = scheduled(state.log_history)
        planned = [when.words for when, _ in self.schedule]
        was = [entry["moment"] for entry in entries]
        if planned[: len(was)] != was:
            raise ConfigError(
                f"The run that is resumed has grown {', '.join(was)}, and this schedule says {', '.join(planned)}. "
                "Begin the schedule with the entries that the run has applied."
            )
        for entry, (_, how) in zip(entries, self.schedule, strict=False):
            check_recipe(entry, how)
        last = growths(state.log_history)[-1:]
        if last and last[0]["num_parameters"] != model.num_parameters():
            raise ConfigError(
                f"The run that is resumed has grown to {last[0]['num_parameters']:,} parameters and the model has "
                f"{model.num_parameters():,}. Build it as large as the checkpoint: from_pretrained(checkpoint)."
            )


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


def _check_arguments(args: TrainingArguments, by_tokens: bool) -> None:
    """Refuse a Trainer whose model cannot grow in place."""
    reasons = {
        "DeepSpeed": bool(args.deepspeed),
        "FSDP": bool(args.fsdp),
        "DataParallel (several GPUs in one process)": args.parallel_mode == ParallelMode.NOT_DISTRIBUTED,
        "several processes": args.parallel_mode not in (ParallelMode.NOT_PARALLEL, ParallelMode.NOT_DISTRIBUTED),
        "torch_compile": bool(args.torch_compile),
        "neftune_noise_alpha": args.neftune_noise_alpha is not None,
        "auto_find_batch_size": args.auto_find_batch_size,
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise ConfigError(
                f"A model cannot grow during a Trainer's run with {reason}. Stop the run at a checkpoint, grow that "
                "(growth grow RECIPE --training), and resume from the result."
            )
    if args.load_best_model_at_end:
        raise ConfigError(
            "load_best_model_at_end may load a checkpoint from before a growth, which has another size: leave it out, "
            "and load the best checkpoint by from_pretrained."
        )
    if by_tokens and args.include_num_input_tokens_seen == "no":
        raise ConfigError("A schedule by tokens needs TrainingArguments(include_num_input_tokens_seen='all').")
