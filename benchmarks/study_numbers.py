"""What the study's results say: losses, savings at equal loss with their intervals, and whether targets are met."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from study_arms import ARMS, BY_NAME, SCALES, Arm, Rates, Run, Scale, best_rates, final

COUNTS = 0.03  # nats by which scratch must beat the small model for a budget to count
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # 97.5 % quantile of Student's t, by the number of values

Curve = Sequence[tuple[float, float]]


def flops_at(curve: Curve, loss: float) -> tuple[float, str]:
    """FLOPs at which a curve of (FLOPs, loss) reaches a loss, between its points by lines over log FLOPs.

    Outside the curve, its end, and "<" or ">": fewer or more FLOPs are needed than that.

    >>> flops_at([(1, 3.0), (4, 1.0)], 2.0)
    (2.0, '')
    >>> flops_at([(1, 3.0), (4, 1.0)], 3.5), flops_at([(1, 3.0), (4, 1.0)], 0.5)
    ((1, '<'), (4, '>'))
    """
    for (x0, y0), (x1, y1) in pairwise(curve):
        if y1 <= loss <= y0:
            return math.exp(math.log(x0) + math.log(x1 / x0) * (y0 - loss) / (y0 - y1)), ""
    return (curve[0][0], "<") if loss > curve[0][1] else (curve[-1][0], ">")


@dataclass(frozen=True)
class Figure:
    """A figure over seeds. bound: "" if measured, ">" or "<" if the true values are larger or smaller."""

    values: tuple[float, ...]
    bound: str = ""

    @property
    def mean(self) -> float:
        """The arithmetic mean."""
        return mean(self.values)

    @property
    def error(self) -> float | None:
        """The standard error of the mean; None for one value."""
        return stdev(self.values) / math.sqrt(len(self.values)) if len(self.values) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the geometric mean, by Student's t of the logarithms.

        >>> low, high = Figure((1.0, 2.0, 4.0)).interval
        >>> round(low * high, 9), round(math.log2(high), 2)  # around 2, by 4.30 / √3 factors of two
        (4.0, 3.48)
        """
        if len(self.values) < 2 or self.bound:
            return None
        logs = Figure(tuple(map(math.log, self.values)))
        reach = STUDENT[len(self.values)] * logs.error
        return math.exp(logs.mean - reach), math.exp(logs.mean + reach)


@dataclass(frozen=True)
class Results:
    """All stored results by the name of their run, and what they depend on."""

    runs: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """Those that `collect` stored."""
        runs = [run for path in sorted((folder / "results").glob("*.json")) for run in json.loads(path.read_text())]
        return cls({run["name"]: run for run in runs}, json.loads((folder / "facts.json").read_text()))

    @cached_property
    def rates(self) -> Rates:
        """The best peak rates, of what is done."""
        return best_rates(SCALES, self.loss, partial=True)

    def loss(self, run: Run) -> float | None:
        """The loss of a run, if it is done."""
        return self.runs[run.name]["loss"] if run.name in self.runs else None

    def done(self, scale: Scale, arm: Arm, seed: int, budget: float) -> Mapping[str, Any] | None:
        """The result of the run that ends a budget."""
        try:
            return self.runs.get(final(scale, arm, seed, budget, self.rates).name)
        except KeyError:
            return None

    def seeds(self, scale: Scale, arm: Arm, budget: float) -> list[int]:
        """Those for which a budget is done."""
        return [seed for seed in range(scale.seeds) if self.done(scale, arm, seed, budget)]

    def arms(self, scale: Scale) -> list[Arm]:
        """Those with a result at some reported budget."""
        return [arm for arm in ARMS if arm.seeds and any(self.seeds(scale, arm, b) for b in reported(scale))]

    def losses(self, scale: Scale, arm: Arm, budget: float) -> Figure | None:
        """Final losses over the seeds."""
        found = tuple(self.done(scale, arm, seed, budget)["loss"] for seed in self.seeds(scale, arm, budget))
        return Figure(found) if found else None

    def curve(self, scale: Scale, arm: Arm, seed: int) -> Curve:
        """(FLOPs, final loss) by budget; FLOPs of a free source are not counted."""
        done = [run for budget in scale.budgets if (run := self.done(scale, arm, seed, budget))]
        return [(run["flops"] - (run["source_flops"] if arm.free else 0), run["loss"]) for run in done]

    def saving(self, scale: Scale, arm: Arm, budget: float, rivals: Sequence[str] = ("scratch",)) -> Figure | None:
        """FLOPs of a budget over those that the arm needs for the loss of the best rival there, seed by seed."""
        values, bounds = [], set()
        for seed in range(scale.seeds):
            found = [self.done(scale, BY_NAME[name], seed, budget) for name in rivals]
            curve = self.curve(scale, arm, seed)
            if all(found) and len(curve) > 1:
                best = min(found, key=lambda run: run["loss"])
                needed, bound = flops_at(curve, best["loss"])
                end = scale.budgets[{"<": 0, ">": -1}.get(bound, 0)]
                if bound and not self.done(scale, arm, seed, end):
                    continue  # the run that would show it is not done
                values.append(best["flops"] / needed)
                bounds.add({"<": ">", ">": "<", "": ""}[bound])
        return Figure(tuple(values), max(bounds)) if values else None

    def counts(self, scale: Scale, budget: float) -> bool | None:
        """Whether scratch beats the small model alone by enough."""
        scratch, small = (self.losses(scale, BY_NAME[name], budget) for name in ("scratch", "small"))
        return small.mean - scratch.mean >= COUNTS if scratch and small else None

    def noise(self, scale: Scale) -> float | None:
        """The standard deviation over seeds of the difference between two grown arms, pooled over arms and budgets."""
        squares, degrees = 0.0, 0
        for arm in ARMS:
            for budget in reported(scale):
                values = self.differences(scale, arm, budget)
                if arm.kind == "grown" and arm.name != "default" and not arm.free and len(values) > 1:
                    squares += (len(values) - 1) * stdev(values) ** 2
                    degrees += len(values) - 1
        return math.sqrt(squares / degrees) if degrees else None

    def differences(self, scale: Scale, arm: Arm, budget: float) -> list[float]:
        """Losses of an arm less those of the default, seed by seed."""
        default = BY_NAME["default"]
        common = set(self.seeds(scale, arm, budget)) & set(self.seeds(scale, default, budget))
        loss = lambda each, seed: self.done(scale, each, seed, budget)["loss"]  # noqa: E731
        return [loss(arm, seed) - loss(default, seed) for seed in sorted(common)]

    def best_rival(self, scale: Scale, budget: float) -> tuple[Arm, list[float]] | None:
        """The other way to grow of the least loss, beside the default, and its differences."""
        arms = [arm for arm in ARMS if arm.kind == "grown" and not arm.free and not arm.name.startswith("default")]
        found = [(arm, self.differences(scale, arm, budget)) for arm in arms]
        found = [(arm, values) for arm, values in found if values]
        return min(found, key=lambda pair: mean(pair[1]), default=None)


def reported(scale: Scale) -> list[float]:
    """The budgets in tables."""
    return [budget for budget in scale.budgets if budget >= scale.reported]


@dataclass(frozen=True)
class Target:
    """A saving that was to be reached."""

    scale: str
    arm: str
    budget: float
    saving: float


TARGETS = (
    Target("base", "default", 10, 1.8),
    Target("base", "default", 20, 1.5),
    Target("base", "default", 40, 1.2),
    Target("base", "default-tenth", 40, 1.2),
    Target("base", "free", 20, 3.0),
    Target("base", "free", 40, 3.0),
    Target("large", "default", 20, 1.5),
)
