"""Expansion: how the units of one axis grow from n to N (docs/design.md, section 2.1).

An expansion is three vectors of length N. New unit j copies old unit `source[j]` (-1: none, j is
fresh). A tensor that writes the axis copies it with `write[j]` (the map E), a tensor that reads the
axis copies it with `read[j]` (the map R). The law R E = I says that whatever is written is read back:

    for every old unit i:   sum of write[j] * read[j] over the copies j of i   =   1

Shape letters: n old units, N new units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Booleans = NDArray[np.bool_]

FRESH = -1


@dataclass(frozen=True, eq=False)
class Expansion:
    """The map by which an axis grows from `size` units to `len(expansion)` units.

    >>> double = Expansion.copies(2, np.array([0, 1, 0, 1]))
    >>> double.read
    array([0.5, 0.5, 0.5, 0.5])
    >>> double.law_error()
    0.0
    """

    size: int
    source: Integers
    write: Floats
    read: Floats

    def __post_init__(self) -> None:
        assert self.source.shape == self.write.shape == self.read.shape, "three vectors of length N"
        assert len(self.source) == 0 or (self.source.min() >= FRESH and self.source.max() < self.size)
        for vector in (self.source, self.write, self.read):
            vector.setflags(write=False)

    @classmethod
    def identity(cls, size: int) -> Expansion:
        """Every unit kept as it is."""
        return cls(size, np.arange(size), np.ones(size), np.ones(size))

    @classmethod
    def copies(
        cls, size: int, source: Integers, write: Floats | None = None, shares: Floats | None = None
    ) -> Expansion:
        """Make copies that write with `write` (default 1) and that readers weight by `shares` (default: equally).

        `shares[j]` is the fraction of the old unit's signal that readers take from copy j. The shares of a unit's
        copies sum to 1, so read = shares / write satisfies the law. Fresh units are never written.
        """
        silent = source == FRESH
        if shares is None:
            shares = 1.0 / np.where(silent, 1, counts(source, size)[source])
        write = np.where(silent, 0.0, 1.0 if write is None else write)
        return cls(size, source, write, np.where(silent, 1.0, shares / np.where(silent, 1.0, write)))

    @classmethod
    def padding(cls, size: int, new: int, *, silent: str, places: Integers | None = None) -> Expansion:
        """The old units and fresh ones: never written (`silent="write"`), or never read ("read").

        places: where the old units go, by default in front of the fresh ones, shape (size,).
        """
        source = np.full(new, FRESH)
        source[np.arange(size) if places is None else places] = np.arange(size)
        quiet = np.where(source == FRESH, 0.0, 1.0)
        loud = np.ones(new)
        return cls(size, source, *((quiet, loud) if silent == "write" else (loud, quiet)))

    def __len__(self) -> int:
        return len(self.source)

    @property
    def fresh(self) -> Booleans:
        """Which new units copy nothing, shape (N,)."""
        return np.asarray(self.source == FRESH)

    @property
    def copied(self) -> Booleans:
        """Which new units copy an old one that has several copies, shape (N,).

        >>> Expansion.copies(2, np.array([0, 1, 0])).copied
        array([ True, False,  True])
        """
        kept = ~self.fresh
        copied = np.zeros(len(self), bool)
        copied[kept] = counts(self.source, self.size)[self.source[kept]] > 1
        return copied

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return (
            len(self) == self.size
            and bool((self.source == np.arange(self.size)).all())
            and bool((self.write == 1).all() and (self.read == 1).all())
        )

    def per_unit(self, values: Floats) -> Floats:
        """Sum of `values`, shape (N,), over the copies of each old unit, shape (n,)."""
        kept = ~self.fresh
        return np.asarray(np.bincount(self.source[kept], values[kept], minlength=self.size), np.float64)

    def law_error(self) -> float:
        """The largest distance from 1 of sum(write * read) over the copies of a unit; 0 where R E = I."""
        return float(np.abs(self.per_unit(self.write * self.read) - 1).max(initial=0.0))

    def then(self, later: Expansion) -> Expansion:
        """This expansion followed by `later`, as one: sources chain, coefficients multiply."""
        assert later.size == len(self), f"{later.size} units follow {len(self)}"
        kept = ~later.fresh
        through = later.source[kept]
        source, write, read = later.source.copy(), later.write.copy(), later.read.copy()
        source[kept] = self.source[through]
        write[kept] *= self.write[through]
        read[kept] *= self.read[through]
        return Expansion(self.size, source, write, read)

    def times(self, inner: Expansion) -> Expansion:
        """The expansion of a composite axis "(self inner)": the Kronecker product of the two."""
        source = self.source[:, None] * inner.size + inner.source[None, :]
        source[self.fresh[:, None] | inner.fresh[None, :]] = FRESH
        return Expansion(
            self.size * inner.size,
            source.ravel(),
            np.kron(self.write, inner.write),
            np.kron(self.read, inner.read),
        )

    def scaled(self, factor: float) -> Expansion:
        """Multiply the write coefficients by `factor` and divide the read coefficients by it."""
        return Expansion(self.size, self.source, self.write * factor, self.read / factor)

    def read_equally(self) -> Expansion:
        """The same units, each read in equal shares from those of its copies that are read.

        >>> Expansion(1, np.array([0, 0, 0]), np.ones(3), np.array([0.75, 0.25, 0])).read_equally().read
        array([0.5, 0.5, 0. ])
        """
        shared = ~self.fresh & (self.write != 0) & (self.read != 0)
        copies = counts(np.where(shared, self.source, FRESH), self.size)[self.source]
        return self.with_read(np.where(shared, 1 / np.where(shared, copies * self.write, 1), self.read))

    def with_read(self, read: Floats) -> Expansion:
        """The same units, read with other coefficients."""
        return Expansion(self.size, self.source, self.write, read)

    def read_from_first(self) -> Expansion:
        """The same units, each read whole from its first copy and not at all from the others.

        >>> Expansion.copies(1, np.array([0, 0])).read_from_first().read
        array([1., 0.])
        """
        again = ~self.fresh & (ordinal(self.source) > 0)
        whole = np.where(self.fresh | (self.write == 0), self.read, 1 / np.where(self.write == 0, 1, self.write))
        return self.with_read(np.where(again, 0.0, whole))

    def without_copies(self) -> Expansion:
        """Keep only the first copy of each old unit; further copies become fresh, with both coefficients 1.

        >>> Expansion.copies(2, np.array([0, 1, 0])).without_copies().source
        array([ 0,  1, -1])
        """
        again = ~self.fresh & (ordinal(self.source) > 0)
        return Expansion(
            self.size,
            np.where(again, FRESH, self.source),
            np.where(again, 1.0, self.write),
            np.where(again, 1.0, self.read),
        )

    def runs(self) -> list[tuple[int, int, int | None, float, float]]:
        """Maximal runs (start, stop, first old unit or None, write, read) of consecutive copies."""
        old, write, read = self.source.tolist(), self.write.tolist(), self.read.tolist()
        return [
            (a, b, None if old[a] == FRESH else old[a], write[a], read[a])
            for a, b in runs(self.source, self.write, self.read)
        ]


def runs(source: Integers, *constant: Floats) -> list[tuple[int, int]]:
    """Maximal ranges (start, stop) over which old units follow one another and coefficients stay the same.

    >>> runs(np.array([0, 1, 2, 0, 1, -1, -1]))
    [(0, 3), (3, 5), (5, 7)]
    """
    if not len(source):
        return []
    fresh = source == FRESH
    goes_on = np.where(fresh[1:], fresh[:-1], ~fresh[:-1] & (source[1:] == source[:-1] + 1))
    for values in constant:
        goes_on &= np.diff(values) == 0
    starts = [0, *(np.flatnonzero(~goes_on) + 1).tolist()]
    return list(zip(starts, [*starts[1:], len(source)], strict=True))


def even_runs(values: Floats) -> list[tuple[int, int]]:
    """Maximal ranges (start, stop) over which values stay the same.

    >>> even_runs(np.array([0.5, 0.5, 1, 0.5]))
    [(0, 2), (2, 3), (3, 4)]
    """
    return runs(np.full(len(values), FRESH), values)


def counts(source: Integers, size: int) -> Integers:
    """How many copies each old unit has, shape (n,)."""
    return np.bincount(source[source != FRESH], minlength=size)


def ordinal(source: Integers) -> Integers:
    """Which copy of its unit each new unit is: 0 for the first, 1 for the second, …, shape (N,).

    >>> ordinal(np.array([0, 1, 0, 0, 1]))
    array([0, 0, 1, 2, 1])
    """
    order = np.argsort(source, kind="stable")
    ranked = source[order]
    first = np.searchsorted(ranked, ranked, side="left")
    rank = np.empty(len(source), np.int64)
    rank[order] = np.arange(len(source)) - first
    return rank


# ------------------------------------------------- which unit each new unit copies


def tiled(size: int, new: int, *, fixed: int = 0, pairs: bool = False) -> Integers:
    """Cyclic copies of the units after the first `fixed`, appended to the old units: few, long runs.

    With `pairs`, no unit has two copies while another has one, because no coefficients keep a LayerNorm exact then
    (`layernorm_write`).

    >>> tiled(4, 6)
    array([0, 1, 2, 3, 0, 1])
    >>> tiled(4, 6, pairs=True)
    array([0, 1, 2, 3, 0, 0])
    """
    pool = copied_units(size, new, fixed, pairs)
    extra = fixed + np.arange(new - size) % max(pool, 1)
    return np.concatenate([np.arange(size), extra if pool else np.full(new - size, FRESH)])


def sampled(size: int, units: Integers, *, pairs: bool = False) -> Integers:
    """Random copies appended to the old units (Net2Net, Chen et al. 2016, 3.1).

    `units` are old units sampled with replacement, one for each unit to add. With `pairs`, each is added twice and the
    second half of `units` is not used.

    >>> sampled(3, np.array([2, 0, 2]))
    array([0, 1, 2, 2, 0, 2])
    """
    extra = len(units)
    if pairs:
        twice = np.repeat(units[: extra // 2], 2)
        units = np.concatenate([twice, twice[: extra % 2]]) if extra > 1 else np.full(extra, FRESH)
    return np.concatenate([np.arange(size), units])


def copied_units(size: int, new: int, fixed: int, pairs: bool) -> int:
    """The number of units after the first `fixed` that a tiling copies; 0 if no tiling is exact."""
    candidates, extra = size - fixed, new - size
    everyone_copied_alike = fixed == 0 and new >= 2 * size
    if not pairs or everyone_copied_alike or extra >= 2 * candidates:
        return candidates
    return extra // 2


def rotary_places(size: int, new: int, *, halves: bool, stride: int = 1) -> Integers:
    """Where rotary channels go among `new` ones, so that old pair k becomes pair k * stride, shape (size,).

    halves: whether channel i of each half is a pair; otherwise neighbours are.

    >>> rotary_places(4, 8, halves=True), rotary_places(4, 8, halves=True, stride=2)
    (array([0, 1, 4, 5]), array([0, 2, 4, 6]))
    >>> rotary_places(4, 8, halves=False, stride=2)
    array([0, 1, 4, 5])
    """
    if halves:
        of_pair = stride * np.arange(size // 2)
        return np.concatenate([of_pair, new // 2 + of_pair])
    return (2 * stride * np.arange(size // 2)[:, None] + np.arange(2)).ravel()


# ------------------------------------------------- write coefficients that commute with a norm


def rmsnorm_write(source: Integers, size: int) -> Floats:
    """Coefficients whose squares sum to the same number for every unit (design 2.2): sqrt(k / copies).

    k is the least number of copies of a unit, so that copying every unit equally often writes 1.
    """
    copies = counts(source, size)
    return np.where(source == FRESH, 0.0, np.sqrt(copies.min() / np.maximum(copies[source], 1)))


def layernorm_write(source: Integers, size: int) -> Floats:
    """Coefficients whose sum and whose sum of squares are the same for every unit (design 2.2).

    With k the least number of copies, a unit with c > k copies writes w on all but its last copy, v on
    the last. Both sums are k where, with m = c - 1,

        m w + v = k,   m w^2 + v^2 = k    =>    w = (k m + sqrt(k m (c - k))) / (m (m + 1)),  v = k - m w

    For k = 1 and c = 3 that is (2/3, 2/3, -1/3). For k = 1 and c = 2 only (1, 0) solves it, which is no
    copy at all: `tiled` and `sampled` avoid that pair.

    >>> layernorm_write(np.array([0, 1, 0, 0]), 2).round(3)
    array([ 0.667,  1.   ,  0.667, -0.333])
    """
    copies = counts(source, size)
    k = int(copies.min())
    c = np.where(source == FRESH, k, copies[source])
    m = np.maximum(c - 1, 1)
    w = (k * m + np.sqrt(k * m * (c - k))) / (m * (m + 1))
    # of the two roots, the one that leaves the last copy written
    w = np.where((k > 1) & (c == k + 1), (k - 1) / (k + 1), w)
    v = k - m * w
    write = np.where(ordinal(source) == c - 1, v, w)
    return np.where(source == FRESH, 0.0, np.where(c == k, 1.0, write))
