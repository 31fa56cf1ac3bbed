"""Convert and multiply arrays of float16, bfloat16, float32 and float64 (numpy and numkong).

Numpy has no bfloat16, so such arrays hold its bits as uint16. Numpy converts float16 one value at a time; numkong uses
the processor's instructions for both half types and rounds as IEEE 754 requires, which is checked once per process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import numkong
import numpy as np

from growth.errors import CheckpointError

Array = np.ndarray[Any, np.dtype[Any]]
Step = Callable[[], Any]

NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
_NAMES: Mapping[np.dtype[Any], Any] = {  # names of numkong; the name of a numpy dtype is slow to compute
    NUMPY_DTYPES["F16"]: "float16",
    NUMPY_DTYPES["BF16"]: "bfloat16",
    NUMPY_DTYPES["F32"]: "float32",
}
# the unsigned type and the bits of infinity; every NaN has larger bits once the sign is removed
INFINITY: Mapping[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F32": (np.uint32, 0x7F80_0000),
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
}
HALVES = ("F16", "BF16")
PROBE_INEXACT, PROBE_EXACT = float(np.float32(np.sqrt(0.8))), 0.7109375  # factors that half types round, and hold


def value_of(bits: int, dtype: str) -> np.floating[Any]:
    """The value of a float type that has these bits.

    >>> print(value_of(0xBF80, "BF16"), value_of(0x3DCCCCCD, "F32"))
    -1.0 0.1
    """
    if dtype == "BF16":
        bits, dtype = bits << 16, "F32"
    value: np.floating[Any] = np.array([bits], INFINITY[dtype][0]).view(NUMPY_DTYPES[dtype])[0]
    return value


LARGEST: Mapping[str, float] = {name: float(value_of(bits - 1, name)) for name, (_, bits) in INFINITY.items()}  # finite


def cast(values: Array, into: Array) -> Array:
    """Fill a contiguous array with values of another type, each rounded once (to nearest, ties to even).

    The values must be finite; the result for a NaN is unspecified.

    >>> cast(np.array([1, 1 + 2**-11, 1 + 3 * 2**-11], np.float32), np.empty(3, np.float16)).astype(float)
    array([1.        , 1.        , 1.00195312])
    """
    casting(values, into)()
    return into


def casting(values: Array, into: Array) -> Step:
    """Prepare `cast` of one array into another, to be called whenever the first has new values."""
    if values.dtype == into.dtype:
        return partial(np.copyto, into, values)
    if np.float64 in (values.dtype, into.dtype):
        return partial(_cast_float64, values, into)
    if not values.size:
        return lambda: None
    check_numkong()
    return partial(numkong.astype, _buffer(values), _NAMES[into.dtype], out=_buffer(into))


def rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return values rounded to a stored type, in the type that they have.

    >>> rounded(np.array([1 + 2**-12], np.float32), np.dtype(np.float16))
    array([1.], dtype=float32)
    """
    return cast(cast(values, np.empty(values.shape, dtype)), np.empty_like(values))


def holds(dtype: np.dtype[Any], values: Array) -> bool:
    """Whether values, as float32, are positive and a half type holds each of them exactly."""
    wide = values.astype(np.float32)
    return bool((rounded(wide, dtype) == wide).all() and (wide > 0).all())


def scaling(values: Array, factor: float) -> Step:
    """Prepare the product, in place, of a contiguous array of a half type and a factor (float32).

    Each product is rounded once, on processors where `half_products_exact` is true.
    """
    if not values.size:
        return lambda: None
    # numkong computes values * factor + beta; with any beta but -0 a product of -0 would lose its sign
    buffer = _flat(values)
    return partial(numkong.scale, buffer, alpha=factor, beta=-0.0, out=buffer)


def multiplying(values: Array, factors: Array, factor: float = 1.0) -> Step:
    """Prepare the product, in place, of an array of a half type, an array of factors and one factor (float32).

    All factors are finite and positive. The product of two halves is exact in float32; its product with `factor` is
    rounded to float32 and then to the half type, on processors where `half_products_exact` is true. Unless `factor`
    is 1, the arrays must be contiguous.
    """
    if not values.size:
        return lambda: None
    # both calls add 0 times a finite value of the product's sign, which keeps the sign of a zero; if `out` were another
    # array, numkong's multiply would add 0 times whatever it holds
    if factor == 1:
        return partial(numkong.multiply, _buffer(values), _buffer(factors), out=_buffer(values))
    buffer = _flat(values)
    return partial(numkong.fma, buffer, _flat(factors), buffer, alpha=factor, beta=0.0, out=buffer)


@cache
def half_products_exact(dtype: str) -> bool:
    """Whether numkong's products in a half type are those of float32, rounded once, on this processor.

    The check multiplies each finite value by a factor that both half types hold, by one that neither holds, and by
    both.
    """
    if dtype not in HALVES:
        return False
    held = _finite(dtype)[:-1]  # an odd number: the last few may be computed by other instructions
    wide = cast(held, np.empty(held.shape, np.float32))
    even = np.full_like(held, held[wide == PROBE_EXACT][0])
    found = [held.copy() for _ in range(4)]
    scaling(found[0], PROBE_INEXACT)()
    scaling(found[1], PROBE_EXACT)()
    multiplying(found[2], even)()
    multiplying(found[3], even, PROBE_INEXACT)()
    apart = np.zeros((2, len(held) + 1), held.dtype)  # rows that are not contiguous
    apart[:, 1:] = held
    multiplying(apart[:, 1:], np.stack([even, even]))()
    products = [wide * np.float32(factor) for factor in (PROBE_INEXACT, PROBE_EXACT, PROBE_EXACT)]
    products.append(products[-1] * np.float32(PROBE_INEXACT))
    expected = [cast(product, np.empty_like(held)).tobytes() for product in products]
    found_apart = apart[:, 1:].tobytes() == 2 * expected[2] and not apart[:, 0].any()
    return found_apart and [one.tobytes() for one in found] == expected


@cache
def check_numkong() -> None:
    """Check that numkong, which chooses instructions by the processor, converts as IEEE 754 requires on this one.

    Every finite half value is widened; every value midway between two of them, and its neighbours, is narrowed.

    Raises:
        CheckpointError: a value is converted otherwise.
    """
    for name in HALVES:
        held = _finite(name)
        wide, near, rounded = _expected_fp16(held) if name == "F16" else _expected_bf16(held)
        widened, narrowed = np.empty_like(wide), np.empty(near.shape, held.dtype)
        numkong.astype(_buffer(held), "float32", out=widened)
        numkong.astype(near, _NAMES[held.dtype], out=_buffer(narrowed))
        if widened.tobytes() != wide.tobytes() or narrowed.tobytes() != rounded.tobytes():
            from importlib.metadata import version  # slow to import, and seldom needed

            raise CheckpointError(
                f"numkong {version('numkong')} does not convert {name} as IEEE 754 requires on this processor. Install "
                "another version of numkong: this one cannot be used to grow."
            )


def _finite(name: str) -> Array:
    """Every finite value of a half type."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    held: Array = bits[(bits & 0x7FFF) < INFINITY[name][1]].view(NUMPY_DTYPES[name])
    return held


def _expected_fp16(held: Array) -> tuple[Array, Array, Array]:
    """By numpy: the values as float32; float32 values around the midpoints of neighbours; these in float16."""
    wide = held.astype(np.float32)
    between = ((wide[1:] + wide[:-1]) / 2).view(np.uint32)
    near = np.concatenate([between - 1, between, between + 1]).view(np.float32)
    return wide, near, near.astype(np.float16)


def _expected_bf16(held: Array) -> tuple[Array, Array, Array]:
    """The same for the bits of bfloat16, which are the first half of the bits of float32."""
    wide = held.astype(np.uint32) << 16
    near = wide[:, None] + np.array([0x7FFF, 0x8000, 0x8001], np.uint32)
    rounded = ((near + 0x7FFF + ((near >> 16) & 1)) >> 16).astype(np.uint16)
    return wide.view(np.float32), near.view(np.float32), rounded


def _cast_float64(values: Array, into: Array) -> None:
    if into.dtype == NUMPY_DTYPES["BF16"]:
        cast(_rounded_to_odd(values), into)
    elif values.dtype == NUMPY_DTYPES["BF16"]:
        np.copyto(into, cast(values, np.empty(values.shape, np.float32)))
    else:
        with np.errstate(over="ignore"):
            np.copyto(into, values, casting="same_kind")


def _buffer(array: Array) -> Any:
    """An array as numkong accepts it."""
    if array.dtype != NUMPY_DTYPES["BF16"]:
        return array
    return numkong.from_pointer(array.ctypes.data, array.shape, "bfloat16", strides=array.strides, owner=array)


def _flat(array: Array) -> Any:
    """An array's values in one dimension, as numkong accepts them."""
    assert array.flags.c_contiguous, "a non-contiguous array would be multiplied in a copy"
    return _buffer(array.reshape(-1))


def _rounded_to_odd(values: Array) -> Array:
    """Round float64 to float32 towards zero, with the last bit set where the result is not exact.

    Rounding the result to a type of fewer bits then equals rounding the float64 itself (Boldo and Melquiond 2008,
    "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd").
    """
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    bits = near.view(np.uint32)
    bits -= np.abs(near) > np.abs(values)
    bits |= near != values
    return near


def bytes_view(values: Array) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    array: Any = values if values.size else values.reshape(-1).view(np.uint8)  # memoryview cannot cast (0, n)
    return memoryview(array).cast("B")
