"""Views: the expansion of an axis as it is seen from another place in the model.

A weight's table names spaces; a space is an axis and the views through which it is seen there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from growth.algebra.arithmetic import as_bfloat16, mean
from growth.algebra.expansion import Expansion, counts


def normed(axis: Expansion) -> Expansion:
    """After a norm whose gain undoes `write`: copies look alike, shares are read.

    Fresh units keep their coefficients: what is silent before the norm is silent after it.
    """
    write = np.where(axis.fresh, axis.write, 1.0)
    read = np.where(axis.fresh, axis.read, axis.write * axis.read)
    return Expansion(axis.size, axis.source, write, read)


def after_softmax(axis: Expansion) -> Expansion:
    """Heads after attention, where scores of zero attend evenly: fresh heads are not silent there, so not read."""
    return Expansion(
        axis.size, axis.source, np.where(axis.fresh, 1.0, axis.write), np.where(axis.fresh, 0.0, axis.read)
    )


def in_full(axis: Expansion) -> Expansion:
    """Units that a gate silences, in front of that gate: it alone is written as zero, and the rest as usual."""
    return Expansion(axis.size, axis.source, np.where(axis.fresh, 1.0, axis.write), axis.read)


def norm_without_gain(axis: Expansion) -> Expansion:
    """After a norm without a gain: `write` does not change, except for the change of the mean square."""
    return axis.scaled(1 / math.sqrt(mean(axis.write**2)))


def read_in_full(axis: Expansion) -> Expansion:
    """With no norm in front, where a mean correction multiplies the mean by λ: read proportional to write.

    Then sum(write * read) is 1, and so is λ * sum(read) for λ = sum(write^2) / sum(write). Fresh units hold the mean
    and are not read.
    """
    energy = axis.per_unit(axis.write**2)
    read = np.where(axis.fresh, 0.0, axis.write / energy[np.where(axis.fresh, 0, axis.source)])
    return Expansion(axis.size, axis.source, axis.write, read)


def tied_head(axis: Expansion) -> Expansion:
    """After the final norm of a model whose embedding matrix is also its head.

    The matrix reads with the coefficients that it writes with, so the norm's gain hands it
    write / sum(write^2) of each unit.
    """
    energy = axis.per_unit(axis.write**2)
    fraction = np.where(axis.fresh, 0.0, axis.write / energy[np.where(axis.fresh, 0, axis.source)])
    return Expansion(axis.size, axis.source, fraction, axis.write)


def activated(axis: Expansion) -> Expansion:
    """Units of another layer of as many units as the axis, behind an activation: copies are equal and read equally.

    The hidden layer of a projector that a class makes as wide as the stream. Fresh units are not read.
    """
    shares = 1.0 / np.where(axis.fresh, 1, counts(axis.source, axis.size)[axis.source])
    return Expansion(axis.size, axis.source, np.ones(len(axis)), np.where(axis.fresh, 0.0, shares))


def query_scaled(old: int, new: int) -> float:
    """Channels of heads as queries write them: the softmax scale, their number ** -0.5, shrinks, so they grow."""
    return float(np.sqrt(new / old))


def before_embed_scale(old: int, new: int) -> float:
    """The stream as an embedding writes it that the model multiplies by sqrt(hidden_size) (Gemma)."""
    return float(np.sqrt(old / new))


def before_rounded_embed_scale(old: int, new: int) -> float:
    """The same where the model rounds sqrt(hidden_size) to a bfloat16 (RecurrentGemma)."""
    return as_bfloat16(math.sqrt(old)) / as_bfloat16(math.sqrt(new))


def before_logit_scale(old: int, new: int) -> float:
    """The stream as the final norm writes it where the model divides it by hidden_size over a constant (MiniCPM3)."""
    return new / old


def among_all(axis: Expansion) -> Expansion:
    """Experts after a softmax over all of them: each copy has its share of the probability."""
    return Expansion(axis.size, axis.source, axis.read_equally().read, axis.read)


# views that multiply what is written by a factor, which follows from the old and the new number of units
SCALES: Mapping[str, Callable[[int, int], float]] = {
    scale.__name__: scale
    for scale in (query_scaled, before_embed_scale, before_rounded_embed_scale, before_logit_scale)
}
# all other views
VIEWS: Mapping[str, Callable[[Expansion], Expansion]] = {
    view.__name__: view for view in (normed, after_softmax, in_full, norm_without_gain, tied_head, activated, among_all)
}
