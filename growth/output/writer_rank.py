"""Which of the processes that write one output together this one is."""

from __future__ import annotations

from dataclasses import dataclass

from growth.errors import RecipeError


@dataclass(frozen=True)
class WriterRank:
    """Process `index` of `count` processes that write an output together; both count from 1."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise RecipeError(
                f"There is no part {self.index} of {self.count}: parts are numbered from 1 to {self.count}."
            )

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"

    @property
    def alone(self) -> bool:
        """Whether it is the only process."""
        return self.count == 1

    @classmethod
    def all(cls, count: int) -> list[WriterRank]:
        """Every one of `count` processes."""
        return [cls(index, count) for index in range(1, count + 1)]


ALONE = WriterRank()
