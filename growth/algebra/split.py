"""Splits: a weight that reads a copied unit is divided among the unit's copies (docs/design.md, 2.4).

The parts of a weight have its sign and add up to it exactly in the type that stores them. Sterbenz's lemma (Sterbenz
1974, Floating-Point Computation, theorem 4.3.1) says that y - x is exact if y/2 <= x <= 2y. So the larger of two parts
is r times the weight, rounded, with r from 1/2 to 1, and the smaller is what is left. Where half the weight is not
representable, the weight is a small multiple of the least subnormal number, and so are both parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from growth.algebra.expansion import Expansion, Floats, Integers, ordinal

Kind = Literal["random", "mask"]
Bits = NDArray[np.uint16]
MOST_COPIES = 2**14  # of one unit: 16 random bits choose among them, and twice as many are counted in 16 bits
TOLERANCE = 1e-9  # of float64 products that are equal in exact arithmetic


@dataclass(frozen=True, eq=False)
class Split:
    """How the weights that read an axis are divided among copies.

    kind: `random` parts, or a `mask` that gives each weight to one copy whole.
    part, parts: which part of a weight each new index has, and of how many, shape (N,); 0 of 1 where nothing is
        divided.
    whole: which weight that is, shape (N,): indices with parts of one weight have the same number.
    """

    kind: Kind
    part: Integers
    parts: Integers
    whole: Integers

    @property
    def wholes(self) -> int:
        """The number of weights along the axis before they are divided."""
        return int(self.whole.max(initial=-1)) + 1

    @property
    def turns(self) -> bool:
        """Whether some number of parts is not a power of two, so that parts change places."""
        return bool((self.parts & (self.parts - 1)).any())

    @classmethod
    def of(cls, kind: Kind, expansion: Expansion) -> Split | None:
        """Return the split among the copies of each unit that are read; None where it cannot be exact.

        The copies of a unit must be written alike, so that parts that add up to a weight compute what it does.
        """
        read = ~expansion.fresh & (expansion.read != 0)
        units = np.where(read, expansion.source, 0)
        parts = np.where(read, np.bincount(units[read], minlength=expansion.size)[units], 1)
        written = np.bincount(units[read], expansion.write[read], expansion.size)[units]
        alike = np.abs(written - parts * expansion.write) < TOLERANCE
        equal = np.abs(expansion.write * expansion.read * parts - 1) < TOLERANCE
        if not (alike & equal)[read].all():
            return None
        part = np.where(read, ordinal(np.where(read, expansion.source, -1)), 0)
        return cls(kind, part, parts, np.maximum(expansion.source, 0)) if (parts > 1).any() else None

    def times(self, inner: Split) -> Split:
        """Return the split of a composite axis "(self inner)"."""
        part = self.part[:, None] * inner.parts + inner.part
        whole = self.whole[:, None] * inner.wholes + inner.whole
        kind = joint_kind(self.kind, inner.kind)
        return Split(kind, part.ravel(), np.kron(self.parts, inner.parts), whole.ravel())

    def beside(self, other: Split) -> Split:
        """Return the split of two axes side by side."""
        part, parts = np.concatenate([self.part, other.part]), np.concatenate([self.parts, other.parts])
        whole = np.concatenate([self.whole, other.whole + self.wholes])
        return Split(joint_kind(self.kind, other.kind), part, parts, whole)


def joint_kind(one: Kind, other: Kind) -> Kind:
    """Return the kind of a split along two axes: a mask only if both are."""
    return "random" if "random" in (one, other) else "mask"


def undivided(length: int) -> Split:
    """Return the split that divides nothing."""
    return Split("mask", np.zeros(length, np.int64), np.ones(length, np.int64), np.arange(length))


def part_of(
    values: Floats,
    kind: Kind,
    part: Integers,
    parts: Integers,
    bits: Callable[[int], Bits],
    rounded: Callable[[Floats], Floats],
    *,
    turns: bool,
) -> Floats:
    """Return of each value the part that its index has.

    A mask gives the whole value to one index. Otherwise a value is divided into two random parts: a random bit says
    which is the larger one, and each is divided further if it stands for several. If a number of parts is not a power
    of two, the parts change places at random, so that all have the same expectation.

    values: of the type in which products are computed, each representable in the stored type.
    kind, part, parts: as in `Split`; arrays that broadcast to the values.
    bits: 16 random bits for each value, by the number of the draw; equal for the parts of one weight.
    rounded: rounds to the stored type and returns the type of the values.
    turns: whether parts change places: `Split.turns` for any split of the whole tensor, whatever block is computed.

    >>> part, parts = np.array([0, 1]), np.array([2, 2])
    >>> draw, half = lambda number: np.array([12345, 12345], np.uint16), lambda x: np.float32(np.float16(x))
    >>> part_of(np.array([3.0, 3.0], np.float32), "random", part, parts, draw, half, turns=False)
    array([1.7822266, 1.2177734], dtype=float32)
    """
    part, parts = part.astype(np.int16), parts.astype(np.int16)
    if kind == "mask":
        return np.where(_below(parts, bits(0)) == part, values, values.dtype.type(0))
    draw = 0
    if turns:
        turned = part + _below(parts, bits(0))
        part, draw = np.where(turned >= parts, turned - parts, turned), 1
    while (parts > 1).any():
        random_bits = bits(draw)
        left = parts - parts // 2
        on_left = part < left
        larger = rounded(values * _share(random_bits, values.dtype))
        chosen = np.where((random_bits & 1 == 1) == on_left, larger, values - larger)
        values = np.where(parts > 1, chosen, values)
        part, parts = np.where(on_left, part, part - left), np.where(on_left, left, parts - left)
        draw += 1
    return values


def _below(parts: Integers, bits: Bits) -> Integers:
    """Return numbers from 0 to parts - 1: the upper bits of 16 random ones times the number of parts."""
    return np.asarray((bits.astype(np.uint32) * parts.astype(np.uint32)) >> 16, np.int16)


def _share(bits: Bits, dtype: np.dtype[Any]) -> Floats:
    """Return numbers from 1/2 to 1, which the upper 15 bits choose."""
    shares: Floats = ((bits >> 1).astype(dtype) + dtype.type(1 << 15)) * dtype.type(2.0**-16)
    return shares
