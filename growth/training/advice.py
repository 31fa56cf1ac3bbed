"""advise: what published evidence says of a planned growth, with its sources. Evidence, not law.

Every figure is one that its source states; `Publication.read` says how much of the source was read for it. What is
computed is computed with the usual estimate of training compute, C = 6 N D FLOPs for N parameters and D tokens,
which is also what reproduces the table of Du et al. (tests/training/test_advice.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from growth.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Group

UNITS = {"": 0, "K": 3, "M": 6, "B": 9, "G": 9, "T": 12}
CHINCHILLA = 20  # tokens a parameter


@dataclass(frozen=True)
class Publication:
    """A publication, and what of it was read for this page."""

    name: str
    where: str
    read: str


STACKING = Publication("Du et al. 2024, Stacking Your Transformers", "arXiv 2405.15319", "sections 4.1 and 4.2")
HYPERCLONING = Publication("Samragh et al. 2024, HyperCloning", "arXiv 2409.12903", "abstract and a summary")
LEMON = Publication("Wang et al. 2023, LEMON", "arXiv 2310.07999", "abstract, ICLR reviews and a summary")
WARMSTART = Publication("Mallik et al. 2026, When is Warmstarting Effective", "arXiv 2605.13405", "abstract only")
SPARKLING = Publication("Yu et al. 2026, SPARKLING", "arXiv 2602.02472", "abstract, sections 3.2 to 5.5")
SATURATION = Publication("From Acceleration to Saturation, 2025", "arXiv 2510.06548", "abstract only")
CHINCHILLA_PAPER = Publication(
    "Hoffmann et al. 2022, Chinchilla", "arXiv 2203.15556", "abstract; 20 by way of 2304.03208"
)
PHI_2 = Publication("Microsoft Research 2023, Phi-2", "blog post of 12 December 2023", "as quoted by others")


@dataclass(frozen=True)
class Evidence:
    """One line: what was found, by whom."""

    topic: str
    says: str
    source: Publication


@dataclass(frozen=True)
class Advice:
    """A planned growth in numbers, and the evidence on it.

    parameters, tokens: of the model that is to grow, and what it was trained on.
    to: parameters of the grown model.
    planned_tokens: on which the grown model is to be trained, if that is known.
    """

    parameters: int
    tokens: int
    to: int
    planned_tokens: int | None
    evidence: tuple[Evidence, ...]

    @property
    def growth_factor(self) -> float:
        """Parameters after over parameters before."""
        return self.to / self.parameters

    @property
    def flops(self) -> tuple[float, float | None]:
        """Training compute before and after, 6 N D."""
        planned = None if self.planned_tokens is None else training_flops(self.to, self.planned_tokens)
        return training_flops(self.parameters, self.tokens), planned

    @property
    def tokens_per_parameter(self) -> tuple[float, float | None]:
        """Before, and after on the planned tokens."""
        planned = None if self.planned_tokens is None else self.planned_tokens / self.to
        return self.tokens / self.parameters, planned

    @property
    def plans(self) -> dict[str, str]:
        """The plan by topic, in words."""
        before, after = self.tokens_per_parameter
        spent, planned = self.flops
        unknown = "give --planned-tokens"
        return {
            "growth factor": f"{count_text(self.parameters)} to {count_text(self.to)}: {self.growth_factor:.2f}×",
            "when to grow": f"after {count_text(self.tokens)} tokens, {spent:.2g} FLOPs",
            "tokens per parameter": f"{before:.0f} before; then "
            + (unknown if after is None else f"{after:.0f}, {planned:.2g} FLOPs"),
            "learning rate": "yours to choose",
            "symmetry": "see growth diagnose",
        }

    def to_dict(self) -> dict[str, Any]:
        """The advice as JSON-able values."""
        return {
            "parameters": self.parameters,
            "tokens": self.tokens,
            "to": self.to,
            "planned_tokens": self.planned_tokens,
            "growth_factor": self.growth_factor,
            "tokens_per_parameter": list(self.tokens_per_parameter),
            "flops": list(self.flops),
            "chinchilla_tokens": CHINCHILLA * self.to,
            "growth_timing": None
            if self.planned_tokens is None
            else growth_timing(self.to, training_flops(self.to, self.planned_tokens)),
            "evidence": [asdict(line) for line in self.evidence],
        }

    def table(self) -> Group:
        """By topic: the plan, what is known, and from whom."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column, ratio in (("your plan", 2), ("evidence, not law", 5), ("source", 3)):
            table.add_column(column, ratio=ratio)
        topic = ""
        for line in self.evidence:
            if line.topic != topic:
                if topic:
                    table.add_section()
                topic = line.topic
                plan = Group(Text(topic, "bold"), self.plans[topic])
            else:
                plan = Group()
            where = Group(line.source.name, Text(f"{line.source.where}; read: {line.source.read}", "dim"))
            table.add_row(plan, line.says, where)
        return Group(table)


def advise(parameters: int | str, tokens: int | str, to: int | str, planned_tokens: int | str | None = None) -> Advice:
    """What published evidence says of a planned growth.

    parameters: of the model that is to grow; numbers may be written 1.3B, 350M, 2T.
    tokens: that it was trained on.
    to: parameters of the grown model.
    planned_tokens: that the grown model is to be trained on.

    Raises:
        ConfigError: something that is no number, or a target that is no larger.

    >>> import growth
    >>> found = growth.advise("1.3B", "150B", "2.7B", "1.4T")
    >>> round(found.growth_factor, 2), [round(ratio) for ratio in found.tokens_per_parameter]
    (2.08, [115, 519])
    """
    before, seen, after = parse_count(parameters), parse_count(tokens), parse_count(to)
    planned = None if planned_tokens is None else parse_count(planned_tokens)
    if after <= before:
        raise ConfigError(
            f"{count_text(before)} to {count_text(after)} parameters is no growth: the target must be larger."
        )
    lines = (*_on_factor(after / before), *_on_timing(seen, after, planned), *_on_ratio(after, planned), *_ON_TRAINING)
    return Advice(before, seen, after, planned, lines)


# ------------------------------------------------- numbers


def parse_count(text: int | str) -> int:
    """A number of parameters or tokens.

    Raises:
        ConfigError: not a positive number with K, M, B or T, or not a whole number of them. Commas are read between
            thousands only: 1,3B may mean 1.3B.

    >>> parse_count("1.3B"), parse_count("350M"), parse_count("2T")
    (1300000000, 350000000, 2000000000000)
    """
    number = r"((?:\d+|\d{1,3}(?:,\d{3})+)(?:\.\d+)?(?:e\d{1,2})?)\s*([KMBGT]?)"
    match = re.fullmatch(number, str(text).strip(), re.IGNORECASE)
    value = Decimal(match[1].replace(",", "")) * 10 ** UNITS[match[2].upper()] if match else Decimal(0)
    if value < 1 or value != int(value):
        raise ConfigError(f"'{text}' is not a number of parameters or tokens. Write 1.3B, 350M, 2T or 1,300,000,000.")
    return int(value)


def count_text(value: float) -> str:
    """A number as people write it.

    >>> count_text(2_700_000_000), count_text(10.4e9)
    ('2.7B', '10.4B')
    """
    unit = max((name for name in ("", "K", "M", "B", "T") if value >= 10 ** UNITS[name]), key=lambda name: UNITS[name])
    return f"{value / 10 ** UNITS[unit]:.3g}{unit}"


def training_flops(parameters: float, tokens: float) -> float:
    """Training compute in FLOPs, estimated as 6 N D."""
    return 6 * parameters * tokens


def growth_timing(parameters: float, flops: float) -> float:
    """Tokens on which to train the small model, as Du et al. fitted them (2405.15319, 4.2, equation 2).

        log10(d) = 0.88 log10(N) + 163.27 / log10(C) - 5.74

    parameters: N of the grown model (they count without embeddings).
    flops: C, the budget.

    Fitted for stacking layers with g = 4, on N of 410M, 1.1B and 3B and C up to about 1.5e21.

    >>> round(growth_timing(8e9, training_flops(8e9, 15e12)) / 1e9, 2)    # their figure for Llama 3 8B: 6.58B
    6.58
    """
    return float(10 ** (0.88 * math.log10(parameters) + 163.27 / math.log10(flops) - 5.74))


# ------------------------------------------------- evidence, topic by topic


def _on_factor(factor: float) -> Iterator[Evidence]:
    topic = "growth factor"
    place = "below" if factor < 2 else "within" if factor <= 4 else "above"
    yield Evidence(
        topic,
        f"Stacking layers, the best factor lies between 2 and 4 (1.1B and 3B models); they suggest 4. Yours is {place} "
        "that range.",
        STACKING,
    )
    yield Evidence(
        topic,
        "2× is the most reliable; there is an upper bound beyond which training from scratch is more efficient.",
        WARMSTART,
    )
    yield Evidence(
        topic, "Doubled width: 20 to 35 % less training compute at the same tokens (0.5B to 1.5B active).", SPARKLING
    )
    yield Evidence(topic, "Cloned width reaches the accuracy of a random start 2.2 to 4 times sooner.", HYPERCLONING)
    yield Evidence(
        topic,
        "1.3B embedded in 2.7B (2.08×): faster convergence and a clear boost of benchmark scores.",
        PHI_2,
    )


def _on_timing(seen: int, to: int, planned: int | None) -> Iterator[Evidence]:
    topic = "when to grow"
    if planned is None:
        says = "Their fit gives the tokens of the small model from the target's size and budget: give --planned-tokens."
    else:
        flops = training_flops(to, planned)
        best = growth_timing(to, flops)
        outside = not (410e6 <= to <= 3e9 and flops <= 1.5e21)
        says = (
            f"For the target's size and budget their fit gives {count_text(best)} tokens of the small model; yours saw "
            f"{count_text(seen)}, {seen / best:.2g} times that."
            + (" Extrapolated: fitted on 410M to 3B and up to about 1.5e21 FLOPs." if outside else "")
            + " The fit is for stacked layers, g = 4, and counts the small model's training as cost; where it is "
            "trained already, that cost is spent."
        )
    yield Evidence(topic, says, STACKING)
    yield Evidence(
        topic,
        "The more tokens the base was trained on, the less further training brings: the scaling exponent of the "
        "second stage decreases with their logarithm.",
        SATURATION,
    )
    yield Evidence(topic, "Phi-2 started from Phi-1.5, whose report gives 150B training tokens.", PHI_2)


def _on_ratio(to: int, planned: int | None) -> Iterator[Evidence]:
    topic = "tokens per parameter"
    where = "" if planned is None else f" Yours: {planned / to:.0f}."
    yield Evidence(
        topic, f"Gains of growth are largest below {CHINCHILLA}, and diminish as the budget grows.{where}", WARMSTART
    )
    yield Evidence(
        topic,
        f"Parameters and tokens scale equally for the least compute, at about {CHINCHILLA}: "
        f"{count_text(CHINCHILLA * to)} tokens for {count_text(to)}.",
        CHINCHILLA_PAPER,
    )
    yield Evidence(
        topic, "Long after that, still a gain: 410M on 700B tokens, 31.0 % acceleration over scratch.", STACKING
    )
    yield Evidence(topic, "2.7B on 1.4T tokens, 519 a parameter.", PHI_2)


_ON_TRAINING = (
    Evidence(
        "learning rate",
        "Keep the maximum of a run from scratch and decay faster; a smaller maximum ends at worse results (ViT, BERT; "
        "56.7 % and 33.2 % less compute).",
        LEMON,
    ),
    Evidence(
        "learning rate",
        "Old parameters stay on their schedule; new ones warm up again, from the current rate to 1.3 times that, over "
        "250 steps (OLMoE, width doubled in mid-training).",
        SPARKLING,
    ),
    Evidence(
        "symmetry",
        "Copies with equal optimizer state, kept or dropped, get equal gradients: a symmetry lock. Keeping the old "
        "state and resetting that of the new parameters breaks it.",
        SPARKLING,
    ),
    Evidence("symmetry", "Copies get unequal shares of what reads them (α + β = 1, α ≠ β).", LEMON),
)
