"""Views: the expansion of an axis as it is seen from another place in the model.

A weight's table names spaces; a space is an axis and the views through which it is seen there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from growth.algebra.arithmetic import mean
from growth.algebra.expansion import Expansion


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


def query_scaled(axis: Expansion) -> Expansion:
    """Channels of heads as queries write them: the softmax scale head_dim ** -0.5 shrinks, so they grow."""
    return axis.scaled(SCALES["query_scaled"](axis))


def before_embed_scale(axis: Expansion) -> Expansion:
    """The stream as an embedding writes it that the model multiplies by sqrt(hidden_size) (Gemma)."""
    return axis.scaled(SCALES["before_embed_scale"](axis))


# the factor of the views that are nothing but a factor
SCALES: Mapping[str, Callable[[Expansion], float]] = {
    "query_scaled": lambda axis: float(np.sqrt(len(axis) / axis.size)),
    "before_embed_scale": lambda axis: float(np.sqrt(axis.size / len(axis))),
}


VIEWS: Mapping[str, Callable[[Expansion], Expansion]] = {
    view.__name__: view
    for view in (normed, after_softmax, norm_without_gain, tied_head, query_scaled, before_embed_scale)
}
