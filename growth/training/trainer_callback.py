"""A transformers Trainer whose model grows while it trains.

The training loop holds the model and the optimizer in variables of its own, out of a callback's reach. So they grow in
place: the objects stay, and take over what the grown ones are made of. The loop, the accelerator, the learning rate's
scheduler and other callbacks go on with what they hold.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import ParallelMode

from growth.errors import ConfigError, GrowthError
from growth.output.in_memory import grow_model, plan_in_memory
from growth.output.live_model import check_hooks, take_over
from growth.planning.plan import Plan
from growth.planning.prepare import RecipeLike, growth_of, plan_next
from growth.planning.recipe import load_recipe
from growth.training.last_batch import LastBatch, loss_on
from growth.training.optimizer import Fresh, check_optimizer, grow_optimizer
from growth.training.trainer_history import digest, growths, history_entry, steps_in_words


@dataclass(frozen=True)
class Moment:
    """A moment of a training: after so many steps, or tokens, from its very beginning.

    >>> Moment(steps=1000).words
    'after 1000 steps'
    """

    steps: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        numbers = [number for number in (self.steps, self.tokens) if number is not None]
        if len(numbers) != 1 or type(numbers[0]) is not int or numbers[0] < 1:
            raise ConfigError(
                f"Invalid schedule entry {self}: give either steps or tokens, as a whole number of at least 1."
            )

    def is_past(self, state: TrainerState) -> bool:
        """Whether a training has come that far."""
        if self.steps is not None:
            return bool(state.global_step >= self.steps)
        return bool(state.num_input_tokens_seen >= (self.tokens or 0))

    def is_near(self, state: TrainerState) -> bool:
        """Whether a training may come that far by its next step."""
        return self.steps is None or bool(state.global_step + 1 >= self.steps)

    def is_within(self, steps: int, tokens: int | None) -> bool:
        """Whether a training of so many steps, and at most so many tokens if that is known, comes that far."""
        if self.steps is not None:
            return self.steps <= steps
        return tokens is None or (self.tokens or 0) <= tokens

    @property
    def words(self) -> str:
        """The moment in words."""
        return f"after {self.steps} steps" if self.steps is not None else f"after {self.tokens} tokens"


Schedule = Mapping[int, RecipeLike] | Iterable[tuple[Moment, RecipeLike]]


class GrowthCallback(TrainerCallback):  # type: ignore[misc]
    """Grows the model of a transformers Trainer at given moments, and the optimizer's state with it.

    schedule: {steps: recipe, ...}, or (Moment(steps=...) or Moment(tokens=...), recipe) in the order of growth.
        A recipe is as for `growth.plan`.
    fresh: as for `growth.grow_optimizer`.

    A growth happens at the end of its step, before the Trainer logs, evaluates and saves there. The learning rate, step
    counts and groups stay as they were. Each growth is an entry of the Trainer's log, with the number of parameters and
    the loss on the step's last batch (without dropout) before and after, which integrations and `on_log` see too; the
    entry in `trainer.state.log_history` also has the growth in words, and so has each later checkpoint: a run that
    resumes knows what has been done, and by which recipe. Its schedule must have the same entries so far, and its model
    must be built as large as the checkpoint's, by `from_pretrained(checkpoint)`.

    Each entry of the schedule is carried out once for a model. A further call of `train()` with the same callback and
    model starts a run whose steps count from 0 and carries out only what is left. A model that is built anew, by
    `model_init` for instance, starts with the whole schedule.

    All recipes are tried (by headers) when training begins, so a schedule that cannot be carried out stops it there. An
    entry that the run will not reach, by its number of steps or by the tokens that these can hold, is a warning then;
    one that it did not reach, a warning at its end.

    Raises (when training begins):
        ConfigError: what cannot grow in place: DDP, DataParallel, FSDP, DeepSpeed, torch.compile, NEFTune,
            `auto_find_batch_size`, `load_best_model_at_end`; a second GrowthCallback; or a schedule that is not that
            of the run resumed.
        GrowthError: a recipe that does not apply, hooks on submodules or parameters, or an optimizer whose state
            cannot grow.

    >>> callback = GrowthCallback({1000: "double-depth", 3000: "double-width"})
    >>> callback.schedule[0]
    (Moment(steps=1000, tokens=None), 'double-depth')
    """

    def __init__(self, schedule: Schedule, *, fresh: Fresh = "seed") -> None:
        if isinstance(schedule, Mapping):
            schedule = sorted(((Moment(n), how) for n, how in schedule.items()), key=lambda entry: entry[0].steps or 0)
        self.schedule = tuple(schedule)
        self.fresh = fresh
        self._grown: WeakKeyDictionary[PreTrainedModel, list[Mapping[str, Any]]] = WeakKeyDictionary()
        self._batch: LastBatch | None = None
        self._unreachable: list[Moment] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        **kwargs: Any,  # what the Trainer hands to every callback
    ) -> None:
        """Refuses what cannot be done, before the first step, and warns of what will not be."""
        _check_arguments(args, any(when.tokens is not None for when, _ in self.schedule))
        _check_alone(state)
        self._take_up(state, model)
        if self._left(state):
            check_hooks(model, own=False)
        made: Plan | None = None
        for _, how in self._left(state):
            made = plan_in_memory(how, model) if made is None else plan_next(how, made)
            check_optimizer(unwrapped(optimizer), model, made)
        self._unreachable = self._beyond(args, state, model)
        for when in self._unreachable:
            warnings.warn(
                f"The growth {when.words} will not happen: this run ends after {state.max_steps} steps"
                f"{'' if when.tokens is None else ', which cannot hold as many tokens'}.",
                stacklevel=2,
            )

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: PreTrainedModel,
        **kwargs: Any,
    ) -> None:
        """Keeps the batch of a step after which the model may grow."""
        left = self._left(state)
        if self._batch is not None:
            self._batch.release()  # of a run that was interrupted
        self._batch = LastBatch(model) if left and left[0][0].is_near(state) else None

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        **kwargs: Any,
    ) -> None:
        """Grows what is due."""
        batch, self._batch = self._batch, None
        inputs = None if batch is None else batch.release()
        for when, how in self._left(state):
            if not when.is_past(state):
                return
            recipe = load_recipe(how) if isinstance(how, str | Path) else how
            parameters, before = model.num_parameters(), loss_on(model, inputs)
            made = grow_in_place(model, unwrapped(optimizer), recipe, fresh=self.fresh)
            entry = {
                "step": state.global_step,
                "num_parameters_before": parameters,
                **history_entry(made),
                "moment": when.words,
                **_identity(recipe, made.source.config),
            }
            state.log_history.append(entry)  # before anything that may fail: the model has grown
            self._grown[model] = done(state)
            _checkpoint_activations(model, args)
            losses = {"loss_before": before, "loss_after": loss_on(model, inputs)}
            known = {key: loss for key, loss in losses.items() if loss is not None}
            numbers = {key: entry[key] for key in ("num_parameters_before", "num_parameters")}
            _log(state, control, {**numbers, **known}, entry)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warns of what has not been done."""
        for when, _ in self._left(state):
            if when not in self._unreachable:
                warnings.warn(
                    f"The growth {when.words} has not happened: this run ended after {state.global_step} steps and "
                    f"{state.num_input_tokens_seen} tokens.",
                    stacklevel=2,
                )

    def _left(self, state: TrainerState) -> tuple[tuple[Moment, RecipeLike], ...]:
        return self.schedule[len(done(state)) :]

    def _take_up(self, state: TrainerState, model: PreTrainedModel) -> None:
        """Settles what has been done: by the run that is resumed, or by earlier runs of this process."""
        earlier = self._grown.get(model, [])
        if state.global_step == 0 and not done(state):
            now = {"step": 0, "num_parameters": model.num_parameters()}
            state.log_history.extend({**entry, **now} for entry in earlier)  # later checkpoints must know
        if len(done(state)) < len(earlier):
            raise ConfigError(
                f"The model has been grown {earlier[-1]['moment']}, and the checkpoint to resume from is from before "
                "that. Build the model as large as the checkpoint: from_pretrained(checkpoint)."
            )
        self._check_resumed(state, model)
        self._grown[model] = done(state)

    def _beyond(self, args: TrainingArguments, state: TrainerState, model: PreTrainedModel) -> list[Moment]:
        """The moments that a run will not reach; the entries behind such a one wait for it."""
        if state.max_steps <= 0:
            return []
        tokens, positions = None, getattr(model.config, "max_position_embeddings", None)
        if isinstance(positions, int):
            rows = args.train_batch_size * args.gradient_accumulation_steps
            tokens = state.num_input_tokens_seen + (state.max_steps - state.global_step) * rows * positions
        moments = [when for when, _ in self._left(state)]
        reached = [when.is_within(state.max_steps, tokens) for when in moments]
        return moments[reached.index(False) :] if False in reached else []

    def _check_resumed(self, state: TrainerState, model: PreTrainedModel) -> None:
        entries = done(state)
        planned = [when.words for when, _ in self.schedule]
        was = [entry["moment"] for entry in entries]
        if planned[: len(was)] != was:
            raise ConfigError(
                f"The run that is resumed has grown {', '.join(was)}, and this schedule says {', '.join(planned)}. "
                "Resume it with the growths that it has done, then any others."
            )
        for entry, (_, how) in zip(entries, self.schedule, strict=False):
            _check_recipe(entry, how)
        last = growths(state.log_history)[-1:]
        if last and last[0]["num_parameters"] != model.num_parameters():
            raise ConfigError(
                f"The run that is resumed has grown to {last[0]['num_parameters']:,} parameters and the model has "
                f"{model.num_parameters():,}. Build it as large as the checkpoint: from_pretrained(checkpoint)."
            )


def done(state: TrainerState) -> list[Mapping[str, Any]]:
    """The growths of its schedule that a run has done, as the entries of its log history."""
    return [entry for entry in growths(state.log_history) if "moment" in entry]


def _identity(how: RecipeLike, config: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a recipe from another one: what it makes of a config."""
    plain = json.loads(json.dumps(dict(config)))  # as a checkpoint has it: keys are texts
    return {"recipe": digest(*growth_of(how, plain)), "source_config": plain}


def _check_recipe(entry: Mapping[str, Any], how: RecipeLike) -> None:
    """Refuses a schedule by which a growth that is done would have been another one.

    Raises:
        ConfigError: the recipe makes something else of the config that the growth began from.
    """
    if "recipe" not in entry:  # of a version that did not write it
        return
    try:
        growth, seed = growth_of(how, entry["source_config"])
        if digest(growth, seed) == entry["recipe"]:
            return
        found = f"'{steps_in_words(growth)}'"
    except GrowthError as error:
        found = f"a recipe that does not apply ({error})"
    if found == f"'{entry['growth']}'":
        found = "the same operators with another seed, or other shares or noise"
    raise ConfigError(
        f"The run that is resumed has grown {entry['moment']} by '{entry['growth']}', and the schedule has {found} "
        "there. Resume it with the recipes by which it has grown, or start a new run from its weights."
    )


def _log(state: TrainerState, control: TrainerControl, numbers: Mapping[str, float], entry: dict[str, Any]) -> None:
    """Logs by `Trainer.log`, so that integrations and other callbacks see it.

    entry: the growth's own in the log history. It takes over what `log` appends, unless a Trainer overrides that and
        writes something else.
    """
    trainer, should_log, length = _calling_trainer(state), control.should_log, len(state.log_history)
    entry.update(numbers)
    if trainer is not None:
        trainer.log(dict(numbers))
    control.should_log = should_log  # the log of this step's loss is still to come
    for place, added in enumerate(state.log_history[length:], start=length):
        if numbers.items() <= added.items():
            entry.update({key: value for key, value in added.items() if key not in entry})
            del state.log_history[place]
            return


def _calling_trainer(state: TrainerState) -> Trainer | None:
    """The Trainer whose state this is. It is on the stack; a callback is given nothing that leads to it."""
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer) and caller.state is state:
            return caller
        frame = frame.f_back
    return None


def unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer within accelerate's wrapper."""
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, torch.optim.Optimizer)
    return inner


def grow_in_place(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, recipe: RecipeLike, *, fresh: Fresh = "seed"
) -> Plan:
    """Grows a model and its optimizer, both of which stay the objects that they are; returns the plan.

    Parameters are new, on the model's device, and frozen where those that they grew from are. Whoever holds single
    parameters or submodules (hooks, EMA copies, a compiled graph) holds the old ones. A scheduler goes on as it is.

    Raises:
        GrowthError: a recipe that does not apply, hooks on submodules or parameters, or training state that cannot
            grow; nothing has changed then.
    """
    made = plan_in_memory(recipe, model)
    check_hooks(model, own=False)
    larger = grow_model(model, made, hooks="drop")
    grown = grow_optimizer(optimizer, model, larger, made, fresh=fresh)
    take_over(model, larger)
    optimizer.param_groups, optimizer.state = grown.param_groups, grown.state
    return made


def _checkpoint_activations(model: PreTrainedModel, args: TrainingArguments) -> None:
    """As the Trainer does it before training."""
    if not args.activation_checkpointing:
        return
    options = dict(args.activation_checkpointing_kwargs or {})
    every, offload = options.pop("every_n_layers", 1), options.pop("offload", False)
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs=options or None, every_n_layers=every, offload=offload
    )


def _check_alone(state: TrainerState) -> None:
    """Refuses a second GrowthCallback: each would take the other's growths for its own."""
    trainer = _calling_trainer(state)
    callbacks = trainer.callback_handler.callbacks if trainer is not None else ()
    if sum(isinstance(callback, GrowthCallback) for callback in callbacks) > 1:
        raise ConfigError(
            "The Trainer has more than one GrowthCallback, and the log history does not tell whose a growth is. Give "
            "one callback the entries of all schedules."
        )


def _check_arguments(args: TrainingArguments, by_tokens: bool) -> None:
    """Refuses a Trainer whose model cannot grow in place."""
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
                f"A model cannot grow in the middle of a Trainer's run with {reason}. Stop the run at a checkpoint, "
                "grow that (growth grow RECIPE --training), and resume from the result."
            )
    if args.load_best_model_at_end:
        raise ConfigError(
            "load_best_model_at_end would load a checkpoint of another size after a growth: leave it out, and take the "
            "best checkpoint by from_pretrained."
        )
    if by_tokens and args.include_num_input_tokens_seen == "no":
        raise ConfigError("A schedule by tokens needs TrainingArguments(include_num_input_tokens_seen='all').")
