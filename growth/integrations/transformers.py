"""A transformers Trainer whose model grows while it trains.

The training loop holds the model and the optimizer in variables of its own, out of a callback's reach. So they grow in
place: the objects stay, and take over what the grown ones are made of. The loop, the accelerator, the learning rate's
scheduler and other callbacks go on with what they hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import ParallelMode

from growth.api import How, grow_model, plan, plan_next
from growth.errors import ConfigError
from growth.live import check_hooks, take_over
from growth.optimizer import Fresh, grow_optimizer, grow_state
from growth.optimizer_state import check_class
from growth.planning import Plan

ENTRY = "growth"  # key of an entry in the trainer's log history, which says that a growth has been done


@dataclass(frozen=True)
class When:
    """A moment of a training: after so many steps, or tokens, from its very beginning.

    >>> When(steps=1000).words
    'after 1000 steps'
    """

    steps: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        numbers = [number for number in (self.steps, self.tokens) if number is not None]
        if len(numbers) != 1 or numbers[0] < 1:
            raise ConfigError(f"A moment is When(steps=n) or When(tokens=n), n of 1 or more; this is {self}.")

    def is_past(self, state: TrainerState) -> bool:
        """Whether a training has come that far."""
        if self.steps is not None:
            return bool(state.global_step >= self.steps)
        return bool(state.num_input_tokens_seen >= (self.tokens or 0))

    @property
    def words(self) -> str:
        """The moment in words."""
        return f"after {self.steps} steps" if self.steps is not None else f"after {self.tokens} tokens"


Schedule = Mapping[int, How] | Iterable[tuple[When, How]]


class GrowthCallback(TrainerCallback):  # type: ignore[misc]
    """Grows the model of a transformers Trainer at given moments, and the optimizer's state with it.

    schedule: {steps: recipe, ...}, or (When(steps=...) or When(tokens=...), recipe) in the order of growth. A recipe is
        as for `growth.plan`.
    fresh: as for `growth.grow_optimizer`.

    A growth happens at the end of its step, before the Trainer logs, evaluates and saves there. The learning rate, step
    counts and groups go on as they were. Every growth is an entry of `trainer.state.log_history`, and so of each later
    checkpoint: a run that resumes knows what has been done. Its model must be built as large as the checkpoint's, by
    `from_pretrained(checkpoint)`.

    All recipes are tried (by headers) when training begins, so a schedule that cannot be carried out stops it there.

    Raises (when training begins):
        ConfigError: what cannot grow in place: DDP, DataParallel, FSDP, DeepSpeed, torch.compile, NEFTune,
            `auto_find_batch_size`, `load_best_model_at_end`; or a schedule that is not that of the run resumed.
        GrowthError: a recipe that does not apply, or an optimizer whose state cannot grow.

    >>> callback = GrowthCallback({1000: "double-depth", 3000: "double-width"})
    >>> callback.schedule[0]
    (When(steps=1000, tokens=None), 'double-depth')
    """

    def __init__(self, schedule: Schedule, *, fresh: Fresh = "seed") -> None:
        if isinstance(schedule, Mapping):
            schedule = [(When(steps), how) for steps, how in sorted(schedule.items())]
        self.schedule = tuple(schedule)
        self.fresh = fresh

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
        """Refuses what cannot be done, before the first step."""
        _check_arguments(args, any(when.tokens is not None for when, _ in self.schedule))
        self._check_resumed(state, model)
        check_class(unwrapped(optimizer))
        made: Plan | None = None
        for _, how in self.schedule[len(done(state)) :]:
            made = plan(how, model) if made is None else plan_next(how, made)
            grow_state({}, made, fresh=self.fresh)  # refuses what has experts

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
        while len(done(state)) < len(self.schedule):
            when, how = self.schedule[len(done(state))]
            if not when.is_past(state):
                return
            made = grow_in_place(model, unwrapped(optimizer), how, fresh=self.fresh)
            _checkpoint_activations(model, args)
            state.log_history.append(
                {
                    "step": state.global_step,
                    ENTRY: ", then ".join(step.operator for step in made.growth.steps),
                    "moment": when.words,
                    "num_parameters": model.num_parameters(),
                }
            )

    def _check_resumed(self, state: TrainerState, model: PreTrainedModel) -> None:
        entries = done(state)
        planned = [when.words for when, _ in self.schedule]
        was = [entry["moment"] for entry in entries]
        if planned[: len(was)] != was:
            raise ConfigError(
                f"The run that is resumed has grown {', '.join(was)}, and this schedule says {', '.join(planned)}. "
                "Resume it with the growths that it has done, then any others."
            )
        if entries and entries[-1]["num_parameters"] != model.num_parameters():
            raise ConfigError(
                f"The run that is resumed has grown to {entries[-1]['num_parameters']:,} parameters and the model has "
                f"{model.num_parameters():,}. Build it as large as the checkpoint: from_pretrained(checkpoint)."
            )


def done(state: TrainerState) -> list[dict[str, Any]]:
    """The growths that a run has done, as the entries of its log history."""
    return [entry for entry in state.log_history if ENTRY in entry]


def unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer within accelerate's wrapper."""
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, torch.optim.Optimizer)
    return inner


def grow_in_place(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, recipe: How, *, fresh: Fresh = "seed"
) -> Plan:
    """Grows a model and its optimizer, both of which stay the objects that they are; returns the plan.

    Parameters are new, on the model's device, and frozen where those that they grew from are. Whoever holds single
    parameters or submodules (hooks, EMA copies, a compiled graph) holds the old ones. A scheduler goes on as it is.

    Raises:
        GrowthError: a recipe that does not apply, hooks on submodules or parameters, or training state that cannot
            grow; nothing has changed then.
    """
    made = plan(recipe, model)
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
