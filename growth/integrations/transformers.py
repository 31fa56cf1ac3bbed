"""A transformers Trainer whose model grows while it trains (progressive growth).

The training loop holds the model and the optimizer in variables of its own, out of a callback's reach, so they grow
in place: the objects stay, and take over what the grown ones are made of. So the loop, the accelerator, the learning
rate's scheduler and other callbacks go on with what they hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.training_args import ParallelMode

from growth.api import How, grow_model, plan
from growth.errors import ConfigError
from growth.optimizer import Fresh, grow_optimizer

KEY = "growth"  # of an entry in the trainer's log history: it says which growths have been done


@dataclass(frozen=True)
class When:
    """A moment of a training: after so many steps, or tokens."""

    steps: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.tokens is None) or (self.steps or self.tokens or 0) < 1:
            raise ConfigError(f"A moment is After(steps=N) or After(tokens=N) with N of 1 or more; this is {self}.")

    def is_past(self, state: TrainerState) -> bool:
        """Whether a training has come so far."""
        if self.steps is not None:
            return bool(state.global_step >= self.steps)
        assert self.tokens is not None
        return bool(state.num_input_tokens_seen >= self.tokens)


