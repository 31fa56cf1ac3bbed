"""Random numbers are addressed by seed, name and element: Philox4x64-10, written out here as published."""

import math
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growth.algebra.arithmetic import amplitude, mean, power, total
from growth.algebra.draws import Draws

MASK = (1 << 64) - 1


def philox(counter, key):
    """Four words of Philox4x64-10 (Salmon et al. 2011, section 3.3), in Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 1 << 64)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], 1 << 64)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return c


PI = "243f6a8885a308d3 13198a2e03707344 a4093822299f31d0 082efa98ec4e6c89 452821e638d01377 be5466cf34e90c6c"
KNOWN = {  # the lines of philox4x64 with 10 rounds in Random123's kat_vectors: counter and key, answer
    " ".join(["0" * 16] * 6): "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b",
    " ".join(["f" * 16] * 6): "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
    PI: "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
}


@pytest.mark.parametrize("given", KNOWN)
def test_the_written_out_generator_gives_the_published_answers(given):
    numbers = [int(word, 16) for word in given.split()]
    assert [f"{word:016x}" for word in philox(numbers[:4], numbers[4:])] == KNOWN[given].split()


def key_of(seed, name):
    digest = blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    return [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")]


names = st.text(min_size=1, max_size=20).filter(lambda name: name.isprintable())


@given(st.integers(0, 2**64 - 1), names, st.integers(0, 2**40), st.integers(0, 11))
@settings(max_examples=100, deadline=None)
def test_words_are_those_of_the_written_out_generator(seed, name, first, count):
    words = Draws(seed, name).words(first, count).tolist()
    key = key_of(seed, name)
    assert words == [philox([n // 4 + 1, 0, 0, 0], key)[n % 4] for n in range(first, first + count)]


@given(st.integers(0, 2**32), st.integers(0, 2**45), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_an_element_does_not_depend_on_what_is_drawn_with_it(seed, first, before, count, after):
    draws = Draws(seed, "a.weight")
    every = draws.elements(first, (before + count + after,))
    np.testing.assert_array_equal(draws.elements(first + before, (count,)), every[before : before + count])


def test_elements_are_16_bits_of_words_scaled():
    words = Draws(7, "a.weight").words(0, 4).tolist()
    bits = [(word >> shift) & 0xFFFF for word in words for shift in (0, 16, 32, 48)]
    signed = [n - (1 << 16) if n >> 15 else n for n in bits]
    step = np.float32(0.02 * np.sqrt(12 / (2**32 - 1)))
    values = np.empty((2, 8), np.float32)
    Draws(7, "a.weight").fill(values, 0, 0.02)
    np.testing.assert_array_equal(values.ravel(), [(np.float32(n) + np.float32(0.5)) * step for n in signed])


def test_integers_and_uniform_numbers_are_those_of_words():
    draws = Draws(3, "x/sample")
    words = draws.words(0, 1000).tolist()
    assert draws.integers(5, 105, 1000).tolist() == [5 + (word * 100 >> 64) for word in words]
    signed = [(word >> 11) - ((word >> 63) << 53) for word in words]
    assert draws.uniform(1000).tolist() == [(n + 0.5) / 2**52 for n in signed]


def test_bytes_of_draws_are_these():
    """Golden: they hold on every processor, with every numpy."""
    draws = Draws(17, "model.layers.0.mlp.up_proj.weight")
    assert draws.elements(6, (5,)).tobytes().hex() == "801b853fd307293f394a943f8709b33e0ac5cb3f"
    assert draws.integers(0, 1000, 6).tolist() == [527, 190, 412, 946, 430, 326]
    assert draws.uniform(2).tobytes().hex() == "2bf4014e2245eebf7ef8ce6ca665d83f"


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_draws_are_even_and_have_mean_0_and_their_deviation(seed):
    """Each within five standard errors; so are the correlation of neighbours and of two names."""
    count = 1 << 18
    draws = Draws(seed, "a")
    values = draws.elements(0, (count,)).astype(np.float64)
    bound = 5 / np.sqrt(count)
    assert abs(values.mean()) < bound
    assert abs((values**2).mean() - 1) < bound
    assert abs((values[1:] * values[:-1]).mean()) < bound
    assert abs((values * Draws(seed, "b").elements(0, (count,))).mean()) < bound
    assert (values != 0).all()
    assert len(np.unique(values)) > 0.95 * 65_536
    integers = np.bincount(draws.integers(0, 10, count), minlength=10)
    assert (np.abs(integers - count / 10) < 5 * np.sqrt(count / 10)).all()
    uniform = draws.uniform(count)
    assert np.abs(uniform).max() < 1
    assert abs(uniform.mean()) < bound
    assert abs((uniform**2).mean() - 1 / 3) < bound


@given(st.lists(st.floats(-1e6, 1e6), min_size=0, max_size=40), st.sampled_from([np.float32, np.float64]))
def test_a_total_is_near_the_exact_sum_and_alike_along_any_axis(numbers, dtype):
    values = np.array(numbers, dtype)
    sum_ = total(values)
    assert abs(float(sum_) - math.fsum(values.tolist())) <= 8 * np.finfo(dtype).eps * np.abs(values).sum()
    both = np.stack([values, values[::-1].copy() * 0])
    assert total(both, 1)[0] == sum_
    assert total(both.T, 0)[0] == sum_
    if numbers:
        assert mean(values) == float(total(values.astype(np.float64)) / len(values))


def test_powers_are_rounded_to_the_nearest():
    assert power(10, -1) == 0.1
    assert amplitude(20) == 0.1
    assert amplitude(40) == 0.01
    assert power(10_000.0, 1.5) == 1e6
    assert power(10_000.0, 2560 / 2048) == 100_000.0
    assert power(2, 0.5) == math.sqrt(2)
