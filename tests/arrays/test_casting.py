"""Conversions between stored types round once, as IEEE 754 does: to nearest, ties to even."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from growth import CheckpointError
from growth.arrays import casting
from growth.arrays.casting import (
    INFINITY,
    LARGEST,
    NUMPY_DTYPES,
    cast,
    check_numkong,
    half_products_exact,
    multiplying,
    scaling,
)
from growth.arrays.torch_interop import as_array, as_tensor
from growth.checkpoints.tensor_reader import max_magnitude_bits

HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}


def cast_to(values, name):
    return cast(values, np.empty(values.shape, NUMPY_DTYPES[name]))


def every(half):
    """Every finite value of a half type."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = torch.from_numpy(bits).view(HALVES[half])
    return as_array(values[values.isfinite()])


@pytest.mark.parametrize("wide", ["F32", "F64"])
@pytest.mark.parametrize("half", HALVES)
def test_every_half_value_survives_the_way_there_and_back(half, wide):
    held = every(half)
    widened = cast_to(held, wide)
    assert np.array_equal(widened, as_tensor(held, half).to(torch.float64).numpy())
    assert np.array_equal(cast_to(widened, half).view(np.uint16), held.view(np.uint16))


def nearest(exact, half):
    """The values of a half type nearest to float64s, ties to even, found by arithmetic in float64."""
    info = torch.finfo(HALVES[half])
    exponent = np.maximum(np.frexp(exact)[1] - 1, np.frexp(info.tiny)[1] - 1)
    unit = np.ldexp(info.eps, exponent)
    rounded = np.rint(exact / unit) * unit
    return np.where(np.abs(rounded) > LARGEST[half], np.copysign(np.inf, exact), rounded)


@pytest.mark.parametrize("wide", [np.float32, np.float64])
@pytest.mark.parametrize("half", HALVES)
@given(data=st.data())
def test_a_value_is_rounded_once(half, wide, data):
    """Near what lies between two neighbours above all, where rounding twice goes wrong."""
    seed = data.draw(st.integers(0, 2**32))
    random = np.random.default_rng(seed)
    held = as_tensor(every(half), half).double().numpy()
    held.sort()
    at = random.integers(0, len(held) - 1, 1000)
    between = (held[at] + held[at + 1]) / 2
    nudged = between * (1 + random.choice([0, 1, -1], 1000) * 2.0 ** -random.integers(10, 53, 1000))
    values = nudged.astype(wide)
    found = as_tensor(cast_to(values, half), half).double().numpy()
    assert np.array_equal(found, nearest(values.astype(np.float64), half))


@pytest.mark.parametrize("half", HALVES)
def test_what_is_too_large_is_infinite_and_signs_stay(half):
    values = np.array([LARGEST[half] * 1.01, -LARGEST[half] * 1.01, -0.0], np.float32 if half == "F16" else np.float64)
    found = as_tensor(cast_to(values, half), half)
    assert torch.isposinf(found[0])
    assert torch.isneginf(found[1])
    assert found[2] == 0
    assert torch.signbit(found[2])


@pytest.mark.parametrize("half", HALVES)
def test_strides_and_empty_arrays_are_taken(half):
    held = every(half)[: 240 * 256].reshape(240, 256)
    for part in (held[:, ::3], held[::2, 10:20], held.T, held[:0]):
        expected = as_tensor(np.ascontiguousarray(part), half).float().numpy()
        assert np.array_equal(cast_to(part, "F32"), expected)


@pytest.mark.parametrize("wrong", ["float32", "float16", "bfloat16"])
def test_a_processor_on_which_numkong_rounds_otherwise_is_refused(wrong, monkeypatch):
    real = casting.numkong.astype

    def astype(values, name, out):
        real(values, name, out=out)
        if name == wrong:
            np.asarray(out).reshape(-1).view(np.uint16)[12345] ^= 1

    monkeypatch.setattr(casting.numkong, "astype", astype)
    check_numkong.cache_clear()
    with pytest.raises(CheckpointError, match="IEEE 754"):
        cast_to(np.ones(3, np.float32), "F16")
    monkeypatch.undo()
    check_numkong()


@pytest.mark.parametrize("half", HALVES)
@given(factor=st.floats(-4, 4, width=32), seed=st.integers(0, 2**32))
def test_a_product_in_half_is_that_of_float32_rounded_once(half, factor, seed):
    held = every(half)
    random = np.random.default_rng(seed)
    wide = cast_to(held, "F32")
    scaled = held.copy()
    scaling(scaled, factor)()
    with np.errstate(over="ignore"):
        assert scaled.tobytes() == cast_to(wide * np.float32(factor), half).tobytes()
    factors = random.permutation(held[(wide > 0) & (wide <= 1)])[: len(held)]
    multiplied = held[: len(factors)].copy()
    multiplying(multiplied, factors)()
    expected = wide[: len(factors)] * cast_to(factors, "F32")
    assert multiplied.tobytes() == cast_to(expected, half).tobytes()
    multiplied = held[: len(factors)].copy()
    positive = abs(factor) or 1
    multiplying(multiplied, factors, positive)()
    with np.errstate(over="ignore"):
        assert multiplied.tobytes() == cast_to(expected * np.float32(positive), half).tobytes()


def test_what_would_be_multiplied_in_a_copy_is_refused():
    with pytest.raises(AssertionError, match="contiguous"):
        scaling(np.ones((4, 4), np.float16)[:, :2], 0.5)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", ["scale", "multiply", "fma"])
def test_products_are_not_made_in_half_where_they_are_other_ones(name, half, monkeypatch):
    assert half_products_exact(half)
    assert not half_products_exact("F32")
    real = getattr(casting.numkong, name)

    def wrong(*values, out, **more):
        real(*values, out=out, **more)
        np.asarray(out).reshape(-1).view(np.uint16)[12345] ^= 1

    monkeypatch.setattr(casting.numkong, name, wrong)
    half_products_exact.cache_clear()
    assert not half_products_exact(half)
    monkeypatch.undo()
    half_products_exact.cache_clear()
    assert half_products_exact(half)


@pytest.mark.parametrize("dtype", INFINITY)
@given(data=st.data())
def test_the_largest_bits_are_infinitys_or_more_only_where_a_value_is_not_finite(dtype, data):
    unsigned, infinity = INFINITY[dtype]
    sign = 1 << (8 * np.dtype(unsigned).itemsize - 1)
    odd = st.sampled_from(
        [0, sign, infinity, infinity - 1, infinity + 1, sign + infinity, sign + infinity + 1, infinity >> 1]
    )
    values = data.draw(st.lists(odd | st.integers(0, infinity - 1) | st.integers(0, 2 * sign - 1), max_size=9))
    without_sign = [value % sign for value in values]
    found = max_magnitude_bits(memoryview(np.array(values, unsigned)).cast("B"), dtype)
    assert found >= max(without_sign, default=0)
    assert (found < infinity) == all(value < infinity for value in without_sign)
