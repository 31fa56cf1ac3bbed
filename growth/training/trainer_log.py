"""The log of the Trainer that calls a callback."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers import Trainer, TrainerControl, TrainerState


def log_growth(
    state: TrainerState, control: TrainerControl, numbers: Mapping[str, float], entry: dict[str, Any]
) -> None:
    """Log numbers of a growth by `Trainer.log`, so that integrations and other callbacks see them.

    entry: the growth's entry in the log history, into which the entry that `log` appends is merged.
    """
    trainer, should_log, length = calling_trainer(state), control.should_log, len(state.log_history)
    entry.update(numbers)
    if trainer is not None:
        trainer.log(dict(numbers))
    control.should_log = should_log  # the log of this step's loss is still to come
    for place, added in enumerate(state.log_history[length:], start=length):
        if numbers.items() <= added.items():
            entry.update({key: value for key, value in added.items() if key not in entry})
            del state.log_history[place]
            return


def calling_trainer(state: TrainerState) -> Trainer | None:
    """The Trainer that a state belongs to: it is on the stack, and a callback gets no reference to it."""
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer) and caller.state is state:
            return caller
        frame = frame.f_back
    return None
