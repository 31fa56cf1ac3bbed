"""Families are exact at any geometry: hypothesis draws the sizes of every axis, of the source and of what it grows to.

The other laws grow models of one small size. Here a drawn growth first makes the config of the source, and a second one
is tested.
"""

from fractions import Fraction

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError
from hypothesis import assume, given
from hypothesis import strategies as st

from growth import GrowthError
from growth.architectures import FAMILIES, architecture
from growth.operators import chain, deepen, widen
from tests.support.families import Case, all_cases, random_model, special, stated_config, steps_of
from tests.support.models import EXACT, grown, relative_error
from tests.support.plans import plan_of
from tests.support.selection import examples

AXES = ("residual", "ffn", "heads", "queries", "head_dim", "vocab")
RATIOS = [Fraction(over, under) for under in range(1, 9) for over in range(under + 1, 3 * under + 1)]
CASES = {family: [case for case in all_cases() if case.family == family] for family in FAMILIES}


def counted(table, axis):
    """The size of an axis as recipes count it: along `heads`, all query heads."""
    return table.axes[axis].size * (table.axes["queries"].size if axis == "heads" else 1)


@st.composite
def drawn_steps(draw, case, table, axis):
    """Operators that grow an axis by a drawn ratio, with those that have to grow along."""
    along = [name for name, _ in steps_of(case, axis)]
    group = table.axes["queries"].size if axis == "heads" else 1
    units = 2 if axis == "head_dim" else group

    def fits(ratio):
        sizes = {name: counted(table, name) * ratio for name in along}
        return all(size.denominator == 1 for size in sizes.values()) and sizes[axis] % units == 0

    ratio = draw(st.sampled_from([ratio for ratio in RATIOS if fits(ratio)]))
    inits = [init for init in ("pad", "tile") if not {axis, f"{axis}, {init}"} & case.refused.keys()]
    init = draw(st.sampled_from(inits))
    return [widen(name, to=int(counted(table, name) * ratio), init=init) for name in along]


def growable(case):
    """The axes of a case that grow by `pad` or by `tile`."""
    axes = [axis for axis in AXES if axis in architecture(stated_config(case)).axes and axis not in case.refused]
    return [axis for axis in axes if not {f"{axis}, pad", f"{axis}, tile"} <= case.refused.keys()]


def check(case, data):
    """Draw a geometry for a case, then a growth of it on some axes and in depth; the function stays."""
    start = architecture(stated_config(case))
    first = data.draw(st.sampled_from(growable(case)))
    steps = data.draw(drawn_steps(case, start, first))
    try:
        config = plan_of(stated_config(case), chain(*steps)).config
    except GrowthError:  # sizes that the family's config cannot have together
        assume(False)
    source = Case(case.family, case.variant, {key: value for key, value in config.items() if key != "model_type"})
    try:
        model = random_model(source)
    except StrictDataclassClassValidationError:
        assume(False)
    table = architecture(model.config.to_dict())
    axes = data.draw(st.lists(st.sampled_from(growable(case)), min_size=1, max_size=3, unique=True))
    operators = [step for axis in axes for step in data.draw(drawn_steps(case, table, axis))]
    deeper = [deepen(to=table.depth + data.draw(st.integers(1, 3)))] if "layers" not in case.refused else []
    try:
        larger = grown(model, chain(*operators, *deeper))
    except (GrowthError, StrictDataclassClassValidationError):  # axes that do not fit together
        assume(False)
    assert relative_error(model, larger) <= EXACT


@given(st.data())
@examples(quick=6, thorough=30)
def test_special_families_at_any_geometry(data):
    cases = [case for case in all_cases() if special(case)]
    check(data.draw(st.sampled_from(cases)), data)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_at_any_geometry(family):
    run = examples(3, 3)(given(st.data())(lambda data: check(data.draw(st.sampled_from(CASES[family])), data)))
    run()
