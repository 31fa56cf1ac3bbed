"""Columns are gathered and multiplied as their dimension says: each value in float32, rounded once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from growth.casting import DTYPES, cast
from growth.execution import Columns, Workspace
from growth.expansion import FRESH
from growth.row import Dimension


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


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@given(dimension=dimensions(), axis=st.integers(1, 3), after=st.integers(1, 3), blocks=st.lists(st.integers(1, 4)))
def test_columns_are_gathered_and_multiplied_in_any_block(dtype, dimension, axis, after, blocks):
    columns, workspace = Columns(axis, dimension, np.dtype(np.float32)), Workspace()
    scale = np.where(dimension.fresh, 0, dimension.scale).astype(np.float32)
    for number, rows in enumerate([3, *blocks, 3]):  # in memory that is used again
        shape = (rows, *[2] * (axis - 1), dimension.size, after)
        old = cast(
            np.random.default_rng(number).standard_normal(shape).astype(np.float32),
            workspace.take("stored", shape, DTYPES[dtype]),
        )
        wide = cast(old, np.empty(shape, np.float32))
        found = columns.gathered(old, workspace)
        expected = np.take(wide, np.maximum(dimension.source, 0), axis) * scale[:, None]
        rounded = cast(expected, np.empty(expected.shape, DTYPES[dtype]))
        np.testing.assert_array_equal(cast(found, np.empty(found.shape, np.float32)), cast(rounded, expected))
