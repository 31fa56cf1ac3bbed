"""Where the grown axes stand in the dimensions of a weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np

from growth.algebra.expansion import Expansion, Floats, Integers
from growth.architectures.base import Architecture, Weight, WeightPart
from growth.operators.fit import seen

QUERY_HEADS = "heads queries"  # the name of the expansion of all query heads, where it is not that of two axes
Side = Literal["written", "read"]


@dataclass(frozen=True, eq=False)
class AxisPlacement:
    """One axis in one dimension of a weight.

    side: whether the weight writes the axis or reads it.
    indices: (others, units): indices[r, j] is the place of unit j in the dimension; r counts the indices of all other
        axes there.
    old_others: the values of r at which no other axis is fresh.
    """

    axis: str
    side: Side
    dimension: int
    expansion: Expansion
    indices: Integers
    old_others: Integers

    @property
    def coefficient(self) -> Floats:
        """The coefficients to undo: `write` of what writes a unit, the sign of `read` of what reads it."""
        found = self.expansion.write if self.side == "written" else np.sign(self.expansion.read)
        return np.where(found == 0, 1.0, found)


def axis_placements(
    table: Architecture, weight: Weight, expansions: Mapping[str, Expansion]
) -> Iterator[AxisPlacement]:
    """Every grown axis in every dimension of a weight."""
    for dimension in range(len(weight.parts[0].dimensions)):
        is_fused = dimension == weight.fused
        parts = weight.parts if is_fused else weight.parts[:1]
        shared = len(weight.within) if is_fused else 0
        lengths = [table.length(part.dimensions[dimension][shared:]) for part in parts]
        outer = np.arange(table.length(parts[0].dimensions[dimension][:shared]))[:, None]
        for part, length, offset in zip(parts, lengths, np.cumsum([0, *lengths]), strict=False):
            indices = outer * sum(lengths) + offset + np.arange(length)
            yield from _in_dimension(table, part, dimension, indices, expansions)


def _in_dimension(
    table: Architecture, part: WeightPart, dimension: int, indices: Integers, expansions: Mapping[str, Expansion]
) -> Iterator[AxisPlacement]:
    spaces = part.dimensions[dimension]
    names = [table.axis(space) for space in spaces]
    lengths = [table.axes[name].size for name in names]
    if QUERY_HEADS in expansions and "queries" in names:  # one axis of all query heads
        lengths = [
            {"heads": len(expansions[QUERY_HEADS]), "queries": 1}.get(*pair)
            for pair in zip(names, lengths, strict=True)
        ]
        others = {name: expansion for name, expansion in expansions.items() if name != "queries"}
        expansions = {**others, "heads": expansions[QUERY_HEADS]}
    fresh = [
        expansions[name].fresh if name in expansions else np.zeros(length, bool)
        for name, length in zip(names, lengths, strict=True)
    ]
    for place, space in enumerate(spaces):
        axis = table.axis(space)
        if axis in expansions:
            expansion = seen(space, expansions, table)
            by_unit = np.moveaxis(indices.reshape(lengths), place, -1).reshape(-1, len(expansion))
            other_fresh = reduce(np.logical_or.outer, fresh[:place] + fresh[place + 1 :], np.zeros((), bool)).ravel()
            side: Side = "read" if space in part.reads else "written"
            yield AxisPlacement(axis, side, dimension, expansion, by_unit, np.flatnonzero(~other_fresh))
