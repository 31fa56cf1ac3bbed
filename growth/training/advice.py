"""advise: what published evidence says about a planned growth, with its sources. Evidence, not law.

evidence.yaml holds the findings. Every figure is stated by its source; `Publication.read` says how much of that was
read. Computed figures use the usual estimate of training compute, C = 6 N D FLOPs for N parameters and D tokens, which
also reproduces the table of Du et al. (tests/training/test_advice.py).
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from decimal import Decimal
from itertools import groupby
from typing import Any

from rich.console import Group
from rich.text import Text

from growth.errors import ConfigError
from growth.runtime.shown import Shown
from growth.runtime.terminal import simple_table
from growth.training.evidence import Evidence, findings

LARGEST_COUNT = 10**30  # the largest training runs take some 1e27 FLOPs
UNITS = {"": 0, "K": 3, "M": 6, "B": 9, "G": 9, "T": 12}
CHINCHILLA = 20  # tokens per parameter


@dataclass(frozen=True, repr=False)
class Advice(Shown):
    """A planned growth in numbers, and the evidence on it; what depends on the planned tokens is None without them.

    parameters, tokens: the parameters of the model to grow, and the tokens that it was trained on.
    to: the parameters of the grown model.
    planned_tokens: the tokens that the grown model is to be trained on, if known.
    growth_factor: ratio of the parameter counts after and before.
    tokens_per_parameter: before, and after on the planned tokens.
    flops: training compute before and after, 6 N D.
    chinchilla_tokens: tokens that are optimal for the grown model's compute (Hoffmann et al.).
    growth_timing: as `growth_timing` for the planned compute.

    >>> import growth
    >>> found = growth.advise("1.3B", "150B", "2.7B")
    >>> found.chinchilla_tokens, found.tokens_per_parameter[1]
    (54000000000, None)
    """

    parameters: int
    tokens: int
    to: int
    planned_tokens: int | None
    growth_factor: float
    tokens_per_parameter: tuple[float, float | None]
    flops: tuple[float, float | None]
    chinchilla_tokens: int
    growth_timing: float | None
    evidence: tuple[Evidence, ...]

    @property
    def plans(self) -> dict[str, str]:
        """The plan by topic, in words."""
        before, after = self.tokens_per_parameter
        spent, planned = self.flops
        then = "give --planned-tokens" if after is None else f"{after:.0f}, {planned:.2g} FLOPs"
        return {
            "growth factor": f"{count_text(self.parameters)} to {count_text(self.to)}: {self.growth_factor:.2f}×",
            "when to grow": f"after {count_text(self.tokens)} tokens, {spent:.2g} FLOPs",
            "tokens per parameter": f"{before:.0f} before; then {then}",
            "expected saving": "see growth schedule",
            "learning rate": "yours to choose",
            "symmetry": "see growth diagnose",
        }

    def to_dict(self) -> dict[str, Any]:
        """The advice as values that `json.dumps` accepts."""
        pairs = {"tokens_per_parameter": list(self.tokens_per_parameter), "flops": list(self.flops)}
        return {**asdict(self), **pairs, "evidence": [asdict(line) for line in self.evidence]}

    def table(self) -> Group:
        """The plan, the evidence and its sources by topic."""
        table = simple_table("", ("your plan", "evidence, not law", "source"))
        for column, ratio in zip(table.columns, (2, 5, 3), strict=True):
            column.ratio = ratio
        for topic, lines in groupby(self.evidence, key=lambda line: line.topic):
            table.add_section()
            plan = Group(Text(topic, "bold"), self.plans[topic])
            for line in lines:
                table.add_row(plan, line.says, line.cited)
                plan = Group()
        return Group(table)


def advise(parameters: int | str, tokens: int | str, to: int | str, planned_tokens: int | str | None = None) -> Advice:
    """Collect what published evidence says about a planned growth.

    parameters: the parameters of the model to grow; numbers may be written 1.3B, 350M, 2T.
    tokens: the tokens that it was trained on.
    to: the parameters of the grown model.
    planned_tokens: the tokens that the grown model is to be trained on.

    Raises:
        ConfigError: an argument that is not a number, or a target that is not larger.

    >>> import growth
    >>> found = growth.advise("1.3B", "150B", "2.7B", "1.4T")
    >>> round(found.growth_factor, 2), [round(ratio) for ratio in found.tokens_per_parameter]
    (2.08, [115, 519])
    """
    before, seen, after = parse_count(parameters), parse_count(tokens), parse_count(to)
    planned = None if planned_tokens is None else parse_count(planned_tokens)
    if after <= before:
        raise ConfigError(
            f"{count_text(before)} to {count_text(after)} parameters is not a growth: choose a larger target."
        )
    budget = None if planned is None else training_flops(after, planned)
    return Advice(
        before,
        seen,
        after,
        planned,
        growth_factor=after / before,
        tokens_per_parameter=(seen / before, None if planned is None else planned / after),
        flops=(training_flops(before, seen), budget),
        chinchilla_tokens=CHINCHILLA * after,
        growth_timing=None if budget is None else growth_timing(after, budget),
        evidence=_evidence(before, seen, after, planned),
    )


# ------------------------------------------------- numbers


def parse_count(text: int | str, what: str = "parameters or tokens") -> int:
    """Parse a number of parameters, tokens or FLOPs.

    what: it counts, for errors.

    Raises:
        ConfigError: more than 1e30, or not a positive whole number, with K, M, B or T or without. Commas are accepted
            between thousands only: 1,3B may mean 1.3B.

    >>> parse_count("1.3B"), parse_count("350M"), parse_count("2T")
    (1300000000, 350000000, 2000000000000)
    """
    number = r"((?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d+)?(?:e\d{1,4})?)\s*([KMBGT]?)"
    match = re.fullmatch(number, str(text).strip(), re.IGNORECASE)
    value = Decimal(match[1].replace(",", "")) * 10 ** UNITS[match[2].upper()] if match else Decimal(0)
    if value > LARGEST_COUNT:
        raise ConfigError(f"{text} {what} are too many: at most {LARGEST_COUNT:.0e} are supported.")
    if value < 1 or value != int(value):
        such = "1e19" if what == "FLOPs" else "1.3B, 350M, 2T or 1,300,000,000"
        raise ConfigError(f"'{text}' is not a number of {what}. Write {such}.")
    return int(value)


def count_text(value: float) -> str:
    """Format a number with K, M, B or T.

    >>> count_text(2_700_000_000), count_text(10.4e9)
    ('2.7B', '10.4B')
    """
    unit = max((name for name in ("", "K", "M", "B", "T") if value >= 10 ** UNITS[name]), key=lambda name: UNITS[name])
    return f"{value / 10 ** UNITS[unit]:.3g}{unit}"


def training_flops(parameters: float, tokens: float) -> float:
    """Training compute in FLOPs, estimated as 6 N D."""
    return 6 * parameters * tokens


def growth_timing(parameters: float, flops: float) -> float:
    """Tokens on which to train the small model, as fitted by Du et al. (arXiv 2405.15319, section 4.2, equation 2).

        log10(d) = 0.88 log10(N) + 163.27 / log10(C) - 5.74

    parameters: N of the grown model (Du et al. do not count embeddings).
    flops: C, the budget.

    Fitted for stacking layers with g = 4, on N of 410M, 1.1B and 3B and C up to about 1.5e21.

    >>> round(growth_timing(8e9, training_flops(8e9, 15e12)) / 1e9, 2)    # their figure for Llama 3 8B: 6.58B
    6.58
    """
    return float(10 ** (0.88 * math.log10(parameters) + 163.27 / math.log10(flops) - 5.74))


# ------------------------------------------------- evidence, topic by topic


def _evidence(before: int, seen: int, to: int, planned: int | None) -> tuple[Evidence, ...]:
    """The findings of evidence.yaml, with the numbers of a plan."""
    factor = to / before
    values = {
        "place": "below" if factor < 2 else "within" if factor <= 4 else "above",
        "timing": _timing(seen, to, planned),
        "chinchilla": CHINCHILLA,
        "yours": "" if planned is None else f" Yours: {planned / to:.0f}.",
        "compute_optimal": f"{count_text(CHINCHILLA * to)} tokens for {count_text(to)}",
    }
    return tuple(findings(values))


def _timing(seen: int, to: int, planned: int | None) -> str:
    if planned is None:
        return "Their fit gives the tokens of the small model from the target's size and budget: give --planned-tokens."
    flops = training_flops(to, planned)
    best = growth_timing(to, flops)
    fitted = 410e6 <= to <= 3e9 and flops <= 1.5e21
    return (
        f"For the target's size and budget their fit gives {count_text(best)} tokens of the small model; yours saw "
        f"{count_text(seen)}, {seen / best:.2g} times that."
        + ("" if fitted else " Extrapolated: fitted on 410M to 3B and up to about 1.5e21 FLOPs.")
        + " The fit is for stacked layers, g = 4, and counts the small model's training as cost; where it is trained "
        "already, that cost is spent."
    )
