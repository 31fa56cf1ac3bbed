"""Numbers in the types of checkpoints, as numpy arrays, and the conversions between them (numpy and numkong).

numpy has no bfloat16: such arrays hold its bits, as uint16. It converts fp16 one value at a time; numkong converts
both half types with the processor's own instructions, and rounds as IEEE 754 does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numkong
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Step = Callable[[], Any]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
_NAMES: Mapping[np.dtype[Any], Any] = {  # as numkong has them; a dtype's own name is slow to come by
    DTYPES["F16"]: "float16",
    DTYPES["BF16"]: "bfloat16",
    DTYPES["F32"]: "float32",
}
LARGEST: Mapping[str, float] = {
    "F16": float(np.finfo(np.float16).max),
    "BF16": float(2.0**128 - 2.0**120),
    "F32": float(np.finfo(np.float32).max),
    "F64": float(np.finfo(np.float64).max),
}


def cast(values: Array, into: Array) -> Array:
    """Fills a contiguous array with values of another type, each rounded once (to nearest, ties to even).

    >>> cast(np.array([1, 1 + 2**-11, 1 + 3 * 2**-11], np.float32), np.empty(3, np.float16)).astype(float)
    array([1.        , 1.        , 1.00195312])
    """
    casting(values, into)()
    return into


def casting(values: Array, into: Array) -> Step:
    """What `cast` does, to be done again and again with whatever the two arrays hold by then."""
    if values.dtype == into.dtype:
        return partial(np.copyto, into, values)
    if np.float64 in (values.dtype, into.dtype):
        return partial(_cast_float64, values, into)
    if not values.size:
        return lambda: None
    return partial(numkong.astype, _buffer(values), _NAMES[into.dtype], out=_buffer(into))


def _cast_float64(values: Array, into: Array) -> None:
    if into.dtype == DTYPES["BF16"]:
        cast(_rounded_to_odd(values), into)
    elif values.dtype == DTYPES["BF16"]:
        np.copyto(into, cast(values, np.empty(values.shape, np.float32)))
    else:
        with np.errstate(over="ignore"):  # what overflows is looked for, and refused, where values are written
            np.copyto(into, values, casting="same_kind")


def _buffer(array: Array) -> Any:
    """An array as numkong takes it."""
    if array.dtype != DTYPES["BF16"]:
        return array
    return numkong.from_pointer(array.ctypes.data, array.shape, "bfloat16", strides=array.strides, owner=array)


def _rounded_to_odd(values: Array) -> Array:
    """float64 as float32, towards zero and with the last bit set where it is not exact.

    So rounded, it rounds on to a type of fewer bits as the float64 itself does (Boldo and Melquiond 2008).
    """
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    bits = near.view(np.uint32)
    bits -= np.abs(near) > np.abs(values)
    bits |= near != values
    return near


def bytes_view(values: Array) -> memoryview:
    """The bytes of a contiguous array, in its own memory."""
    array: Any = values.reshape(-1).view(np.uint8)
    return memoryview(array)
