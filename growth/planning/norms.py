"""Norms over grown axes: the factor on their eps, and the factor on a LayerNorm's mean."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from growth.algebra.arithmetic import mean
from growth.algebra.expansion import Expansion
from growth.architectures.base import Architecture
from growth.operators.base import Growth

TOLERANCE = 1e-9  # of float64 sums that are equal in exact arithmetic


def with_one_eps(growth: Growth, source: Architecture) -> tuple[Growth, float]:
    """Give all norms of a growth one eps factor, because a config states one eps for all of them.

    The factor is that of the mean square over the units of a norm: the mean of write² over the new units. Axes whose
    norm has another factor are scaled to the common one, which is that of an axis that cannot be scaled, if there is
    one; or to 1 if no other norm has their eps.
    """
    single = [(axis.name,) for axis in growth.axes.values() if axis.norm]
    groups = [*source.norms, *(group for group in single if not any(group[0] in others for others in source.norms))]
    expansions = dict(growth.expansions)

    def factor(group: tuple[str, ...]) -> float:
        return math.prod(mean(expansions[name].write ** 2) for name in group)

    shared = [group for group in groups if not growth.axes[group[0]].own_eps]
    unscaled = [group for group in shared if any(growth.axes[name].unscaled for name in group)]
    common = next((factor(group) for group in unscaled or shared if abs(factor(group) - 1) > TOLERANCE), 1.0)
    for group in groups:
        needed = common if group in shared else 1.0
        if abs(factor(group) - needed) > TOLERANCE:
            expansions[group[0]] = expansions[group[0]].scaled(math.sqrt(needed / factor(group)))
    return replace(growth, expansions=expansions), common


def commutes_with_norm(expansion: Expansion, norm: str) -> bool:
    """Whether a norm over the new units gives every old unit its old weight (and a LayerNorm the old mean)."""
    sums = [expansion.per_unit(expansion.write**2)]
    sums += [expansion.per_unit(expansion.write)] if norm == "layer" else []
    fresh_is_silent = not expansion.write[expansion.fresh].any()
    return fresh_is_silent and all(np.ptp(values) < TOLERANCE for values in sums)


def mean_factor(expansion: Expansion, norm: str | None) -> float | None:
    """The coefficient with which the mean over the units is written, where a LayerNorm needs a correction of it.

    Copies of a LayerNorm's units write x*_j = write_j (x_i - mean(x)) + λ mean(x): the new mean is λ times
    the old one, and every distance to it is write_j times the old one. An embedding matrix that is also the head reads
    itself back where λ = sum(write²) / sum(write) over the copies of a unit. No correction is needed (None) where
    every unit has equally many copies with one coefficient (docs/design.md, 2.2).
    """
    if norm != "layer" or not commutes_with_norm(expansion, norm):
        return None
    copies = expansion.per_unit(np.ones(len(expansion)))
    if not (expansion.fresh.any() or np.ptp(expansion.write) or np.ptp(copies)):
        return None
    return mean(expansion.per_unit(expansion.write**2)) / mean(expansion.per_unit(expansion.write))


def mean_factors(growth: Growth) -> dict[str, float]:
    """By axis, the coefficient with which a LayerNorm's mean is written, where it needs one."""
    found = {name: mean_factor(expansion, growth.axes[name].norm) for name, expansion in growth.expansions.items()}
    return {name: factor for name, factor in found.items() if factor is not None}
