"""Row: how one output tensor is made from one source tensor.

Each stored dimension gathers old indices and multiplies by a coefficient, which is the whole of the
mathematics (docs/design.md, 2.1):

    W*[j, k] = write_a[j] W[source_a[j], source_c[k]] read_c[k]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from growth.architecture import Weight
from growth.checkpoint import ITEM_SIZE, TensorInfo
from growth.expansion import FRESH, Booleans, Floats, Integers, runs


@dataclass(frozen=True, eq=False)
class Cancelling:
    """Noise along a dimension: it sums to zero, weighted with `write`, over the new units of each group."""

    group: Integers
    write: Floats
    amplitude: float


@dataclass(frozen=True, eq=False)
class Dimension:
    """One stored dimension of a grown tensor: old index (-1: fresh) and coefficient of each new index."""

    size: int
    source: Integers
    scale: Floats
    noise: Cancelling | None = None

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def fresh(self) -> Booleans:
        """Which new indices copy nothing."""
        return np.asarray(self.source == FRESH)

    @cached_property
    def is_identity(self) -> bool:
        """Whether indices and values stay."""
        return len(self) == self.size and bool(
            (self.source == np.arange(self.size)).all() and (self.scale == 1).all() and self.noise is None
        )

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """Maximal runs (start, stop, first old index, -1 where fresh) of consecutive old indices."""
        return [(a, b, int(self.source[a])) for a, b in runs(self.source)]


@dataclass(frozen=True)
class Centring:
    """The mean to subtract: over the middle factor of source dimension `dimension` seen as (outer, size, inner)."""

    dimension: int
    outer: int
    size: int
    inner: int


@dataclass(frozen=True, eq=False)
class Row:
    """One output tensor and where it comes from.

    zero: the end of an identity layer's branch.
    factor: multiplies every value (the softmax scale).
    centring: subtracted from the source before it is gathered.
    """

    target: str
    source: TensorInfo
    dtype: str
    weight: Weight
    dimensions: tuple[Dimension, ...]
    factor: float
    centring: tuple[Centring, ...]
    new_layer: bool
    zero: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the output."""
        return tuple(len(dimension) for dimension in self.dimensions)

    @property
    def bytes(self) -> int:
        """Bytes of the output."""
        return ITEM_SIZE[self.dtype] * math.prod(self.shape)

    @property
    def fresh_mean(self) -> bool:
        """Whether fresh values are the source's mean (a norm's gain) and not random."""
        return self.weight.undoes is not None

    @property
    def is_copy(self) -> bool:
        """Whether the output's bytes are the source's."""
        return (
            not self.zero
            and self.dtype == self.source.dtype
            and self.factor == 1
            and not self.centring
            and all(dimension.is_identity for dimension in self.dimensions)
        )

    @property
    def what(self) -> str:
        """The row's making, in words."""
        if self.zero:
            return "zero (ends an identity layer)"
        if self.is_copy:
            return "copy"
        words = ["centre"] if self.centring else []
        words += ["gather"] if any((d.source != np.arange(len(d))).any() for d in self.dimensions) else []
        scaled = self.factor != 1 or any((d.scale != 1).any() for d in self.dimensions)
        words += ["scale"] if scaled else []
        words += ["fresh"] if any(d.fresh.any() for d in self.dimensions) else []
        words += ["noise"] if any(d.noise is not None for d in self.dimensions) else []
        words += [] if self.dtype == self.source.dtype else [f"cast to {self.dtype}"]
        return ", ".join(words)
