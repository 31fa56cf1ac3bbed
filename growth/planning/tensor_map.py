"""TensorMap: how one output tensor is made from one source tensor.

Each stored dimension gathers old indices and multiplies by a coefficient (docs/design.md, 2.1):

    W*[j, k] = write_a[j] W[source_a[j], source_c[k]] read_c[k]

If a LayerNorm reads what the tensor writes, a multiple of the mean over the old indices is added (`MeanCorrection`;
docs/design.md, 2.2).

A stored dimension is built as its pattern states: a product of spaces by `times` (the Kronecker product), the parts of
a fused weight by `beside` (the direct sum).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter

import numpy as np

from growth.algebra.expansion import FRESH, Booleans, Floats, Integers, even_runs, ordinal, runs
from growth.algebra.split import Split, undivided
from growth.architectures.base import Weight
from growth.arrays.tensor_info import ITEM_SIZE, TensorInfo

_begin = itemgetter(0)
_end = itemgetter(1)


def true_runs(chosen: Booleans) -> list[tuple[int, int]]:
    """Maximal ranges (start, stop) of true values.

    >>> true_runs(np.array([True, True, False, True]))
    [(0, 2), (3, 4)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def clipped(ranges: Sequence[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """Clip sorted ranges to the indices from start to stop.

    >>> clipped([(0, 2), (3, 5)], 1, 4)
    [(1, 2), (3, 4)]
    """
    if not ranges:
        return []
    found = ranges[bisect_right(ranges, start, key=_end) : bisect_left(ranges, stop, key=_begin)]
    return [(max(a, start), min(b, stop)) for a, b in found]


@dataclass(frozen=True, eq=False)
class MeanCorrection:
    """The correction that a LayerNorm needs: coefficient[j] * mean[keys[j]] is added to index j.

    The means are over the middle factor of the source dimension, seen as (outer, size, inner).
    """

    outer: int
    size: int
    inner: int
    keys: Integers
    coefficient: Floats

    @cached_property
    def ranges(self) -> list[tuple[int, int]]:
        """Ranges of indices that have one coefficient, which is not zero."""
        return [(a, b) for a, b in even_runs(self.coefficient) if self.coefficient[a] != 0]


@dataclass(frozen=True, eq=False)
class DimensionMap:
    """One stored dimension of a grown tensor.

    size: old length.
    source, scale: old index (-1: fresh) and coefficient of each new index.
    mean_correction: the mean correction, if the dimension holds a space that a LayerNorm reads.
    split: how grown values are divided among copies, if they are.
    """

    size: int
    source: Integers
    scale: Floats
    mean_correction: MeanCorrection | None = None
    split: Split | None = None

    @classmethod
    def one(cls) -> DimensionMap:
        """The dimension of a single index: the unit of `times`."""
        return cls(1, np.zeros(1, np.int64), np.ones(1))

    @property
    def is_one(self) -> bool:
        """Whether it is the unit of `times`."""
        return len(self) == self.size == 1 and self.is_identity

    def __len__(self) -> int:
        return len(self.source)

    def redrawn(self) -> DimensionMap:
        """A dimension of the same lengths, of which nothing is copied."""
        return DimensionMap(self.size, np.full(len(self), FRESH, np.int64), np.ones(len(self)))

    def times(self, inner: DimensionMap) -> DimensionMap:
        """The composite dimension "(self inner)"."""
        if self.is_one:  # a vocabulary is long: its indices are shared
            return inner
        source = self.source[:, None] * inner.size + inner.source[None, :]
        source[self.fresh[:, None] | inner.fresh[None, :]] = FRESH
        return DimensionMap(
            self.size * inner.size,
            source.ravel(),
            np.kron(self.scale, inner.scale),
            _correction_of_product(self, inner),
            self._joined(inner, Split.times),
        )

    def beside(self, other: DimensionMap) -> DimensionMap:
        """This dimension followed by another, as in a fused weight."""
        moved = np.where(other.fresh, FRESH, other.source + self.size)
        return DimensionMap(
            self.size + other.size,
            np.concatenate([self.source, moved]),
            np.concatenate([self.scale, other.scale]),
            _correction_of_sum(self, other),
            self._joined(other, Split.beside),
        )

    def _joined(self, other: DimensionMap, join: Callable[[Split, Split], Split]) -> Split | None:
        if self.split is None and other.split is None:
            return None
        return join(self.split or undivided(len(self)), other.split or undivided(len(other)))

    def scaled(self, factor: float) -> DimensionMap:
        """The same with every coefficient times `factor`."""
        if factor == 1:
            return self
        correction = self.mean_correction and replace(
            self.mean_correction, coefficient=self.mean_correction.coefficient * factor
        )
        return replace(self, scale=self.scale * factor, mean_correction=correction)

    def is_like(self, other: DimensionMap) -> bool:
        """Whether the other is known to be equal; dimensions with a mean correction or a split never are."""
        mine, theirs = ((d.source, d.scale) for d in (self, other))
        same = self.size == other.size and all(map(np.array_equal, mine, theirs))
        plain = all(d.mean_correction is None and d.split is None for d in (self, other))
        return same and plain

    @cached_property
    def fresh(self) -> Booleans:
        """Which new indices copy nothing."""
        return np.asarray(self.source == FRESH)

    @property
    def new(self) -> Booleans:
        """Which new indices the source did not have: fresh ones, and all copies but the first."""
        return np.asarray(self.fresh | (ordinal(self.source) > 0))

    @cached_property
    def has_fresh(self) -> bool:
        """Whether any new index copies nothing."""
        return bool(self.fresh.any())

    @cached_property
    def draws(self) -> bool:
        """Whether any of them has a coefficient."""
        return self.has_fresh and bool((self.fresh & (self.scale != 0)).any())

    @cached_property
    def scales(self) -> bool:
        """Whether any coefficient is not 1."""
        return bool((self.scale != 1).any())

    @cached_property
    def max_gain(self) -> float:
        """Upper bound of a new value's magnitude, as a multiple of the largest old one's."""
        correction = 0.0 if self.mean_correction is None else np.abs(self.mean_correction.coefficient)
        return float((np.abs(self.scale) + correction).max(initial=0.0))

    @cached_property
    def is_identity(self) -> bool:
        """Whether indices and values stay."""
        return self.gathers_nothing and not self.scales and self.mean_correction is None

    @cached_property
    def gathers_nothing(self) -> bool:
        """Whether indices stay."""
        return len(self) == self.size and bool((self.source == np.arange(self.size)).all())

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """Maximal runs (start, stop, first old index, -1 where fresh) of consecutive old indices."""
        return [(a, b, int(self.source[a])) for a, b in runs(self.source)]

    def runs_between(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """The runs of the new indices from start to stop."""
        first = bisect_right(self.runs, start, key=_begin) - 1
        last = bisect_left(self.runs, stop, key=_begin)
        return [
            (max(a, start), min(b, stop), old if old == FRESH else old + max(start - a, 0))
            for a, b, old in self.runs[first:last]
        ]

    @cached_property
    def without_scale(self) -> DimensionMap:
        """The same indices with every coefficient 1 and no mean correction."""
        changes = self.mean_correction is not None or self.scales
        return replace(self, scale=np.ones(len(self)), mean_correction=None) if changes else self

    @cached_property
    def as_repeats(self) -> tuple[int, DimensionMap]:
        """How many shifted repeats of a shorter dimension this is, and that dimension: heads of equal channels."""
        for times in range(math.gcd(len(self), self.size), 1, -1):
            if len(self) % times or self.size % times or self.mean_correction is not None:
                continue
            shift = self.size // times * np.arange(times)[:, None]
            source, scale = self.source.reshape(times, -1), self.scale.reshape(times, -1)
            fresh = self.fresh.reshape(times, -1)
            source = np.where(fresh, FRESH, source - shift)
            inside = fresh | ((source >= 0) & (source < self.size // times))  # what comes before is not fresh
            if inside.all() and (source == source[0]).all() and (scale == scale[0]).all():
                inner = DimensionMap(self.size // times, source[0], scale[0])
                return times, inner
        return 1, self


def _correction_of_product(outer: DimensionMap, inner: DimensionMap) -> MeanCorrection | None:
    """The mean correction of a composite dimension, of which at most one factor has one."""
    if outer.mean_correction is not None:
        correction = outer.mean_correction
        keys = correction.keys[:, None] * inner.size + np.maximum(inner.source, 0)[None, :]
        coefficient = np.kron(correction.coefficient, inner.scale)
        return MeanCorrection(
            correction.outer, correction.size, correction.inner * inner.size, keys.ravel(), coefficient
        )
    if inner.mean_correction is not None:
        correction = inner.mean_correction
        keys = np.maximum(outer.source, 0)[:, None] * (correction.outer * correction.inner) + correction.keys[None, :]
        coefficient = np.kron(outer.scale, correction.coefficient)
        return MeanCorrection(
            correction.outer * outer.size, correction.size, correction.inner, keys.ravel(), coefficient
        )
    return None


def _correction_of_sum(first: DimensionMap, second: DimensionMap) -> MeanCorrection | None:
    """The mean correction of two dimensions side by side, which have means over as many indices, or none."""
    found = [one.mean_correction for one in (first, second) if one.mean_correction is not None]
    if not found:
        return None
    size, inner = found[0].size, found[0].inner
    assert all((one.size, one.inner) == (size, inner) for one in found), "means over different axes side by side"
    outer, keys, coefficient = 0, [], []
    for one in (first, second):
        correction = one.mean_correction
        keys.append(outer * inner + (np.zeros(len(one), np.int64) if correction is None else correction.keys))
        coefficient.append(np.zeros(len(one)) if correction is None else correction.coefficient)
        assert one.size % (size * inner) == 0, "a mean over an axis that the other dimension does not have"
        outer += one.size // (size * inner)
    return MeanCorrection(outer, size, inner, np.concatenate(keys), np.concatenate(coefficient))


@dataclass(frozen=True)
class Replica:
    """One of the copies of an expert, whose outputs are averaged or added: it has `multiple` times its part.

    first: the output tensor of the first copy, by whose name all copies draw.
    multiple: the number of copies if they are averaged, 1 if they are added.
    """

    split: Split
    first: str
    multiple: int


@dataclass(frozen=True, eq=False)
class TensorMap:
    """One output tensor and how it is made from its source: a gather, coefficients and mean corrections per dimension.

    dimensions: of the output, each with its gather, its coefficients and, if a LayerNorm reads it, a mean correction.
    zero: the end of an identity layer's branch.
    replica: which of the copies of an expert it is, over which it is divided, and the first one's name.
    init_std, init_mean: standard deviation and mean of values that the source does not hold at all: a new router, or
        a layer of random values, whose norms' gains are 1.
    drawn_rows: which drawn row each of its rows is, if some are equal (the router's rows of one copy of a divided MLP).
    constant: the value of fresh indices of a vector, where one is given (the bias of new tokens).
    averaged: fresh indices take the source's mean, as a norm's gain does (a squared gradient).
    """

    target: str
    source: TensorInfo
    dtype: str
    weight: Weight
    dimensions: tuple[DimensionMap, ...]
    new_layer: bool
    zero: bool
    replica: Replica | None = None
    init_std: float | None = None
    init_mean: float = 0.0
    drawn_rows: Integers | None = None
    constant: float | None = None
    averaged: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the output. A scalar has one dimension here, of a single index, and none where it is stored."""
        return tuple(map(len, self.dimensions)) if self.source.shape else ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the output's first dimension."""
        return ITEM_SIZE[self.dtype] * math.prod(self.shape[1:])

    @property
    def bytes(self) -> int:
        """Bytes of the output."""
        return ITEM_SIZE[self.dtype] * math.prod(self.shape)

    @property
    def fresh_mean(self) -> bool:
        """Whether fresh values are the source's mean (a norm's gain) and not random."""
        return self.averaged or self.weight.norm_inputs is not None

    @property
    def offset(self) -> float:
        """What the model adds to the stored values before they change; nothing where they are copied as they are."""
        return 0.0 if self.is_copy else self.weight.offset

    @property
    def replicas(self) -> int:
        """The factor on its part of each weight: over how many copies of an expert the outputs are averaged."""
        return self.replica.multiple if self.replica else 1

    @property
    def split_name(self) -> str:
        """The name by which random numbers divide its values: one for all copies of an expert."""
        return self.replica.first if self.replica else self.target

    @cached_property
    def is_split(self) -> bool:
        """Whether values are divided among copies."""
        return bool(self.splits)

    @cached_property
    def splits(self) -> tuple[Split, ...]:
        """The splits of its values: among copies of an expert, and along dimensions."""
        replicas = () if self.replica is None else (self.replica.split,)
        return (*replicas, *(one.split for one in self.dimensions if one.split is not None))

    @cached_property
    def draws(self) -> bool:
        """Whether any value is random, or takes the source's mean."""
        return any(dimension.draws for dimension in self.dimensions)

    @property
    def is_copy(self) -> bool:
        """Whether the output's bytes are the source's."""
        unchanged = all(dimension.is_identity for dimension in self.dimensions)
        return (
            unchanged
            and not self.zero
            and self.init_std is None
            and not self.is_split
            and self.dtype == self.source.dtype
        )

    @property
    def value_key(self) -> object:
        """Key under which tensors of identical values are grown once, as in copied layers and copied experts.

        It holds everything that values depend on; random values depend on the target's name too. A copy of the
        source's bytes is not computed, and so has a key of its own.
        """
        if self.zero:
            return self.shape, self.dtype, self.offset
        if self.draws or self.is_split or self.init_std is not None or self.is_copy:
            return self.target
        return self.source, self.dtype, self.offset, self.constant, tuple(map(id, self.dimensions))

    @property
    def what(self) -> str:
        """How the tensor is made, in words."""
        if self.zero:
            return "zero (ends an identity layer)" if self.new_layer else "zero"
        if self.init_std is not None:
            return "fresh"
        if self.is_copy:
            return "copy"
        told = {
            "gather": any(not d.gathers_nothing for d in self.dimensions),
            "scale": any(d.scales for d in self.dimensions),
            "split": self.is_split,
            "keep the mean": any(d.mean_correction is not None for d in self.dimensions),
            "fresh": any(d.has_fresh for d in self.dimensions),
            f"cast to {self.dtype}": self.dtype != self.source.dtype,
        }
        return ", ".join(word for word, is_so in told.items() if is_so)
