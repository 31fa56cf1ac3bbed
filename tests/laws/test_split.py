"""A weight that reads copies is divided among them: the parts add up to it exactly in the type that stores them."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from growth.algebra.draws import Draws
from growth.algebra.expansion import Expansion, rmsnorm_write, sampled, tiled
from growth.algebra.split import Split, part_of
from growth.arrays.casting import NUMPY_DTYPES, cast
from growth.arrays.tensor_info import TensorInfo
from growth.engine import reference
from growth.errors import GrowthError
from growth.operators import chain, deepen, widen
from growth.planning.plan import make_plan
from growth.planning.prepare import apply_recipe
from tests.support.families import all_cases, steps_of, table, typical
from tests.support.selection import one_of_each
from tests.support.values import random_values

TYPES = ["F16", "BF16", "F32", "F64"]
KINDS = ["random", "mask"]


def wide(values, dtype):
    return cast(values, np.empty(values.shape, np.float64 if dtype == "F64" else np.float32))


def parts(values, dtype, kind, count, seed):
    """The parts of values (computing type), (count, n), as they are stored."""

    def rounded(some):
        return wide(cast(some, np.empty(some.shape, NUMPY_DTYPES[dtype])), dtype)

    def bits(number):
        return Draws(seed, f"split{number}").bits(0, (1, len(values)))

    found = part_of(
        np.broadcast_to(values, (count, len(values))),
        kind,
        np.arange(count)[:, None],
        np.full((count, 1), count),
        bits,
        rounded,
        turns=bool(count & (count - 1)),
    )
    stored = cast(found, np.empty(found.shape, NUMPY_DTYPES[dtype]))
    np.testing.assert_array_equal(wide(stored, dtype), found)  # nothing is lost when a part is stored
    return found


def finite(dtype):
    bits = np.arange(1 << 16, dtype=np.uint16).view(NUMPY_DTYPES[dtype])
    values = wide(bits, dtype)
    return values[np.isfinite(values)]


def check(values, found):
    """The laws: an exact sum in any order of the type, the sign of the whole, nothing larger than the whole."""
    assert (found.astype(np.float64).sum(0) == values).all()
    assert (np.abs(found) <= np.abs(values)).all()
    assert (found * np.sign(values) >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2, 3, 4, 7])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_finite_half_value_is_the_sum_of_its_parts(dtype, count, kind):
    values = finite(dtype)
    for seed in range(4):
        check(values, parts(values, dtype, kind, count, seed))


@pytest.mark.parametrize(("dtype", "width"), [("F32", 32), ("F64", 64)])
@given(data=st.data())
def test_every_finite_value_is_the_sum_of_its_two_parts(dtype, width, data):
    kind, seed = data.draw(st.sampled_from(KINDS)), data.draw(st.integers(0, 99))
    floats = st.floats(allow_nan=False, allow_infinity=False, width=width)
    values = data.draw(arrays(f"f{width // 8}", 20, elements=floats))
    one, two = parts(values, dtype, kind, 2, seed)
    assert (one + two == values).all()
    assert (np.abs(one) <= np.abs(values)).all()
    assert (one * np.sign(values) >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_all_parts_have_the_same_expectation(count, kind):
    found = parts(np.ones(40_000, np.float32), "F32", kind, count, 1)
    np.testing.assert_allclose(found.mean(1), 1 / count, atol=0.02)


def test_a_mask_gives_each_weight_to_one_copy():
    found = parts(np.arange(1, 9, dtype=np.float32), "F32", "mask", 3, 0)
    assert ((found != 0).sum(0) == 1).all()


@given(st.integers(1, 20), st.integers(0, 60), st.integers(0, 99))
def test_a_split_numbers_the_copies_of_each_unit_that_are_read(size, extra, seed):
    source = sampled(size, Draws(seed, "units").integers(0, size, extra))
    split = Split.of("random", Expansion.copies(size, source))
    if split is None:
        assert extra == 0
        return
    for unit in range(size):
        copies = source == unit
        assert sorted(split.part[copies]) == list(range(copies.sum()))
        assert (split.parts[copies] == copies.sum()).all()


def test_copies_that_are_written_unequally_are_not_split():
    source = tiled(8, 14)
    assert Split.of("mask", Expansion.copies(8, source, rmsnorm_write(source, 8))) is not None
    uneven = np.where(np.arange(14) < 8, 1.0, 0.5)
    assert Split.of("mask", Expansion.copies(8, source, uneven)) is None


def test_copies_that_are_not_read_have_no_part():
    first = Expansion.copies(2, np.array([0, 1, 0, 1])).read_from_first()
    assert Split.of("random", first) is None
    both = first.then(Expansion.copies(4, np.array([0, 1, 2, 3, 0, 1, 2, 3])))
    assert Split.of("random", both).parts.tolist() == [2, 2, 1, 1, 2, 2, 1, 1]


# ------------------------------------------------- every reader of every family


def copied(values, tensor_map):
    """The values whose every index copies an old one: fresh ones are not parts of a whole."""
    for axis, one in enumerate(tensor_map.dimensions):
        values = np.take(values, np.flatnonzero(~one.fresh), axis)
    return values


def summed(values, tensor_map):
    """The sums over the parts of each weight, along all dimensions that are split."""
    for axis, one in enumerate(tensor_map.dimensions):
        if one.split is not None:
            kept, (_, unit) = np.moveaxis(values, axis, 0), np.unique(one.split.whole[~one.fresh], return_inverse=True)
            whole = np.zeros((unit.max() + 1, *kept.shape[1:]))
            np.add.at(whole, unit, kept)
            values = np.moveaxis(whole, 0, axis)
    return values


def wholes(values, tensor_map):
    """The place of the first part of each weight, along the same dimensions."""
    for axis, one in enumerate(tensor_map.dimensions):
        if one.split is not None:
            values = np.take(values, np.unique(one.split.whole[~one.fresh], return_index=True)[1], axis)
    return values


CASES = [(case, kind) for case in all_cases() for kind in KINDS]


@pytest.mark.parametrize(
    ("case", "kind"),
    one_of_each(
        CASES,
        lambda case, kind: typical(case),
        lambda case, kind: (case.table.tied, kind),
        ids=lambda case, kind: f"{case.name} {kind}",
    ),
)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_every_reader_of_every_family_adds_up_to_the_undivided_weight(case, kind, dtype):
    divided = [tensor_map for tensor_map in plan_of(case, kind, dtype).tensors if tensor_map.is_split]
    assert divided
    for tensor_map in divided:
        plain = replace(tensor_map, dimensions=tuple(replace(one, split=None) for one in tensor_map.dimensions))
        old = random_values(tensor_map.source, 0)
        parts, whole = (wide(reference.grow(one, old, 3), dtype) for one in (tensor_map, plain))
        assert (np.abs(parts) <= np.abs(whole)).all()
        parts, whole = copied(parts, tensor_map), copied(whole, tensor_map)
        np.testing.assert_array_equal(summed(parts.astype(np.float64), tensor_map), wholes(whole, tensor_map))


@pytest.mark.parametrize(
    ("case", "kind"),
    one_of_each(
        CASES,
        lambda case, kind: typical(case),
        lambda case, kind: (case.table.tied, kind),
        ids=lambda case, kind: f"{case.name} {kind}",
    ),
)
def test_copies_of_a_row_are_divided_differently(case, kind):
    """Rows that are copies of each other, and columns too, would otherwise stay equal."""
    checked = 0
    for tensor_map in plan_of(case, kind, "F32").tensors:
        if not tensor_map.is_split or len(tensor_map.shape) < 2 or min(tensor_map.shape) < 8 or tensor_map.zero:
            continue
        parts = wide(reference.grow(tensor_map, random_values(tensor_map.source, 0), 3), "F32")
        for axis, one in enumerate(tensor_map.dimensions):
            rows = np.moveaxis(parts, axis, 0)
            for unit in np.unique(one.source[~one.fresh]):
                copies = rows[one.source == unit]
                if kind == "mask" and rows.shape[1] < 8 * len(copies):
                    continue  # a mask of so few weights may leave two copies none
                alike = [np.array_equal(copies[0], other) for other in copies[1:]]
                assert not any(alike), (tensor_map.target, axis, unit)
                checked += len(alike)
    assert checked


def plan_of(case, kind, dtype):
    """A plan that grows all axes of a case that can by copies: doubled, or by half."""
    source = table(case)
    headers = {name: TensorInfo(name, dtype, shape) for name, shape in source.example_shapes().items()}
    steps, grown = [], set()
    for axis in ("residual", "ffn", "heads", "queries", "head_dim"):
        if axis in grown or axis not in source.axes:
            continue
        together = {name for name, _ in steps_of(case, axis)}
        for axes, factor in product((together - grown, {axis}), (2, 1.5)):
            step = chain(*(copies(case, name, factor, kind) for name in sorted(axes)))
            try:
                make_plan(source, apply_recipe(chain(*steps, step), source, 0), headers)
            except GrowthError:
                continue
            steps.append(step)
            grown |= axes
            break
    steps += [] if "layers" in case.refused else [deepen(to=source.depth + 1)]
    return make_plan(source, apply_recipe(chain(*steps), source, 0), headers)


def copies(case, axis, factor, kind):
    """Grows an axis by copies that share what reads them, or as it can grow along with another one."""
    init = case.along.get(axis, "tile")
    return widen(axis, factor=factor, init=init, shares=kind if init == "tile" else None)
