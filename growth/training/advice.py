"""advise: what published evidence says about a planned growth, with its sources. Evidence, not law.

Every figure is stated by its source; `Publication.read` says how much of the source was read. Computed figures use the
usual estimate of training compute, C = 6 N D FLOPs for N parameters and D tokens, which also reproduces the table of Du
et al. (tests/training/test_advice.py).
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from growth.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Group

UNITS = {"": 0, "K": 3, "M": 6, "B": 9, "G": 9, "T": 12}
CHINCHILLA = 20  # tokens per parameter


@dataclass(frozen=True)
class Publication:
    """A publication, and how much of it was read."""

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
    """One finding on a topic, and its source."""

    topic: str
    says: str
    source: Publication


@dataclass(frozen=True)
class Advice:
    """A planned growth in numbers, and the evidence on it.

    parameters, tokens: the parameters of the model to grow, and the tokens that it was trained on.
    to: the parameters of the grown model.
    planned_tokens: the tokens that the grown model is to be trained on, if known.
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
        """The plan, the evidence and its sources by topic."""
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
    return Advice(before, seen, after, planned, _evidence(before, seen, after, planned))


# ------------------------------------------------- numbers


def parse_count(text: int | str) -> int:
    """Parse a number of parameters or tokens.

    Raises:
        ConfigError: not a positive whole number, with K, M, B or T or without. Commas are accepted between thousands
            only: 1,3B may mean 1.3B.

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
    factor = to / before
    values = {
        "place": "below" if factor < 2 else "within" if factor <= 4 else "above",
        "timing": _timing(seen, to, planned),
        "chinchilla": CHINCHILLA,
        "yours": "" if planned is None else f" Yours: {planned / to:.0f}.",
        "compute_optimal": f"{count_text(CHINCHILLA * to)} tokens for {count_text(to)}",
    }
    return tuple(Evidence(topic, says.format(**values), source) for topic, says, source in _FINDINGS)


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


_FACTOR, _WHEN, _RATIO = "growth factor", "when to grow", "tokens per parameter"
_RATE, _SYMMETRY = "learning rate", "symmetry"

# topic, finding with the values of `_evidence`, source
_FINDINGS = (
    (
        _FACTOR,
        "Stacking layers, the best factor lies between 2 and 4 (1.1B and 3B models); they suggest 4. Yours is {place} "
        "that range.",
        STACKING,
    ),
    (
        _FACTOR,
        "2× is the most reliable; there is an upper bound beyond which training from scratch is more efficient.",
        WARMSTART,
    ),
    (_FACTOR, "Doubled width: 20 to 35 % less training compute at the same tokens (0.5B to 1.5B active).", SPARKLING),
    (_FACTOR, "Cloned width reaches the accuracy of a random start 2.2 to 4 times sooner.", HYPERCLONING),
    (_FACTOR, "1.3B embedded in 2.7B (2.08×): faster convergence and a clear boost of benchmark scores.", PHI_2),
    (_WHEN, "{timing}", STACKING),
    (
        _WHEN,
        "The more tokens the base was trained on, the less further training brings: the scaling exponent of the "
        "second stage decreases with their logarithm.",
        SATURATION,
    ),
    (_WHEN, "Phi-2 started from Phi-1.5, whose report gives 150B training tokens.", PHI_2),
    (_RATIO, "Gains of growth are largest below {chinchilla}, and diminish as the budget grows.{yours}", WARMSTART),
    (
        _RATIO,
        "Parameters and tokens scale equally for the least compute, at about {chinchilla}: {compute_optimal}.",
        CHINCHILLA_PAPER,
    ),
    (_RATIO, "Long after that, still a gain: 410M on 700B tokens, 31.0 % acceleration over scratch.", STACKING),
    (_RATIO, "2.7B on 1.4T tokens, 519 per parameter.", PHI_2),
    (
        _RATE,
        "Keep the maximum of a run from scratch and decay faster; a smaller maximum ends at worse results (ViT, BERT; "
        "56.7 % and 33.2 % less compute).",
        LEMON,
    ),
    (
        _RATE,
        "Old parameters stay on their schedule; new ones warm up again, from the current rate to 1.3 times that, over "
        "250 steps (OLMoE, width doubled in mid-training).",
        SPARKLING,
    ),
    (
        _SYMMETRY,
        "Copies with equal optimizer state, kept or dropped, get equal gradients: a symmetry lock. Keeping the old "
        "state and resetting that of the new parameters breaks it.",
        SPARKLING,
    ),
    (_SYMMETRY, "Copies get unequal shares of what reads them (α + β = 1, α ≠ β).", LEMON),
)
