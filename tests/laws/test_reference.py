"""The fast path gives the bits that the reference defines: for every family, operator and type, and any geometry."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from growth import GrowthError
from growth.algebra.expansion import FRESH, ordinal
from growth.algebra.split import Split
from growth.architectures.base import Weight
from growth.arrays.buffers import Workspace
from growth.arrays.casting import NUMPY_DTYPES
from growth.arrays.tensor_info import TensorInfo
from growth.engine import reference
from growth.engine.grow_tensor import Grower, MemorySource, ignore_overflow, measure
from growth.operators import break_symmetry, chain, deepen, reuse, upcycle, widen
from growth.planning.plan import make_plan
from growth.planning.prepare import apply_recipe
from growth.planning.tensor_map import DimensionMap, MeanCorrection, Replica, TensorMap
from tests.support.families import all_cases, special, table
from tests.support.selection import examples, one_of_each
from tests.support.values import random_values

TYPES = list(NUMPY_DTYPES)
WIDER = {"residual": 16, "ffn": 20, "heads": 4, "queries": 1, "head_dim": 2, "vocab": 9, "experts": 4, "positions": 7}
WIDER |= {"inner": 24, "state": 2, "dt_rank": 2, "conv_kernel": 2, "ssm_groups": 1, "ssm_heads": 1, "ssm_head_dim": 8}
INITS = ["tile", "sample", "pad"]


def fast(tensor_map, old, seed, edges):
    """An output tensor, grown in blocks of rows between some edges."""
    source = MemorySource({tensor_map.source.name: old})
    grower = Grower(tensor_map, source, seed, measure(tensor_map, source), Workspace())
    with ignore_overflow():
        blocks = [grower.rows(start, stop).copy() for start, stop in pairwise(edges) if start < stop]
    return np.concatenate(blocks) if tensor_map.shape else blocks[0].reshape(())  # a scalar is one row


def check(tensor_map, old, seed, cuts=()):
    """Holds the fast path to the reference, bit for bit."""
    expected = reference.grow(tensor_map, old, seed)
    rows = len(tensor_map.dimensions[0])
    edges = sorted({0, *(cut % rows for cut in cuts), rows})
    found = fast(tensor_map, old, seed, edges)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    bits = f"u{found.itemsize}"
    np.testing.assert_array_equal(found.view(bits), expected.view(bits), f"{tensor_map.target}: {tensor_map.what}")


# ------------------------------------------------- every family and operator


@st.composite
def operators(draw, case, axes):
    """One operator with arguments that it may have; axes that a case grows together are grown together."""
    kind = draw(st.sampled_from(["widen", "widen", "widen", "deepen", "random", "mask", "reuse", "upcycle"]))
    if kind == "widen":
        axis = draw(st.sampled_from(sorted(WIDER.keys() & axes)))
        if axis in case.steps:
            return chain(*(widen(name, to=to, init=draw(st.sampled_from(INITS))) for name, to in case.steps[axis]))
        inits = ["mean", "random", "tile", "sample"] if axis == "vocab" else INITS
        size = axes[axis].size * (axes["queries"].size if axis == "heads" else 1)
        to = draw(st.sampled_from([2 * size, size + WIDER[axis], 3 * size]))
        inner = axis in ("residual", "ffn", "heads", "queries")
        shares = draw(st.sampled_from(["equal", "random", "mask", "first"])) if inner else "equal"
        norm_eps = draw(st.sampled_from(["stock", "rescale"])) if axis == "residual" else "stock"
        return widen(axis, to=to, init=draw(st.sampled_from(inits)), shares=shares, norm_eps=norm_eps)
    if kind == "deepen":
        order = draw(st.sampled_from(["interleave", "stack", "prepend"]))
        return deepen(factor=2, order=order, init=draw(st.sampled_from(["identity", "copy", "fresh", "random"])))
    if kind == "reuse":
        to = {axis: axes[axis].size + WIDER[axis] for axis in ("residual", "ffn") if axis in axes}
        return reuse(to=to, method=draw(st.sampled_from(["tile", "submatrix"])), fan_in=draw(st.booleans()))
    if kind == "upcycle":
        granularity, shared, reinit = (draw(st.sampled_from(some)) for some in ([1, 2], [0, 0, 0.5], [0, 0.5]))
        return upcycle(experts=4, top_k=2, granularity=granularity, shared=shared, reinit=reinit)
    return break_symmetry(method=kind)


def steps_that_apply(source, found, seed):
    """Those operators in a row that the family and the steps before them allow."""
    steps = []
    for operator in found:
        try:
            apply_recipe(chain(*steps, operator), source, seed)
        except GrowthError:
            continue
        steps.append(operator)
    return steps


@pytest.mark.parametrize("case", one_of_each([(case,) for case in all_cases()], special, ids=lambda case: case.name))
@given(data=st.data())
@examples(2, 3, suppress_health_check=[HealthCheck.too_slow])
def test_every_family_and_operator(case, data):
    source = table(case)
    dtype, seed = data.draw(st.sampled_from(TYPES)), data.draw(st.integers(0, 3))
    steps = steps_that_apply(source, data.draw(st.lists(operators(case, source.axes), min_size=1, max_size=5)), seed)
    headers = {name: TensorInfo(name, dtype, shape) for name, shape in source.shapes().items()}
    grown_to = data.draw(st.sampled_from([None, *TYPES]))
    try:
        plan = make_plan(source, apply_recipe(chain(*steps), source, seed), headers, dtype=grown_to, seed=seed)
    except GrowthError:  # some are refused when all of the steps are known
        return
    for tensor_map in plan.tensors:
        check(tensor_map, random_values(tensor_map.source, seed), seed, cuts=(1, 5))


# ------------------------------------------------- any geometry


@st.composite
def axis_maps(draw, largest=40):
    """The map of one axis: runs of old and fresh indices, each with coefficients that stay, agree or differ."""
    size = draw(st.integers(1, largest))
    source, scale = [], []
    for _ in range(draw(st.integers(1, 5))):
        length = draw(st.integers(1, size))
        first = draw(st.one_of(st.just(FRESH), st.integers(0, size - length)))
        source.append(np.full(length, FRESH) if first == FRESH else first + np.arange(length))
        kind = draw(st.sampled_from(["one", "even", "shares", "signs", "halves", "silent"]))
        made = {
            "one": 1.0,
            "even": 0.75,
            "silent": 0.0,
            "shares": np.random.default_rng(length).uniform(0.1, 2, length),
        }
        made |= {"signs": np.resize([0.5, -0.5], length), "halves": np.resize([0.5, 1], length)}
        scale.append(np.broadcast_to(made[kind], length))
    source, scale = np.concatenate(source), np.concatenate(scale)
    whole = DimensionMap(size, source, scale, split=draw(splits(source)))
    heads = draw(st.integers(1, 3))
    return DimensionMap(heads, np.arange(heads), np.ones(heads)).times(whole)


def splits(source):
    """No split, or one that numbers the copies of each unit as parts."""
    kept, parts = source != FRESH, np.ones(len(source), np.int64)
    parts[kept] = np.bincount(source[kept])[source[kept]]
    part = np.where(kept, ordinal(source), 0)
    whole = np.maximum(source, 0)
    return st.sampled_from([None, None, Split("random", part, parts, whole), Split("mask", part, parts, whole)])


def with_mean_correction(draw, one):
    """The same with a correction of the mean, over a space that may have axes on either side of it."""
    outer = draw(st.sampled_from([n for n in range(1, 4) if one.size % n == 0]))
    inner = draw(st.sampled_from([n for n in range(1, 4) if one.size // outer % n == 0]))
    keys = np.random.default_rng(one.size).integers(0, outer * inner, len(one))
    some = draw(st.lists(st.sampled_from([0, 0, 0.25, -0.3]), min_size=3, max_size=3))
    coefficient = np.where(one.fresh, 0.0, np.resize(np.repeat(some, 7), len(one)))
    return replace(one, mean_correction=MeanCorrection(outer, one.size // outer // inner, inner, keys, coefficient))


@st.composite
def tensor_maps(draw):
    """A tensor map of any geometry, with whatever may stand beside copies."""
    ndim = draw(st.integers(1, 3))
    dimensions = [draw(axis_maps(40 if ndim < 3 else 12)) for _ in range(ndim)]
    if draw(st.booleans()):
        corrected = draw(st.integers(0, ndim - 1))
        dimensions[corrected] = with_mean_correction(draw, dimensions[corrected])
    dtype = draw(st.sampled_from(TYPES))
    source = TensorInfo("weight", dtype, tuple(one.size for one in dimensions))
    kind = draw(st.sampled_from(["copies", "copies", "replica", "zero", "random", "gain", *["bias"] * (ndim == 1)]))
    options = {
        "replica": {"replica": Replica(Split("random", np.array([1]), np.array([3]), np.array([0])), "other", 3)},
        "random": {"init_std": 0.02},
        "gain": {"averaged": True},
        "bias": {"constant": -30.0},
    }
    offset = 1.0 if kind in ("gain", "zero") and ndim == 1 else 0.0
    grown = draw(st.sampled_from([dtype, *TYPES]))
    weight = Weight("weight", (), offset=offset)
    return TensorMap("weight", source, grown, weight, tuple(dimensions), False, kind == "zero", **options.get(kind, {}))


@given(tensor_map=tensor_maps(), cuts=st.lists(st.integers(1, 200), max_size=3), seed=st.integers(0, 9))
@examples(150, 500, suppress_health_check=[HealthCheck.too_slow])
def test_any_geometry(tensor_map, cuts, seed):
    check(tensor_map, random_values(tensor_map.source, seed), seed, cuts)


@pytest.mark.parametrize("kind", ["random", "mask"])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_parts_of_a_weight_do_not_depend_on_where_rows_are_cut(kind, dtype):
    """Workers and ranks grow blocks of rows; here the rows of one tensor have 3, 2 and 1 copies."""
    source = np.array([0, 0, 0, 1, 1, 2])
    part, parts = np.array([0, 1, 2, 0, 1, 0]), np.array([3, 3, 3, 2, 2, 1])
    rows = DimensionMap(3, source, np.ones(6), split=Split(kind, part, parts, source))
    columns = DimensionMap(4, np.arange(4), np.ones(4))
    for dimensions in ((rows,), (rows, columns)):
        info = TensorInfo("weight", dtype, tuple(one.size for one in dimensions))
        tensor_map = TensorMap("weight", info, dtype, Weight("weight", ()), dimensions, False, False)
        for cut in range(1, 6):
            check(tensor_map, random_values(info, 0), 0, (cut,))
