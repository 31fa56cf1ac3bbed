"""When a model grows in a Trainer's run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from transformers import TrainerState

from growth.errors import ConfigError
from growth.planning.prepare import RecipeLike


@dataclass(frozen=True)
class Moment:
    """A moment of a run: after a number of steps, or of tokens, from its beginning.

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
        """Whether a run has reached the moment."""
        return self.is_within(state.global_step, state.num_input_tokens_seen)

    def is_near(self, state: TrainerState) -> bool:
        """Whether a run may reach the moment by its next step."""
        return self.steps is None or bool(state.global_step + 1 >= self.steps)

    def is_within(self, steps: int, tokens: int | None) -> bool:
        """Whether a run of `steps` steps, and at most `tokens` tokens if that is known, reaches the moment."""
        if self.steps is not None:
            return self.steps <= steps
        return tokens is None or (self.tokens or 0) <= tokens

    @property
    def words(self) -> str:
        """The moment in words."""
        return f"after {self.steps} steps" if self.steps is not None else f"after {self.tokens} tokens"


Schedule = Mapping[int, RecipeLike] | Iterable[tuple[Moment, RecipeLike]]
