"""Metrics: how far the grown model's logits are from the source's. Add a metric here, and every report shows it.

A metric is one function of some positions of both models, decorated with `metric`. The JSON of a report, its tables on
the terminal and in HTML, and the table in docs/trust.md are made from METRICS, in the order of the definitions. Behind
them come those of installed packages: entry points of the group `growth.metrics`.

Shape letters: rows B, positions T of a batch or P of a piece of it, vocab_size V of the source, added tokens A.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from growth.errors import GrowthError, VerificationError
from growth.extensions import Extensions, Guard

NO_TOKEN = -100
OF_ADDED = ("added_tokens", "lost_to_added")  # metrics that say nothing without added tokens
PIECE = 32  # positions compared at a time, so that the copies in float64 stay small


@dataclass(frozen=True)
class Positions:
    """Some positions of both models, in float64.

    Attributes:
        source: the source's logits (P, V).
        grown: the grown model's logits (P, V + A); added tokens come last.
        following: the tokens that follow (P,); NO_TOKEN at the end of a row.
    """

    source: Tensor
    grown: Tensor
    following: Tensor

    @property
    def difference(self) -> Tensor:
        """How far the logits of the source's tokens are apart, (P, V)."""
        return self.grown[:, : self.source.shape[1]] - self.source

    @cached_property
    def source_log_probabilities(self) -> Tensor:
        """(P, V)."""
        return self.source.log_softmax(-1)

    @cached_property
    def grown_log_probabilities(self) -> Tensor:
        """(P, V + A)."""
        return self.grown.log_softmax(-1)


Measure = Callable[[Positions], Tensor]
Combine = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Metric:
    """One measure of both models' logits.

    Attributes:
        label, meaning: what tables call it, and what they say about it.
        form: how tables format it.
        measure: from some positions to one or two numbers for each, (P,) or (P, 2).
        combine: from those of all positions to the result.
    """

    label: str
    meaning: str
    form: str
    measure: Measure
    combine: Combine

    def shown(self, value: float) -> tuple[str, str, str]:
        """Its row in a table: label, value and meaning."""
        return self.label, self.form.format(value), self.meaning


class LogitsError(dict[str, float]):
    """The value of each metric, by its name: as an item and as an attribute."""

    def __getattr__(self, name: str) -> float:
        if name not in self:
            raise AttributeError(f"There is no metric {name!r}: there are {', '.join(self)}.")
        return self[name]

    def rows(self) -> list[tuple[str, str, str]]:
        """The metrics as rows of a table: label, value and meaning; of added tokens only if there are any."""
        shown = (name for name in self if self.added_tokens or name not in OF_ADDED)
        return [METRICS[name].shown(self[name]) for name in shown]


def compare_logits(source: Tensor, grown: Tensor, tokens: Tensor) -> LogitsError:
    """Compare logits (B, T, V) of the source with logits (B, T, V + A) of the grown model for `tokens` (B, T)."""
    following = F.pad(tokens[:, 1:], (0, 1), value=NO_TOKEN).flatten()
    flat = (source.flatten(0, 1), grown.flatten(0, 1), following)
    measured: dict[str, list[Tensor]] = {name: [] for name in METRICS}
    for s, g, token in zip(*(torch.split(values, PIECE) for values in flat), strict=True):
        positions = Positions(s.double(), g.double(), token)
        for name, found in measured.items():
            found.append(METRICS[name].measure(positions))
    return LogitsError({name: METRICS[name].combine(torch.cat(found)).item() for name, found in measured.items()})


# ------------------------------------------------- from positions to one number


def mean(values: Tensor) -> Tensor:
    """The mean over positions."""
    return values.mean()


def largest(values: Tensor) -> Tensor:
    """The largest over positions."""
    return values.max()


def ratio(values: Tensor) -> Tensor:
    """The sum of the first numbers over the sum of the second ones."""
    return values[:, 0].sum() / values[:, 1].sum()


# ------------------------------------------------- the metrics

METRICS: dict[str, Metric] = {}
GROUP = "growth.metrics"


def _guarded(found: Metric, guard: Guard[..., Any]) -> Metric:
    """Return a metric of a package, whose errors name the package."""
    return replace(found, measure=guard(found.measure))


EXTENSIONS = Extensions(GROUP, "metric", "metric", METRICS, _guarded, VerificationError, GrowthError)


def metric(label: str, meaning: str, combine: Combine = mean, *, form: str = "{:.2e}") -> Callable[[Measure], Measure]:
    """Add a function to METRICS, under its own name.

    Raises:
        VerificationError: there is a metric of this name already.
    """

    def add(measure: Measure) -> Measure:
        if measure.__name__ in METRICS:
            raise VerificationError(f"There is a metric {measure.__name__!r} already. Remove it, or rename this one.")
        METRICS[measure.__name__] = Metric(label, meaning, form, measure, combine)
        return measure

    return add


@metric(
    "relative error",
    "‖grown − source‖ / ‖source‖, all logits",
    lambda values: ratio(values).sqrt(),
)
def relative_error(at: Positions) -> Tensor:
    """Squared norms of the difference and of the source's logits."""
    return torch.stack([at.difference.square().sum(-1), at.source.square().sum(-1)], dim=1)


@metric("largest error", "the largest difference of two logits", largest)
def max_abs_error(at: Positions) -> Tensor:
    """Largest difference of two logits."""
    return at.difference.abs().amax(-1)


@metric(
    "largest error, relative",
    "the same, relative to the largest logit",
    lambda values: values[:, 0].max() / values[:, 1].max(),
)
def max_relative_error(at: Positions) -> Tensor:
    """Largest difference, and largest absolute logit of the source."""
    return torch.stack([at.difference.abs().amax(-1), at.source.abs().amax(-1)], dim=1)


@metric(
    "KL divergence",
    "KL(source ‖ grown), in nats per token",
    lambda values: values.mean().clamp(min=0),
)
def kl(at: Positions) -> Tensor:
    """KL divergence; the source gives added tokens no probability."""
    grown = at.grown_log_probabilities[:, : at.source.shape[1]]
    return F.kl_div(grown, at.source_log_probabilities, reduction="none", log_target=True).sum(-1)


@metric("same top token", "share of positions where both agree", form="{:.1%}")
def top1_agreement(at: Positions) -> Tensor:
    """1 where both rank the same token first, else 0."""
    return (at.source.argmax(-1) == at.grown.argmax(-1)).double()


@metric("source loss", "next-token cross-entropy, nats per token", ratio, form="{:.4f}")
def source_loss(at: Positions) -> Tensor:
    """Cross-entropy, and 1 where a token follows."""
    return _loss(at.source_log_probabilities, at.following)


@metric("grown loss", "the same, of the grown model", ratio, form="{:.4f}")
def grown_loss(at: Positions) -> Tensor:
    """Cross-entropy, and 1 where a token follows."""
    return _loss(at.grown_log_probabilities, at.following)


@metric("added tokens", "tokens that only the grown model has", largest, form="{:,}")
def added_tokens(at: Positions) -> Tensor:
    """Number of added tokens."""
    return torch.full((len(at.source),), at.grown.shape[1] - at.source.shape[1])


@metric("lost to added tokens", "−log(1 − their probability), nats per token")
def lost_to_added(at: Positions) -> Tensor:
    """Nats that the added tokens cost the others."""
    old, added = at.grown[:, : at.source.shape[1]], at.grown[:, at.source.shape[1] :]
    return F.softplus(added.logsumexp(-1) - old.logsumexp(-1)) if added.shape[1] else torch.zeros(len(old)).double()


def _loss(log_probabilities: Tensor, following: Tensor) -> Tensor:
    loss = F.nll_loss(log_probabilities, following, ignore_index=NO_TOKEN, reduction="none")
    return torch.stack([loss, (following != NO_TOKEN).double()], dim=1)
