"""One pass over the tensors of a checkpoint before and after training, which collects what a diagnosis judges."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

from growth.algebra.expansion import Expansion
from growth.architectures.base import Architecture, Weight
from growth.training.axis_placement import AxisPlacement, Side, axis_placements
from growth.training.checkpoint_pair import CheckpointPair
from growth.training.divergence import UnitSums, divergence
from growth.training.effective_rank import effective_rank, gram_matrices, written_by

T = TypeVar("T")
ByLayer = Mapping[int | None, T]  # None: outside of layers


class FreshSums:
    """Mean squares of the weights of fresh and of old units, before and after training."""

    def __init__(self) -> None:
        self._energy = np.zeros((2, 2))  # before/after, fresh/old
        self._count = np.zeros(2)

    def add(self, pair: CheckpointPair, name: str, placement: AxisPlacement) -> None:
        """Count one tensor."""
        shape, dimension = pair.shape(name), placement.dimension
        energy = torch.zeros(2, shape[dimension], dtype=torch.float64)
        for rows, *both in pair.blocks(name):
            for which, values in enumerate(both):
                along = values.square().movedim(dimension, 0).reshape(values.shape[dimension], -1).sum(1)
                energy[which, rows if dimension == 0 else slice(None)] += along
        fresh = placement.expansion.fresh
        for column, units in enumerate((fresh, ~fresh)):
            index = placement.indices[:, units].ravel()
            self._energy[:, column] += energy.numpy()[:, index].sum(1)
            self._count[column] += len(index) * math.prod(shape) // shape[dimension]

    def ratios(self) -> tuple[float, float]:
        """The size of fresh units relative to old ones: before and after."""
        before, after = np.sqrt(self._energy / self._count)
        return float(before[0] / before[1]), float(after[0] / after[1])


class Measurement:
    """What training changed, by axis and side, then by layer.

    divergence: how the copies of each unit moved.
    fresh: how large fresh units are.
    branch_ends: by the name of a branch's last weight, then by layer: its mean square norm after training.
    ranks: by axis: the tensor that represents it, its number of units, and its effective rank before and after.
    """

    def __init__(self, table: Architecture, expansions: Mapping[str, Expansion], new_layers: Mapping[int, int | None]):
        self._table, self._expansions, self._new_layers = table, expansions, new_layers
        self.divergence: dict[tuple[str, Side], dict[int | None, UnitSums]] = {}
        self.fresh: dict[tuple[str, Side], dict[int | None, FreshSums]] = {}
        self.branch_ends: dict[str, dict[int, float]] = {}
        self.ranks: dict[str, tuple[str, int, float, float]] = {}

    def read(self, pair: CheckpointPair) -> None:
        """Count every tensor."""
        ends: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
        with _single_threaded():  # blocks are small
            for weight in self._table.weights:
                for number, unit in weight.places(self._table.depth, self._table.length(weight.units)):
                    name, layer = weight.at(number, unit), number if weight.per_layer else None
                    if weight.branch_end and layer is not None and not name.endswith(".bias"):
                        ends[weight.name.split("{layer}.")[-1], layer].append(_energy(pair, name, weight.offset))
                    if weight.norm_inputs is None:  # a gain scales a unit and does not make one
                        self._add(pair, weight, name, layer)
        for (end, layer), values in ends.items():
            self.branch_ends.setdefault(end, {})[layer] = float(np.mean(values))
        for axis, (name, placement) in written_by(self._table, self._expansions, self._new_layers).items():
            before, after = map(effective_rank, gram_matrices(pair, name, placement))
            self.ranks[axis] = name, placement.indices.shape[1], before, after

    def _add(self, pair: CheckpointPair, weight: Weight, name: str, layer: int | None) -> None:
        is_new = layer in self._new_layers
        if layer is not None and self._new_layers.get(layer, layer) is None:
            return  # all of its values were random
        for placement in axis_placements(self._table, weight, self._expansions):
            axis, key = self._table.axes[placement.axis], (placement.axis, placement.side)
            random = axis.unconstrained and is_new  # new layers have no copies along such axes
            if placement.expansion.copied.any() and not axis.external and not random:
                layers = self.divergence.setdefault(key, {})
                sums = divergence(pair, name, placement)
                layers[layer] = layers[layer] + sums if layer in layers else sums
            if placement.expansion.fresh.any() and not (weight.branch_end and is_new):
                self.fresh.setdefault(key, {}).setdefault(layer, FreshSums()).add(pair, name, placement)


def _energy(pair: CheckpointPair, name: str, offset: float) -> float:
    return sum(float((after + offset).square().sum()) for _, _, after in pair.blocks(name))


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Run tensor operations in one thread; restore the caller's setting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
