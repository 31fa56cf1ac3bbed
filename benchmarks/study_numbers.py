"""What the results say: losses, speed-ups, differences to the default, and whether the goals are reached."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from study_arms import ARMS, BY_NAME, Arm

Curve = list[tuple[float, float]]
MOST = 4  # length of the longest run from scratch, relative to the default
SCRATCH_LENGTHS = (("scratch", 1), ("scratch-2x", 2), ("scratch-4x", 4))
GOAL_TOKENS, GOAL_LOSS = 0.5, 0.2


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean(self.values)

    def text(self, digits: int = 3, sign: str = "") -> str:
        """Mean (least … greatest), or the dash for no value.

        >>> Spread((1.0, 2.0)).text(1), Spread(()).text()
        ('1.5 (1.0 … 2.0)', '–')
        """
        if not self.values:
            return "–"
        spell = lambda value: f"{value:{sign}.{digits}f}"  # noqa: E731
        if len(self.values) == 1:
            return spell(self.values[0])
        return f"{spell(self.mean)} ({spell(min(self.values))} … {spell(max(self.values))})"


def tokens_to_stay_below(curve: Curve, loss: float) -> float | None:
    """Tokens from which on a curve stays at or below a loss, between its points by straight lines; None if never.

    >>> tokens_to_stay_below([(0, 4.0), (100, 3.0), (200, 2.0)], 2.5)
    150.0
    >>> tokens_to_stay_below([(0, 2.4), (100, 3.0), (200, 2.0)], 2.5)  # the hump counts
    150.0
    >>> tokens_to_stay_below([(0, 4.0), (100, 3.0)], 2.5) is None, tokens_to_stay_below([(0, 2.0), (9, 1.0)], 2.5)
    (True, 0.0)
    """
    above = [index for index, (_, value) in enumerate(curve) if value > loss]
    if not above:
        return float(curve[0][0])
    if above[-1] == len(curve) - 1:
        return None
    (x0, y0), (x1, y1) = curve[above[-1]], curve[above[-1] + 1]
    return x0 + (x1 - x0) * (y0 - loss) / (y0 - y1)


def length_for(lengths: Curve, loss: float) -> float | None:
    """The length of a run from scratch that ends at a loss, from (length, final loss) of runs that were made.

    The loss is taken as a straight line over the logarithm of the length, between runs. None beyond the
    longest; a loss above the shortest's counts as the shortest's length.

    >>> round(length_for([(1, 3.0), (2, 2.0), (4, 1.0)], 1.5), 3)
    2.828
    >>> length_for([(1, 3.0), (2, 2.0)], 1.9) is None, length_for([(1, 3.0), (2, 2.0)], 3.5)
    (True, 1.0)
    """
    if loss >= lengths[0][1]:
        return float(lengths[0][0])
    log = tokens_to_stay_below([(math.log(length), value) for length, value in lengths], loss)
    return None if log is None else math.exp(log)


@dataclass(frozen=True)
class Results:
    """All results of a folder: (arm, seed) to what the run stored; "source" is an arm too."""

    runs: dict[tuple[str, int], dict[str, Any]]
    study: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """What is done so far."""
        if (folder / "study.json").exists():
            study = json.loads((folder / "study.json").read_text())
            runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*-s[0-9]*.json"))]
        else:  # the committed file, which holds them all
            study = json.loads((folder / "results.json").read_text())
            runs = study.pop("runs")
        return cls({(run["arm"], run["seed"]): run for run in runs}, study)

    @property
    def arms(self) -> list[Arm]:
        """Those with a result."""
        done = {name for name, _ in self.runs}
        return [arm for arm in ARMS if arm.name in done]

    def seeds(self, *names: str) -> list[int]:
        """Those for which all these arms are done."""
        every = sorted({seed for _, seed in self.runs})
        return [seed for seed in every if all((name, seed) in self.runs for name in names)]

    def spread(self, name: str, figure: str) -> Spread:
        """A final figure (loss, accuracy, parse) of an arm."""
        return Spread(tuple(self.runs[name, seed]["final"][figure] for seed in self.seeds(name)))

    def curve(self, name: str, seed: int) -> Curve:
        """(tokens, held-out loss) of a run."""
        return [(tokens, loss) for tokens, loss in self.runs[name, seed]["curve"]]

    def difference(self, name: str, other: str = "default") -> Spread:
        """Final loss over another arm's, seed by seed (same source, same batches)."""
        loss = lambda arm, seed: self.runs[arm, seed]["final"]["loss"]  # noqa: E731
        return Spread(tuple(loss(name, seed) - loss(other, seed) for seed in self.seeds(name, other)))

    def beginning(self, name: str) -> Spread:
        """Loss right after growth, over the source's at its end."""
        return Spread(tuple(
            self.curve(name, seed)[0][1] - self.curve("source", seed)[-1][1] for seed in self.seeds(name, "source")
        ))  # fmt: skip

    def hump(self, name: str) -> Spread:
        """Worst loss of the first tenth, over the first one."""
        values = []
        for seed in self.seeds(name):
            curve = self.curve(name, seed)
            values.append(max(loss for tokens, loss in curve if tokens <= curve[-1][0] / 10) - curve[0][1])
        return Spread(tuple(values))

    def flops(self, name: str, seed: int, counted: bool) -> float:
        """Of a run, its source's training counted or not."""
        cost = lambda run: run["tokens"] * run["flops_per_token"]  # noqa: E731
        own = cost(self.runs[name, seed])
        return own + cost(self.runs["source", seed]) if counted and BY_NAME[name].needs_source else own

    def scratch_lengths(self, seed: int) -> Curve:
        """(length, final loss) of the runs from scratch."""
        known = [(length, name) for name, length in SCRATCH_LENGTHS if (name, seed) in self.runs]
        return [(length, self.runs[name, seed]["final"]["loss"]) for length, name in known]

    def speedup(self, name: str, seed: int, counted: bool = False) -> tuple[float, bool] | None:
        """How many times the arm's cost training from scratch needs for its final loss, and whether it got there.

        counted: by FLOPs with the source's training, rather than by tokens of the target model. Where even the
        longest run from scratch ends above, the factor is a lower bound and the second value False.
        """
        lengths = self.scratch_lengths(seed)
        if not lengths or lengths[0][0] != 1:
            return None
        needed = length_for(lengths, self.runs[name, seed]["final"]["loss"])
        run, scratch = self.runs[name, seed], self.runs["scratch", seed]
        own = run["tokens"] / scratch["tokens"]
        if counted:
            own = self.flops(name, seed, True) / self.flops("scratch", seed, True)
        return (needed or lengths[-1][0]) / own, needed is not None

    def speedup_text(self, name: str, counted: bool = False) -> str:
        """Over the seeds."""
        known = [each for seed in self.seeds(name) if (each := self.speedup(name, seed, counted))]
        if not known:
            return "–"
        bound = "" if all(reached for _, reached in known) else "> "
        return bound + Spread(tuple(factor for factor, _ in known)).text(2)

    def share_to_scratch(self, name: str) -> list[float | None]:
        """Per seed: tokens from which the arm stays below scratch's final loss, over scratch's tokens."""
        shares = []
        for seed in self.seeds(name, "scratch"):
            aim = self.curve("scratch", seed)[-1]
            reached = tokens_to_stay_below(self.curve(name, seed), aim[1])
            shares.append(None if reached is None else reached / aim[0])
        return shares

    def share_text(self, name: str) -> str:
        """Over the seeds."""
        shares = self.share_to_scratch(name)
        if not shares:
            return "–"
        if None in shares:
            return (
                "not reached"
                if set(shares) == {None}
                else f"not reached in {shares.count(None)} of {len(shares)} seeds"
            )
        return Spread(tuple(100 * share for share in shares)).text(0) + " %"

    def goals(self) -> list[tuple[str, bool | None, str]]:
        """(goal, reached, figures); None where runs are missing."""
        shares = self.share_to_scratch("default")
        gains = self.difference("scratch").values
        halves = self.difference("default-half", "scratch").values
        return [
            (
                f"the default reaches scratch's final loss with at most {GOAL_TOKENS:.0%} of scratch's tokens",
                all(share is not None and share <= GOAL_TOKENS for share in shares) if shares else None,
                f"{self.share_text('default')} of them",
            ),
            (
                "the same, as a whole run of half the length with its own schedule: it ends at or below scratch",
                all(gain <= 0 for gain in halves) if halves else None,
                f"{Spread(halves).text(sign='+')} nats against scratch",
            ),
            (
                f"at equal tokens the default ends at least {GOAL_LOSS} nats below scratch",
                all(gain >= GOAL_LOSS for gain in gains) if gains else None,
                f"{Spread(gains).text(sign='+')} nats below",
            ),
        ]
