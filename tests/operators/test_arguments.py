"""An argument of a wrong type or out of range is named, in Python as in a recipe."""

import pytest

import growth
from growth.errors import GrowthError, RecipeError
from growth.operators.registry import OPERATORS
from tests.support.models import random_phi

NUMBERS = {  # where a number is due
    ("deepen", "to"): {},
    ("deepen", "factor"): {},
    ("deepen", "block"): {"to": 6, "order": "middle", "init": "copy"},
    ("widen", "to"): {"axis": "ffn"},
    ("widen", "factor"): {"axis": "ffn"},
    ("regroup", "factor"): {},
    ("upcycle", "experts"): {"top_k": 2},
    ("upcycle", "top_k"): {"experts": 4},
    ("upcycle", "granularity"): {"experts": 4, "top_k": 2},
}


@pytest.mark.parametrize("bad", [0, -1, -0.5, float("nan"), float("inf"), 2**40, "3", [], {}, object], ids=repr)
@pytest.mark.parametrize("key", NUMBERS, ids="-".join)
def test_what_is_no_number_is_refused_by_name(key, bad):
    operator, argument = key
    with pytest.raises(GrowthError, match=rf"{argument}|shrink|{operator}|memory|regroup|upcycle|least|most"):
        growth.plan(OPERATORS[operator].function(**NUMBERS[key], **{argument: bad}), random_phi())


def test_the_error_says_what_is_due_and_what_was_given():
    model = random_phi(num_hidden_layers=4)
    with pytest.raises(RecipeError, match=r"^deepen: block: must be greater than 0 \(got 0\)\.$") as error:
        growth.plan(growth.deepen(to=8, order="middle", init="copy", block=0), model)
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    with pytest.raises(RecipeError, match=r"^widen: factor: must be a whole number \(got '2'\)\.$"):
        growth.plan(growth.widen("ffn", factor="2"), model)
    with pytest.raises(TypeError, match=r"widen\(\) missing 1 required positional argument: 'axis'"):
        growth.widen(factor=2)
