"""Units whose place is fixed keep it, or a growth cannot claim to preserve the function; all others can change places."""

from dataclasses import replace

import numpy as np
import pytest

from growth.algebra.expansion import Expansion
from growth.operators import widen
from growth.operators.base import Growth
from growth.planning.check import assert_laws
from tests.support.families import all_cases, random_model, table, typical
from tests.support.models import EXACT, grown, relative_error
from tests.support.selection import one_of_each

AXES = [(case, axis) for case in all_cases() for axis in table(case).axes.values()]
FIXED = [(case, axis) for case, axis in AXES if axis.fixed > 1]
FREE = [(case, axis) for case, axis in AXES if axis.size - axis.fixed > 1]


def over(rows):
    return pytest.mark.parametrize(
        ("case", "axis"),
        one_of_each(
            rows,
            lambda case, axis: typical(case),
            lambda case, axis: axis.name,
            lambda case, axis: (axis.norm, axis.rotary_pairs, axis.external, bool(axis.refusal)),
            ids=lambda case, axis: f"{case.name}-{axis.name}",
        ),
    )


def reorder(axis, first, last):
    """An operator that puts the units from `first` to `last` into the reverse order, and claims to preserve."""
    source = np.arange(axis.size)
    source[first:last] = source[first:last][::-1]

    def operator(growth):
        return growth.expanded(axis.name, Expansion.copies(axis.size, source)).noted("reorder", True, "a claim")

    return operator


@over(FIXED)
def test_units_whose_place_is_fixed_cannot_change_places(case, axis):
    built = table(case)
    with pytest.raises(AssertionError, match=f"{axis.name}: units whose place is fixed"):
        assert_laws(reorder(axis, 0, axis.fixed)(Growth.start(built)), built.depth)


@over([row for row in FIXED if row[1].name != "reserved"])
def test_their_place_decides_what_they_compute(case, axis):
    """Without the claim, and so without the laws, another order is another function."""
    model = random_model(case)

    def lossy(growth):
        reordered = reorder(axis, 0, axis.fixed)(growth)
        return replace(reordered, steps=()).noted("reorder", False, "units change places")

    assert relative_error(model, grown(model, lossy)) > 1e-4


@over(FREE)
def test_other_units_can_change_places(case, axis):
    model = random_model(case)
    assert relative_error(model, grown(model, reorder(axis, axis.fixed, axis.size))) <= EXACT


@pytest.mark.parametrize(
    "case",
    one_of_each([(case,) for case in all_cases()], typical, ids=lambda case: case.name),
)
def test_what_cannot_grow_or_be_copied_is_held_to_that(case):
    built = table(case)
    for axis in built.axes.values():
        start = Growth.start(built)
        if axis.refusal:
            beyond = max(axis.size, axis.max_size) + 1
            padded = start.expanded(axis.name, Expansion.padding(axis.size, beyond, silent="read"))
            with pytest.raises(AssertionError, match=axis.name):
                assert_laws(padded, built.depth)
        if axis.uncopyable:
            copied = start.expanded(axis.name, Expansion.copies(axis.size, np.append(np.arange(axis.size), 0)))
            with pytest.raises(AssertionError, match=axis.name):
                assert_laws(copied, built.depth)


def test_fresh_channels_keep_rotary_pairs_together():
    for built in map(table, all_cases()):
        axis = built.head_channels
        if axis.rotary_pairs and not axis.refusal and not axis.untrained:
            assert_laws(widen(axis.name, to=axis.size + 4, init="pad")(Growth.start(built)), built.depth)
