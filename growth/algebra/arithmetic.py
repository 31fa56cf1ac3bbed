"""Sums, means and powers whose results depend on neither the processor nor the version of numpy or of the C library.

IEEE 754 rounds a sum, product, quotient and square root of two numbers in one way. How numpy orders a longer sum is
its own affair, and so is how a C library rounds a power; here both are written out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

DIGITS = 60  # of powers; a float64 has 17


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


def mean(values: Floats) -> float:
    """The mean of some numbers, summed as `total` does."""
    return float(total(values.reshape(-1).astype(np.float64)) / values.size)


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
