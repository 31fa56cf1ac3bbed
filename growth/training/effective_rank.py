"""The effective rank of the weights that write an axis: how many directions its units use.

It is the exponential of the entropy of a distribution (Roy and Vetterli 2007), here of the squared singular values of a
matrix, divided by their sum. Copies add none: if all rows of a matrix are copied equally often, the rank does not
change.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from growth.algebra.expansion import Expansion
from growth.architectures.base import Architecture, Weight
from growth.training.axis_placement import AxisPlacement, axis_placements
from growth.training.checkpoint_pair import CheckpointPair


def effective_rank(gram: Tensor) -> float:
    """The effective rank of a matrix, from its Gram matrix; 0 for a matrix of zeros.

    >>> effective_rank(torch.eye(3)), effective_rank(torch.ones(3, 3))
    (3.0, 1.0)
    """
    energy = torch.linalg.eigvalsh(gram.double()).clamp(min=0)
    part = energy[energy > 0] / energy.sum()
    return round(math.exp(-float((part * part.log()).sum())), 6) if len(part) else 0.0


def gram_matrices(pair: CheckpointPair, name: str, placement: AxisPlacement) -> tuple[Tensor, Tensor]:
    """The Gram matrix of an axis in a tensor, before and after training.

    The tensor is seen as a matrix with one row per unit. The Gram matrix is that of the smaller side, unless units are
    a later dimension of the tensor: then each block has all units, and the Gram matrix is (units, units).
    """
    others, units = placement.indices.shape
    features = others * math.prod(pair.shape(name)) // pair.shape(name)[placement.dimension]
    rows = placement.dimension == 0 and features < units
    total = torch.zeros(2, *[features if rows else units] * 2, dtype=torch.float64)
    for block in _whole_units(pair, name, placement) if rows else _whole_columns(pair, name, placement):
        for gram, values in zip(total, block, strict=True):
            matrix = values.float() if rows else values.T.float()  # float32 is precise enough, and twice as fast
            gram += matrix.T @ matrix
    return total[0], total[1]


def _whole_units(pair: CheckpointPair, name: str, placement: AxisPlacement) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of units with all of their weights, before and after: (units, weights)."""
    others, units = placement.indices.shape
    group = np.repeat(np.arange(units), others)
    for _, *both in pair.groups(name, placement.dimension, placement.indices.T.ravel(), group):
        before, after = (values.reshape(-1, others * values.shape[1]) for values in both)
        yield before, after


def _whole_columns(pair: CheckpointPair, name: str, placement: AxisPlacement) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of weights of all units, before and after: (units, weights)."""
    others, units = placement.indices.shape
    group = np.repeat(np.arange(others), units)
    for _, *both in pair.groups(name, placement.dimension, placement.indices.ravel(), group):
        before, after = (values.reshape(-1, units, values.shape[1]).movedim(1, 0).reshape(units, -1) for values in both)
        yield before, after


def written_by(
    table: Architecture, expansions: Mapping[str, Expansion], new_layers: Collection[int]
) -> dict[str, tuple[str, AxisPlacement]]:
    """The tensor whose rank represents each grown axis: the first matrix in the family's table that writes the axis.

    It is taken from the middle layer, not counting identity layers, and from the first expert. Axes whose units are
    selected by the input (tokens, positions, experts) have none.
    """
    found: dict[str, tuple[str, AxisPlacement]] = {}
    for weight in table.weights:
        if weight.norm_inputs is None and len(weight.parts[0].dimensions) > 1:
            for placement in axis_placements(table, weight, expansions):
                if placement.side == "written" and not table.axes[placement.axis].external:
                    found.setdefault(placement.axis, (_middle(table, weight, new_layers), placement))
    return found


def _middle(table: Architecture, weight: Weight, new_layers: Collection[int]) -> str:
    layers = sorted({layer for layer, _ in weight.places(table.depth, 1)})
    old = [layer for layer in layers if layer not in new_layers] or layers
    return weight.at(old[len(old) // 2], 0)
