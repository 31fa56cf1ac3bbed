"""Blocks of rows are gathered and multiplied as their dimensions say: each value in float32, rounded once."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from growth.algebra.expansion import FRESH
from growth.architectures.base import Weight
from growth.arrays.buffers import KEPT, Workspace
from growth.arrays.casting import NUMPY_DTYPES, cast, half_products_exact
from growth.arrays.tensor_info import TensorInfo
from growth.engine.grow_tensor import Grower, MemorySource, ignore_overflow, measure
from growth.engine.kernel import KernelCache, KernelSpec
from growth.planning.tensor_map import DimensionMap, MeanCorrection, TensorMap
from tests.support.selection import examples


@st.composite
def dimensions(draw, largest, heads):
    """Runs of old indices, overlapping and fresh ones among them, each with coefficients that stay, agree or differ."""
    size = draw(st.integers(1, largest))
    source, scale = [], []
    for _ in range(draw(st.integers(1, 6))):
        length = draw(st.integers(1, size))
        first = draw(st.one_of(st.just(FRESH), st.integers(0, size - length)))
        source.append(np.full(length, FRESH) if first == FRESH else first + np.arange(length))
        kind = draw(st.sampled_from(["stays", "even", "shares", "signs", "halves", "silent"]))
        shares = np.random.default_rng(length).uniform(0.1, 2, length)
        made = {"stays": 1.0, "even": 0.75, "shares": shares, "silent": 0.0}
        made |= {"signs": np.resize([0.5, -0.5], length), "halves": np.resize([0.5, 1], length)}  # scattered, exact
        scale.append(np.broadcast_to(made[kind], length))
    source, scale = np.concatenate(source), np.concatenate(scale)
    whole = DimensionMap(size, source, scale)
    return identity(draw(st.integers(1, heads))).times(whole)  # heads of alike channels


def is_fresh(*dimensions):
    """Where any index of a value is fresh."""
    fresh = np.zeros([len(dimension) for dimension in dimensions], np.bool_)
    for axis, dimension in enumerate(dimensions):
        fresh |= dimension.fresh.reshape([-1 if n == axis else 1 for n in range(len(dimensions))])
    return fresh


def identity(size):
    """The dimension that changes nothing."""
    each = np.arange(size)
    return DimensionMap(size, each, np.ones(size))


def grown(tensor_map, old, edges):
    """An output's rows in blocks between some edges, their bits."""
    grower = Grower(
        tensor_map, MemorySource({"weight": old}), 0, measure(tensor_map, MemorySource({"weight": old})), Workspace()
    )
    with ignore_overflow():
        blocks = [grower.rows(start, stop).copy() for start, stop in pairwise(edges)]
    return np.concatenate(blocks).view(f"u{old.itemsize}")


def tensor_map_of(dimensions, dtype):
    """A tensor map that grows a source of a type by some dimensions and adds no random values."""
    source = TensorInfo("weight", dtype, tuple(dimension.size for dimension in dimensions))
    ignore_overflow = tuple(replace(d, scale=np.where(d.fresh, 0, d.scale)) for d in dimensions)
    return TensorMap("weight", source, dtype, Weight("weight", ()), ignore_overflow, new_layer=False, zero=False)


def stored(tensor_map, seed):
    """Random values of a tensor map's source, as they are stored and as float32."""
    wide = np.random.default_rng(seed).standard_normal(tensor_map.source.shape).astype(np.float32)
    wide[wide < -1] = -0.0
    old = cast(wide, np.empty(wide.shape, NUMPY_DTYPES[tensor_map.dtype]))
    return old, cast(old, wide)


@pytest.mark.parametrize(("many", "halves"), [(False, True), (True, True), (False, False)])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@examples(40, 100)
@given(
    rows=dimensions(12, 3), columns=dimensions(90, 20), axis=st.integers(1, 2), after=st.integers(1, 2), data=st.data()
)
def test_any_block_is_gathered_and_multiplied(dtype, many, halves, rows, columns, axis, after, data):
    """However many coefficients rows have, and on a processor too whose products of halves are not used."""
    tensor_map = tensor_map_of((rows, *[identity(2)] * (axis - 1), columns, identity(after)), dtype)
    old, wide = stored(tensor_map, data.draw(st.integers(0, 9)))
    for n, dimension in enumerate(tensor_map.dimensions):
        wide = np.take(wide, np.maximum(dimension.source, 0), n)
    wide[is_fresh(*tensor_map.dimensions)] = 0
    first, *others = tensor_map.dimensions
    factors = [first.scale, *(np.where(dimension.fresh, 1, dimension.scale) for dimension in others)]
    held = cast(factors[axis].astype(np.float32), np.empty(len(columns), NUMPY_DTYPES[dtype]))
    exact = (cast(held, np.empty(len(columns), np.float32)) == factors[axis]).all() and (factors[axis] > 0).all()
    if (first.scale == first.scale[0]).all() and not (dtype != "F32" and exact):  # multiplied with the columns'
        factors[0] = np.ones(len(first))
        factors[axis] = np.where(tensor_map.dimensions[axis].fresh, 1, factors[axis] * first.scale[0])
    for n in (axis, 0):
        factor = (factors[n] + 0.0).astype(np.float32)  # no coefficient is -0
        wide = wide * factor.reshape([-1 if n == m else 1 for m in range(wide.ndim)])
    expected = cast(wide, np.empty(wide.shape, NUMPY_DTYPES[dtype]))
    edges = sorted({0, *data.draw(st.lists(st.integers(0, len(rows)), max_size=3)), len(rows)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("growth.engine.kernel.BAND_BYTES", 0 if many else 4 << 10)
        if not halves:
            patch.setattr("growth.engine.kernel.half_products_exact", lambda dtype: False)
        np.testing.assert_array_equal(grown(tensor_map, old, edges), expected.view(f"u{old.itemsize}"))


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("along_rows", [False, True])
@examples(40, 100)
@given(corrected=dimensions(90, 3), other=dimensions(90, 3), data=st.data())
def test_means_are_added_in_any_block(dtype, along_rows, corrected, other, data):
    """In float64 the plain formula, but for rounding; in stored bits the same however rows are divided."""
    some = data.draw(st.lists(st.sampled_from([0, 0, 0.25, -0.5]), min_size=3, max_size=3))
    coefficient = np.where(corrected.fresh, 0.0, np.resize(np.repeat(some, 40), len(corrected)))
    correction = MeanCorrection(1, corrected.size, 1, np.zeros(len(corrected), np.int64), coefficient)
    corrected = replace(corrected, mean_correction=correction)
    tensor_map = tensor_map_of((corrected, other) if along_rows else (other, corrected), dtype)
    old, wide = stored(tensor_map, data.draw(st.integers(0, 9)))
    exact, axis = wide.astype(np.float64), 0 if along_rows else 1
    means = exact.mean(axis, keepdims=True)
    here, there = (d.scale for d in (tensor_map.dimensions[axis], tensor_map.dimensions[1 - axis]))
    factors, shares = (np.moveaxis(v[:, None], 0, n) for v, n in ((here, axis), (coefficient, axis)))
    grown_along = np.take(exact, np.maximum(corrected.source, 0), axis) * factors + means * shares
    across = np.take(grown_along, np.maximum(other.source, 0), 1 - axis) * np.moveaxis(there[:, None], 0, 1 - axis)
    across[is_fresh(*tensor_map.dimensions)] = 0
    length = tensor_map.shape[0]
    whole = grown(tensor_map, old, [0, length])
    edges = sorted({0, *data.draw(st.lists(st.integers(0, length), max_size=3)), length})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "growth.engine.gather_scale.MANY_RUNS", data.draw(st.sampled_from([0, 1, 64]))
        )  # one by one, if so many
        patch.setattr(
            "growth.engine.kernel.half_products_exact",
            data.draw(st.sampled_from([lambda dtype: False, half_products_exact])),
        )
        np.testing.assert_array_equal(grown(tensor_map, old, edges), whole)
    found = cast(whole.view(NUMPY_DTYPES[dtype]), np.empty(whole.shape, np.float32))
    roundoff = {"F16": 2.0**-10, "BF16": 2.0**-7, "F32": 2.0**-20}[dtype]
    np.testing.assert_allclose(found, across, rtol=roundoff, atol=roundoff * 1e-1)


def test_rows_that_hold_a_mean_leave_the_others_to_exact_products():
    """Whatever their own coefficient is: they are computed wide."""
    scale, coefficient = np.repeat([0.9, -0.3], [48, 16]), np.repeat([0, 0.5], [48, 16])
    rows = replace(
        identity(64), scale=scale, mean_correction=MeanCorrection(1, 64, 1, np.zeros(64, np.int64), coefficient)
    )
    columns = replace(identity(1024), scale=np.resize([0.25, 0.75], 1024))
    tensor_map = tensor_map_of((rows, columns), "F16")
    spec = KernelSpec.of(tensor_map)
    assert spec.rows_in_float32 == [(48, 64)]
    assert spec.half.exact is not None
    old, _ = stored(tensor_map, 0)
    found = grown(tensor_map, old, [0, 20, 64])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("growth.engine.kernel.half_products_exact", lambda dtype: False)
        np.testing.assert_array_equal(grown(tensor_map, old, [0, 64]), found)


def test_blocks_that_differ_in_their_old_rows_alone_share_a_program():
    source = np.concatenate([np.arange(40), np.arange(16, 32), np.full(8, FRESH)])
    scale = np.where(source == FRESH, 0, np.repeat([0.9, 0.7, 0.9], [24, 16, 24]))
    rows = DimensionMap(40, source, scale)
    tensor_map = tensor_map_of((rows, replace(identity(600), scale=np.resize([0.5, 0.3], 600))), "F16")
    old, _ = stored(tensor_map, 0)
    grower = Grower(
        tensor_map, MemorySource({"weight": old}), 0, measure(tensor_map, MemorySource({"weight": old})), Workspace()
    )
    programs = KernelCache(grower.spec, (600,), Workspace())
    blocks = [(start, start + 8) for start in range(0, 64, 8)]
    made = [programs.of(*block) for block in blocks]
    assert [program is made[0][0] for program, _ in made] == [True, True, True, False, False, True, True, False]
    assert [shift for _, shift in made] == [0, 8, 16, 0, 8, 16, 24, 0]
    assert programs.of(12, 28)[0] is not programs.of(28, 44)[0]
    np.testing.assert_array_equal(grown(tensor_map, old, range(0, 72, 8)), grown(tensor_map, old, [0, 64]))


def test_tensors_that_are_made_alike_take_turns_in_one_memory():
    """Each keeps its own means, and values are those of a memory of its own."""
    each = np.arange(8)
    correction = MeanCorrection(1, 8, 1, np.zeros(8, np.int64), np.full(8, 0.5))
    tensor_map = tensor_map_of(
        (replace(identity(8), source=each, scale=np.full(8, 0.75), mean_correction=correction), identity(40)), "F16"
    )
    olds = [stored(tensor_map, seed)[0] for seed in range(2)]
    memory = Workspace()
    with ignore_overflow():
        growers = [
            Grower(
                tensor_map, MemorySource({"weight": old}), 0, measure(tensor_map, MemorySource({"weight": old})), memory
            )
            for old in olds
        ]
        parts = [[grower.rows(start, start + 4).copy() for grower in growers] for start in (0, 4)]
    assert growers[0].spec is growers[1].spec
    for old, blocks in zip(olds, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(blocks).view(np.uint16), grown(tensor_map, old, [0, 8]))


def test_a_thread_forgets_what_it_used_long_ago():
    memory, made = Workspace(), []
    for key in [*range(KEPT), 0, KEPT, 0, 1]:  # 0 was used again before one too many came
        memory.once(key, lambda key=key: made.append(key) or key)
    assert made == [*range(KEPT), KEPT, 1]


@given(times=st.integers(1, 6), size=st.integers(1, 3), length=st.integers(1, 3), data=st.data())
@examples(150, 500)
def test_a_dimension_is_what_it_repeats(times, size, length, data):
    """Whatever its indices are: one that copies the last index before its share is not taken for a fresh one."""
    source = data.draw(st.lists(st.integers(-1, times * size - 1), min_size=times * length, max_size=times * length))
    if data.draw(st.booleans()):  # alike in each share, whole or shifted by one
        one, shift = np.array(source[:length]) % size, data.draw(st.integers(0, 1))
        source = (np.arange(times)[:, None] * size + one - shift).ravel()
    source = np.array(source)
    whole = DimensionMap(times * size, source, np.ones(len(source)))
    found, one = whole.as_repeats
    again = identity(found).times(one)
    assert (again.size, again.source.tolist()) == (whole.size, source.tolist())
