"""How far copies diverged: sums over groups of copies, and what they show.

A group of copies is one weight of a unit in all k copies of that unit. With the movement of copy j

    m_j = (trained - init) / coefficient,
    apart^2 = sum ||m_j - mean(m)||^2 / ((k - 1) / k * sum ||m_j||^2)

is 0 where copies move as one and has the expectation 1 where they move independently.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from growth.algebra.expansion import Integers, counts
from growth.training.axis_placement import AxisPlacement
from growth.training.checkpoint_pair import CheckpointPair

State = Literal["cannot tell", "identical", "diverging", "independent"]

# Where copies have equal gradients, float32 arithmetic makes these differ by about 1e-7 of their size, and Adam keeps
# ratios: 1e-5 leaves two digits for what accumulates. Random shares measure 1e-3 after one step (tests).
IDENTICAL = 1e-5
DIVERGING = 1e-3  # the least `apart` of copies with unequal shares after a step of Adam
ENOUGH = 10  # values that rounding must have made different, had copies diverged that far
ROUNDING = 2.0  # factor on the largest difference that rounding to the trained dtype explains
UNIFORM = 0.9995  # (mean |movement|)^2 over its mean square, from which on all weights moved by one amount
INDEPENDENT = 0.5  # a quarter of the movement's energy is each copy's own; independent movements measure 1
TERMS = 6  # sums kept of each group: own, moved, rounding, parting, absolute, weights


@dataclass(frozen=True)
class DivergenceSums:
    """Sums over groups of copies.

    own: squares of each copy's movement relative to the group's mean; independent: the expectation of `own` for
        independent copies.
    rounding: squares of rounding errors of the trained dtype; parting: of those that differ between copies.
    moved, absolute, weights: squares of movements, their magnitudes, squares of weights before.
    groups, identical: numbers of groups that moved, and of those that moved as one; values: number of values.
    """

    own: float = 0.0
    independent: float = 0.0
    rounding: float = 0.0
    parting: float = 0.0
    moved: float = 0.0
    absolute: float = 0.0
    weights: float = 0.0
    groups: float = 0
    identical: float = 0
    values: float = 0

    def __add__(self, other: DivergenceSums) -> DivergenceSums:
        return DivergenceSums(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def apart(self) -> float:
        """How far copies diverged: 0 as one, 1 independent."""
        return self._relative(self.own)

    @property
    def grain(self) -> float:
        """The rounding of the trained dtype relative to the movement."""
        return self._relative(self.rounding)

    @property
    def floor(self) -> float:
        """The part of `grain` that differs between copies."""
        return self._relative(self.parting)

    @property
    def moves_as_one(self) -> bool:
        """Whether copies moved alike, as far as the trained dtype shows."""
        return self.apart <= identical_limit(self.grain)

    @property
    def unclear(self) -> str:
        """Why these copies show nothing; empty where they show something."""
        limit = identical_limit(self.grain)
        if not self.moved:
            return "no weight of them has changed"
        if self.apart > max(limit, ROUNDING * self.floor):
            return ""
        if ROUNDING * self.floor > limit:
            return (
                "they started from different values, and rounding to the trained checkpoint's dtype can make them "
                f"differ by {self.floor:.1e} of their movement"
            )
        if self.values * DIVERGING < ENOUGH * self.grain:
            return f"they moved by so little that its dtype rounds away {min(self.grain, 1):.0%} of it: train longer"
        if self.absolute**2 > (UNIFORM - self.grain**2 / 3) * self.values * self.moved:  # less what rounding spreads
            return "all their weights moved by the same amount, as Adam's first step moves them: train longer"
        return ""

    @property
    def state(self) -> State:
        """What the sums show."""
        if self.unclear:
            return "cannot tell"
        if self.moves_as_one:
            return "identical"
        return "independent" if self.apart >= INDEPENDENT else "diverging"

    def _relative(self, energy: float) -> float:
        return math.sqrt(energy / self.independent) if self.independent else 0.0


def identical_limit(grain: float) -> float:
    """The largest `apart` of copies that move as one.

    A difference of d times the movement rounds every (grain / d)-th value to a neighbour, grain times the movement
    away: then `apart` is the root of d * grain.
    """
    return max(IDENTICAL, math.sqrt(IDENTICAL * grain))


def divergence(pair: CheckpointPair, name: str, placement: AxisPlacement) -> DivergenceSums:
    """How the copies of each unit of an axis moved in one tensor."""
    expansion, others = placement.expansion, placement.old_others[:, None]
    copied = ~expansion.fresh & (counts(expansion.source, expansion.size)[expansion.source] > 1)
    group = (expansion.source[copied] * len(placement.indices) + others).ravel()
    order = np.argsort(group, kind="stable")
    index = placement.indices[placement.old_others][:, copied].ravel()[order]
    group = np.unique(group[order], return_inverse=True)[1]
    coefficient = np.tile(placement.coefficient[copied], len(others))[order]
    size = np.bincount(group)
    sums = torch.zeros(TERMS, len(size), dtype=torch.float64)
    values = 0
    for part, before, after in pair.groups(name, placement.dimension, index, group):
        scale = torch.from_numpy(coefficient[part])[:, None]
        present = slice(group[part][0], group[part][-1] + 1)
        sums[:, present] += _group_sums(
            before / scale, after / scale, group[part] - present.start, size[present], pair.roundoff(name)
        )
        values += before.numel()
    return _total(sums, size, values)


def _group_sums(before: Tensor, after: Tensor, group: Integers, size: Integers, roundoff: float) -> Tensor:
    """The terms of each group: (TERMS, groups).

    before, after: (copies, values) by group; size: (groups,) the number of copies in each.
    """
    local, count = torch.from_numpy(group), len(size)

    def per_group(values: Tensor) -> Tensor:
        return torch.zeros(count, values.shape[1], dtype=torch.float64).index_add_(0, local, values)

    moved = after - before
    mean = per_group(moved) / torch.from_numpy(size)[:, None]
    rounding = roundoff**2 * (before.square() + after.square())
    first = before[np.searchsorted(group, np.arange(count))]
    equal = per_group((before != first[local]).double()) == 0  # equal values are rounded alike
    parting = torch.where(equal[local], 0.0, rounding)
    terms = (moved - mean[local]).square(), moved.square(), rounding, parting, moved.abs(), before.square()
    return per_group(torch.stack([term.sum(1) for term in terms], 1)).T


def _total(sums: Tensor, size: Integers, values: int) -> DivergenceSums:
    own, moved, rounding, parting, absolute, weights = sums
    share = torch.from_numpy(1 - 1 / size)
    independent = share * moved
    grain = (share * rounding / independent.clamp(min=1e-300)).sqrt()
    as_one = own <= torch.clamp(IDENTICAL * grain, min=IDENTICAL**2) * independent
    stirred = moved > 0
    terms = (own, independent, share * rounding, share * parting, moved, absolute, weights, stirred, stirred & as_one)
    return replace(DivergenceSums(*(float(term.sum()) for term in terms)), values=values)
