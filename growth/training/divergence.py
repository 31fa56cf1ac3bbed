"""How far copies diverged: sums over the weights of each unit's copies, and what they show.

With the movement m_j = (trained - init) / coefficient of copy j of k copies,

    apart^2 = sum ||m_j - mean(m)||^2 / ((k - 1) / k * sum ||m_j||^2)

is 0 where copies move as one and has the expectation 1 where they move independently. The same with the weights
w_j / coefficient in the place of movements, times the root of 2, is the distance of copies: of two copies a and b,
||a - b|| times the root of 2 / (||a||^2 + ||b||^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from growth.algebra.expansion import Floats, Integers
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


UnitSums = Floats  # (sums, units): the fields of DivergenceSums for each unit


@dataclass(frozen=True)
class DivergenceSums:
    """Sums over the weights of copies.

    own: squares of each copy's movement relative to the mean of its unit's copies; independent: the expectation of
        `own` for independent copies.
    rounding: squares of rounding errors of the trained dtype; parting: of those that differ between copies.
    moved, absolute: squares and magnitudes of movements; values: number of values.
    weights: squares of weights before training.
    own_before, own_after, independent_before, independent_after: as `own` and `independent`, of the weights before and
        after training.
    """

    own: float
    independent: float
    rounding: float
    parting: float
    moved: float
    absolute: float
    values: float
    weights: float
    own_before: float
    independent_before: float
    own_after: float
    independent_after: float

    @classmethod
    def over(cls, units: UnitSums) -> DivergenceSums:
        """The sums over all units."""
        return cls(*units.sum(1).tolist())

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


def identical_units(units: UnitSums) -> int:
    """The number of units whose copies moved as one, as far as each unit shows it by itself."""
    moved = units[:, _of(units, "moved") > 0]
    return sum(DivergenceSums(*sums).state == "identical" for sums in moved.T.tolist())


def moved_units(units: UnitSums) -> int:
    """The number of units whose copies moved."""
    return int(np.count_nonzero(_of(units, "moved")))


def copy_distances(units: UnitSums) -> Floats:
    """The distance of each unit's copies before and after training, for units with weights other than 0: (2, units).

    It is 0 for equal copies, and the root of 2 for independent ones.
    """
    own = np.stack([_of(units, "own_before"), _of(units, "own_after")])
    independent = np.stack([_of(units, "independent_before"), _of(units, "independent_after")])
    present = (independent > 0).all(0)
    return np.asarray(np.sqrt(2 * own[:, present] / independent[:, present]))


def _of(units: UnitSums, name: str) -> Floats:
    """One of the sums, by unit."""
    return np.asarray(units[[field.name for field in fields(DivergenceSums)].index(name)])


def divergence(pair: CheckpointPair, name: str, placement: AxisPlacement) -> UnitSums:
    """How the copies of each old unit of an axis moved in one tensor; zeros where a unit is not copied."""
    expansion, others = placement.expansion, placement.old_others[:, None]
    copied = expansion.copied
    group = (expansion.source[copied] * len(placement.indices) + others).ravel()
    order = np.argsort(group, kind="stable")
    index = placement.indices[placement.old_others][:, copied].ravel()[order]
    present, group, size = np.unique(group[order], return_inverse=True, return_counts=True)
    coefficient = np.tile(placement.coefficient[copied], len(others))[order]
    sums = torch.zeros(len(fields(DivergenceSums)), len(size), dtype=torch.float64)
    for part, before, after in pair.groups(name, placement.dimension, index, group):
        scale = torch.from_numpy(coefficient[part])[:, None]
        groups = slice(group[part][0], group[part][-1] + 1)
        sums[:, groups] += _group_sums(
            before / scale, after / scale, group[part] - groups.start, size[groups], pair.roundoff(name)
        )
    unit = present // len(placement.indices)
    return np.stack([np.bincount(unit, values, minlength=expansion.size) for values in sums.numpy()])


def _group_sums(before: Tensor, after: Tensor, group: Integers, size: Integers, roundoff: float) -> Tensor:
    """The sums of each group, one weight of a unit in all its copies: (sums, groups).

    before, after: (copies, values) by group; size: (groups,) the number of copies in each.
    """
    local, count, copies = torch.from_numpy(group), len(size), torch.from_numpy(size)

    def per_group(values: Tensor) -> Tensor:
        return torch.zeros(count, values.shape[1], dtype=torch.float64).index_add_(0, local, values)

    def own(values: Tensor) -> Tensor:
        return (values - (per_group(values) / copies[:, None])[local]).square()

    moved, share = after - before, (1 - 1 / copies)[local][:, None]
    rounding = share * roundoff**2 * (before.square() + after.square())
    first = before[np.searchsorted(group, np.arange(count))]
    equal = per_group((before != first[local]).double()) == 0  # equal values are rounded alike
    parting = torch.where(equal[local], 0.0, rounding)
    terms = (
        *(own(moved), share * moved.square(), rounding, parting),
        *(moved.square(), moved.abs(), torch.ones_like(moved), before.square()),
        *(own(before), share * before.square(), own(after), share * after.square()),
    )
    return per_group(torch.stack([term.sum(1) for term in terms], 1)).T
