"""Blocks of rows are gathered and multiplied as their dimensions say: each value in float32, rounded once."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from growth.architecture import Weight
from growth.casting import DTYPES, cast
from growth.checkpoint import TensorInfo
from growth.columns import Workspace
from growth.execution import Grower, Memory, Statistics
from growth.expansion import FRESH
from growth.row import Dimension, Row


@st.composite
def dimensions(draw):
    """Runs of old indices, overlapping and fresh ones among them, each with coefficients that stay, agree or differ."""
    size = draw(st.integers(1, 90))
    source, scale = [], []
    for _ in range(draw(st.integers(1, 6))):
        length = draw(st.integers(1, size))
        first = draw(st.one_of(st.just(FRESH), st.integers(0, size - length)))
        source.append(np.full(length, FRESH) if first == FRESH else first + np.arange(length))
        kind = draw(st.sampled_from(["stays", "even", "shares"]))
        shares = np.random.default_rng(length).uniform(0.1, 2, length)
        scale.append({"stays": np.ones(length), "even": np.full(length, 0.75), "shares": shares}[kind])
    source, scale = np.concatenate(source), np.concatenate(scale)
    made = Dimension(size, source, scale, np.maximum(source, 0), np.ones(len(source)))
    outer = draw(st.integers(1, 20))  # heads of alike channels
    each = np.arange(outer)
    return Dimension(outer, each, np.ones(outer), each, np.ones(outer)).times(made)


def is_fresh(*dimensions):
    """Where any index of a value is fresh."""
    fresh = np.zeros([len(dimension) for dimension in dimensions], np.bool_)
    for axis, dimension in enumerate(dimensions):
        fresh |= dimension.fresh.reshape([-1 if n == axis else 1 for n in range(len(dimensions))])
    return fresh


@pytest.mark.parametrize("many", [False, True])  # runs of rows that have one coefficient, however short they are
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@given(rows=dimensions(), columns=dimensions(), axis=st.integers(1, 2), after=st.integers(1, 3), seed=st.integers(0, 9))
def test_any_block_is_gathered_and_multiplied(dtype, many, rows, columns, axis, after, seed):
    one, inner = (Dimension(n, np.arange(n), np.ones(n), np.arange(n), np.ones(n)) for n in (2, after))
    rows, columns = (replace(d, scale=np.where(d.fresh, 0, d.scale)) for d in (rows, columns))  # silent where fresh
    every = (rows, *[one] * (axis - 1), columns, inner)
    source = TensorInfo("weight", dtype, tuple(dimension.size for dimension in every))
    generator = np.random.default_rng(seed)
    wide = generator.standard_normal(source.shape).astype(np.float32)
    old = cast(wide, np.empty(wide.shape, DTYPES[dtype]))
    wide = cast(old, wide)
    for n, dimension in enumerate(every):
        wide = np.take(wide, np.maximum(dimension.source, 0), n)
    # a coefficient that all rows have is multiplied with the columns'
    factors = [dimension.scale for dimension in every]
    if (rows.scale == rows.scale[0]).all():
        factors[0], factors[axis] = np.ones(len(rows)), factors[axis] * rows.scale[0]
    for n in (axis, 0):
        wide = wide * factors[n].astype(np.float32).reshape([-1 if n == m else 1 for m in range(wide.ndim)])
    wide[is_fresh(*every)] = 0
    expected = cast(wide, np.empty(wide.shape, DTYPES[dtype]))
    row = Row("weight", source, dtype, Weight("weight", ()), every, (None,) * len(every), False, False)
    grower = Grower(row, Memory({"weight": old}), 0, Statistics(), Workspace())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("growth.execution.LONG_BYTES", 0 if many else 4 << 10)
        edges = sorted({0, *generator.integers(0, len(rows) + 1, 3).tolist(), len(rows)})
        for start, stop in pairwise(edges):
            found = grower.rows(start, stop)
            np.testing.assert_array_equal(
                found.view(f"u{found.itemsize}"), expected[start:stop].view(f"u{found.itemsize}")
            )
