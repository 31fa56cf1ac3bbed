"""The laws of section 2.1 and 2.2 of docs/design.md, on numbers alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from growth.algebra.draws import Draws
from growth.algebra.expansion import (
    FRESH,
    Expansion,
    counts,
    layernorm_write,
    rmsnorm_write,
    sampled,
    tiled,
)
from growth.planning.manifest import expansion_from
from tests.support.shares import unequal_shares

sizes = st.integers(1, 40)


@st.composite
def expansions(draw, size=None, most=60):
    size = draw(sizes) if size is None else size
    new = size + draw(st.integers(0, most))
    draws = Draws(draw(st.integers(0, 2**32 - 1)), "units")
    kind = draw(st.sampled_from(["tile", "sample", "pad write", "pad read"]))
    if kind.startswith("pad"):
        return Expansion.padding(size, new, silent=kind.split()[1]).scaled(draw(st.sampled_from([1.0, 1.25])))
    source = tiled(size, new) if kind == "tile" else sampled(size, draws.integers(0, size, new - size))
    shares = draw(st.sampled_from([None, unequal_shares(source, size, draws.seed)]))
    write = draw(st.sampled_from([None, rmsnorm_write(source, size)]))
    return Expansion.copies(size, source, write, shares)


def matrices(e):
    """E (N, n) and R (n, N) of an expansion; fresh units are columns and rows of zeros."""
    into, out = np.zeros((len(e), e.size)), np.zeros((e.size, len(e)))
    for j, i in enumerate(e.source):
        if i != FRESH:
            into[j, i], out[i, j] = e.write[j], e.read[j]
    return into, out


@given(expansions())
def test_what_is_written_is_read_back(e):
    into, out = matrices(e)
    assert np.abs(out @ into - np.eye(e.size)).max() < 1e-12
    assert e.law_error() < 1e-12


@given(st.data())
def test_one_after_the_other_is_the_product_of_the_maps(data):
    first = data.draw(expansions())
    second = data.draw(expansions(size=len(first)))
    both = first.then(second)
    (into1, out1), (into2, out2), (into, out) = map(matrices, (first, second, both))
    np.testing.assert_allclose(into, into2 @ into1, atol=1e-12)
    np.testing.assert_allclose(out, out1 @ out2, atol=1e-12)


@given(st.data())
def test_chaining_is_associative_with_identity_as_unit(data):
    a = data.draw(expansions())
    b = data.draw(expansions(size=len(a)))
    c = data.draw(expansions(size=len(b)))
    left, right = a.then(b).then(c), a.then(b.then(c))
    for vectors in ("source", "write", "read"):
        np.testing.assert_allclose(getattr(left, vectors), getattr(right, vectors), rtol=1e-12)
        np.testing.assert_array_equal(getattr(a.then(Expansion.identity(len(a))), vectors), getattr(a, vectors))
        np.testing.assert_array_equal(getattr(Expansion.identity(a.size).then(a), vectors), getattr(a, vectors))


small = st.integers(1, 6).flatmap(lambda size: expansions(size=size, most=8))


@given(small, small)
def test_a_composite_axis_is_the_kronecker_product(outer, inner):
    (into1, out1), (into2, out2), (into, out) = map(matrices, (outer, inner, outer.times(inner)))
    np.testing.assert_allclose(into, np.kron(into1, into2), atol=1e-12)
    np.testing.assert_allclose(out, np.kron(out1, out2), atol=1e-12)


@given(sizes, st.integers(0, 150), st.integers(0, 2**32 - 1), st.sampled_from(["tile", "sample"]), st.integers(0, 8))
def test_a_layernorm_sees_every_unit_with_its_old_mean_and_weight(size, extra, seed, init, fixed):
    fixed = min(fixed, size - 1)
    units = Draws(seed, "units").integers(fixed, size, extra)
    source = tiled(size, size + extra, fixed=fixed, pairs=True) if init == "tile" else sampled(size, units, pairs=True)
    write = layernorm_write(source, size)
    e = Expansion.copies(size, source, write)
    assert len(e) == size + extra
    assert np.ptp(e.per_unit(write)) < 1e-9
    assert np.ptp(e.per_unit(write**2)) < 1e-9
    assert (write[source != FRESH] != 0).all(), "no copy is silent"
    assert e.law_error() < 1e-9
    assert fixed == 0 or (counts(source, size)[:fixed] == 1).all()


@given(sizes, st.integers(0, 150), st.integers(0, 2**32 - 1))
def test_an_rmsnorm_sees_every_unit_with_its_old_weight(size, extra, seed):
    source = sampled(size, Draws(seed, "units").integers(0, size, extra))
    write = rmsnorm_write(source, size)
    e = Expansion.copies(size, source, write)
    assert np.ptp(e.per_unit(write**2)) < 1e-9
    assert e.law_error() < 1e-9


@given(expansions())
def test_runs_describe_the_whole_expansion(e):
    again = expansion_from({"before": e.size, "after": len(e), "runs": e.runs()})
    for vectors in ("source", "write", "read"):
        np.testing.assert_array_equal(getattr(again, vectors), getattr(e, vectors))


def test_tiles_are_few_runs():
    e = Expansion.copies(2048, tiled(2048, 2560))
    assert len(e.runs()) <= 3


def test_expansions_are_frozen():
    with pytest.raises(ValueError, match="read-only"):
        Expansion.identity(3).write[0] = 2
