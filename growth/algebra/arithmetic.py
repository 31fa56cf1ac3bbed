"""Sums, means and powers whose results depend on neither the processor nor the version of numpy or of the C library.

IEEE 754 rounds a sum, product, quotient and square root of two numbers in one way. How numpy orders a longer sum is
its own affair, and so is how a C library rounds a power; here both are written out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

DIGITS = 60  # of powers; a float64 has 17
FLOAT32_SUM_ROWS = 16  # rows that are summed in the type of the computation; their sums are in float64
SAMPLED_VALUES, SAMPLED_ROWS = 1 << 17, 64  # values, and rows at least, from which the size of fresh ones is estimated


def total(values: Floats, axis: int = -1) -> Floats:
    """The sum along an axis, in the type of the values: the upper half is added to the lower until one is left.

    Of an odd number, the last is added to the first.

    >>> float(total(np.array([1.0, 2.0, 3.0])))
    6.0
    """
    values = np.moveaxis(values, axis, 0)
    count = len(values)
    if not count:
        return np.zeros(values.shape[1:], values.dtype)
    sums = None  # the given values are not overwritten
    while count > 1:
        half = count // 2
        sums = np.add(values[:half], values[half : 2 * half], out=None if sums is None else sums[:half])
        if count % 2:
            sums[0] += values[count - 1]
        values, count = sums, half
    return np.asarray(values[0])


def sums_by_key(values: Floats, keys: Integers, axis: int) -> tuple[Integers, Floats]:
    """The keys that indices of an axis have, rising, and the sums over those that have the same, one after another."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    counts = np.diff(starts, append=len(keys))
    sums = np.take(values, order[starts], axis)
    by_key = np.moveaxis(sums, axis, 0)
    for n in range(1, int(counts.max(initial=1))):
        more = counts > n
        by_key[more] += np.moveaxis(np.take(values, order[starts[more] + n], axis), axis, 0)
    return keys[order[starts]], sums


def add_rows(sums: Floats, rows: Floats, keys: Integers) -> None:
    """Adds rows to the float64 sum of each one's key; a few at a time, which are summed in their own type.

    The first is row 0 of its tensor, or at another multiple of FLOAT32_SUM_ROWS.
    """
    for start in range(0, len(rows), FLOAT32_SUM_ROWS):
        few = slice(start, start + FLOAT32_SUM_ROWS)
        if len(sums) == 1:
            sums += total(rows[few], 0)
        else:
            found, part = sums_by_key(rows[few], keys[few], 0)
            sums[found] += part


def sample_step(shape: tuple[int, ...]) -> int:
    """Every how many rows of a tensor are sampled to estimate the size of its values.

    >>> sample_step((4096, 512)), sample_step((10_000,))
    (16, 1)
    """
    sampled = max(SAMPLED_ROWS, SAMPLED_VALUES // max(1, math.prod(shape[1:])))
    return max(1, shape[0] // sampled) if len(shape) > 1 else 1


def mean(values: Floats) -> float:
    """The mean of some numbers, summed as `total` does."""
    return float(total(values.reshape(-1).astype(np.float64)) / values.size)


def mean_and_deviation(values: Floats) -> tuple[float, float]:
    """The mean of some numbers and their standard deviation, in float64."""
    wide = values.astype(np.float64)
    middle = mean(wide)
    wide -= middle
    return middle, math.sqrt(mean(wide * wide))


def power(base: float, exponent: float) -> float:
    """A power of a positive number, computed in decimal and rounded to the nearest float64.

    >>> power(10, -1), power(2, 0.5), power(10_000, 1)
    (0.1, 1.4142135623730951, 10000.0)
    """
    from decimal import Context, Decimal  # slow to come by, and seldom needed

    return float(Context(prec=DIGITS).power(Decimal(base), Decimal(exponent)))


def amplitude(decibels: float) -> float:
    """The ratio of two amplitudes, so many decibels below.

    >>> amplitude(20)
    0.1
    """
    return power(10, -decibels / 20)


def as_bfloat16(value: float) -> float:
    """Return the nearest bfloat16, of two equally near ones the even one.

    >>> as_bfloat16(2560 ** 0.5)
    50.5
    """
    bits = int(np.float32(value).view(np.uint32))
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return float(np.uint32(rounded).view(np.float32))
