"""Stability: does a difference between copies grow through the network?

Copies of a unit are equal until something is rounded. From then on their difference is multiplied, layer by layer, by
the differences between the parts of each weight that reads them. Two runs of the grown model measure by how much: in
the second, copies in the residual stream behind the embedding get random deviations that cancel in what is read, so
that only differences between copies can carry them on. The yardstick is the source, with random deviations of the units
that have copies (docs/copies.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from growth.algebra.expansion import Expansion, counts
from growth.planning.plan import Plan
from growth.runtime.workers import Progress
from growth.verification.compared_model import ComparedModel
from growth.verification.lineage import Lineage, Link
from growth.verification.rounding_floor import relative_difference

MARGIN = 2.0  # parts that have the sign of the weight and are not larger make about 1 at most (docs/copies.md)
TINY = 1e-300  # for units that a lossy growth does not read

Deviation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Amplification:
    """How a model amplifies a small change of the stream that enters its first layer.

    Both are relative changes over the relative size of that first change.

    Attributes:
        layers: of the residual stream after each layer.
        logits: of the logits.
    """

    layers: tuple[float, ...]
    logits: float

    @property
    def largest(self) -> float:
        """The largest one after a layer."""
        return max(self.layers)


@dataclass(frozen=True)
class Stability:
    """How a grown model amplifies a difference between copies, beside the source's own sensitivity.

    Attributes:
        step: the relative size of the deviations.
        channels: the number of channels of the residual stream that have copies; 0 if nothing was measured.
        others: the other axes that have copies, which get no deviations of their own.
        grown: of a difference between copies; None if nothing was measured.
        source: of random deviations of the units that have copies.
        reason: why nothing was measured; else empty.
    """

    step: float
    channels: int = 0
    others: tuple[str, ...] = ()
    grown: Amplification | None = None
    source: Amplification | None = None
    reason: str = ""

    @property
    def pairs(self) -> dict[str, tuple[float, float]]:
        """Of the grown model and of the source, by what is amplified; empty if nothing was measured."""
        if self.grown is None or self.source is None:
            return {}
        layers = (self.grown.largest, self.source.largest)
        return {"layers": layers, "logits": (self.grown.logits, self.source.logits)}

    @property
    def stable(self) -> bool | None:
        """Whether no difference between copies grows more than MARGIN times what the source makes of its own.

        None if nothing was measured.
        """
        return None if self.reason else all(grown <= MARGIN * source for grown, source in self.pairs.values())

    def rows(self) -> list[tuple[str, str, str]]:
        """The numbers as rows of a table: label, value and meaning."""
        meaning = "of a difference between copies, limit {:.3g}; {:.3g} of a random one in the source"
        return [
            (f"amplification, {place}", f"{grown:.3g}", meaning.format(MARGIN * source, source))
            for place, (grown, source) in self.pairs.items()
        ]

    def covered(self) -> str:
        """Which copies were measured, in words."""
        others = f"; copies along {', '.join(self.others)} have no deviations of their own" if self.others else ""
        return f"{self.reason or f'{self.channels:,} channels of the residual stream that have copies'}{others}"

    def problem(self) -> str:
        """What is unstable, in a sentence; empty if nothing is."""
        if self.stable is not False:
            return ""
        said = [
            f"{grown:.2g} times in the {place} (source: {source:.2g})" for place, (grown, source) in self.pairs.items()
        ]
        return (
            f"UNSTABLE: the network amplifies a difference between copies {' and '.join(said)}, and rounding makes one."
        )


NO_COPIES = (
    "the recipe makes no copies in the residual stream, and only differences between those pass from layer to layer"
)


def measure_stability(
    line: Lineage, before: ComparedModel, after: ComparedModel, tokens: Tensor, seed: int, progress: Progress
) -> Stability:
    """Run the source and the grown model with and without deviations, each twice in one batch.

    Args:
        tokens: the batch (B, T).
        seed: of the deviations.
        progress: called with ("stability, source" or "stability, grown", layers done, layers in all).
    """
    step = max(map(_step, (before.computed, after.computed)))
    others = _other_axes(line.plans)
    if not line.links:
        return Stability(step, others=others, reason=f"it is not known which channels are copies: {line.unknown}")
    channels = _channels(line.links)
    copied = channels.copied
    if not copied.any():
        return Stability(step, others=others, reason=NO_COPIES)
    units = torch.from_numpy(counts(channels.source, channels.size) > 1)
    source = _amplification(before, "stability, source", tokens, of_units(units, step, seed), progress)
    grown = _amplification(after, "stability, grown", tokens, between_copies(channels, step, seed), progress)
    return Stability(step, int(copied.sum()), others, grown, source)


def of_units(units: Tensor, step: float, seed: int) -> Deviation:
    """Random deviations, each about `step` times its channel's value, of the channels that a mask selects."""
    return lambda stream: _noise(stream, step, seed) * units


def between_copies(channels: Expansion, step: float, seed: int) -> Deviation:
    """Random deviations of copies that cancel in what is read: in the null space of R (docs/design.md, section 2.1).

    >>> twice = Expansion.copies(2, np.array([0, 1, 0]))
    >>> found = between_copies(twice, 0.01, 0)(torch.ones(1, 1, 3, dtype=torch.float64))
    >>> bool(found[..., 1] == 0), bool(found[..., 0] == -found[..., 2]), bool(found[..., 0] == 0)
    (True, True, False)
    """
    copied = torch.from_numpy(channels.copied)
    source = torch.from_numpy(channels.source.clip(0))
    read = torch.from_numpy(np.where(channels.fresh, 0.0, channels.read))
    squares = torch.from_numpy(channels.per_unit(channels.read**2)).clamp_(min=TINY)

    def deviation(stream: Tensor) -> Tensor:
        noise = _noise(stream, step, seed)
        seen = torch.zeros(*stream.shape[:-1], channels.size, dtype=torch.float64).index_add_(-1, source, noise * read)
        return (noise - read * (seen / squares)[..., source]) * copied

    return deviation


def _amplification(
    model: ComparedModel, stage: str, tokens: Tensor, deviation: Deviation, progress: Progress
) -> Amplification:
    """Run tokens twice in one batch, the second time with deviations behind the embedding."""
    changes: list[float] = []

    def observe(position: int, hidden: Tensor) -> None:
        plain, changed = hidden.chunk(2)
        if position == 0:
            changed += deviation(plain).to(plain.dtype)
        changes.append(relative_difference(changed, plain))

    plain, changed = model.run(stage, tokens.repeat(2, 1), progress, observe).chunk(2)
    first, *layers = [*changes, relative_difference(changed, plain)]
    *layers, logits = [change / first if first else 0.0 for change in layers]
    return Amplification(tuple(layers), logits)


def _step(computed: torch.dtype) -> float:
    """The relative size of deviations: as far above rounding as below 1, the usual choice for a difference quotient."""
    return math.sqrt(torch.finfo(computed).eps / 2)


def _noise(stream: Tensor, step: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(stream.shape, generator=generator, dtype=torch.float64) * stream.double() * step


def _channels(links: Sequence[Link]) -> Expansion:
    return reduce(Expansion.then, (link.channels for link in links))


def _other_axes(plans: Sequence[Plan]) -> tuple[str, ...]:
    """The axes with copies, besides the residual stream, that are not seen from outside the model."""
    names = [
        name
        for plan in plans
        for name, expansion in plan.growth.expansions.items()
        if name != "residual" and not plan.growth.axes[name].external and expansion.copied.any()
    ]
    return tuple(dict.fromkeys(names))
