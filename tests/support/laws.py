"""The law of operators over all families, as a test that takes one line."""

import re
from collections.abc import Callable

import pytest

from growth import GrowthError
from growth.operators import Operator, chain
from tests.support.families import Case, all_cases, kind_of_norms, kind_of_weights, random_model
from tests.support.models import EXACT, grown, relative_error
from tests.support.selection import one_of_each

ABSENT = "the axes of this family are"  # the refusal of an axis that a family does not have


def exact_or_refused(
    operator: Operator, refused: str | None = None, after: Callable[[Case], Operator] | None = None
) -> Callable[..., None]:
    """A test that an operator keeps the logits of every case in float64: `test_it = exact_or_refused(widen(...))`.

    The quick run takes a case of every kind of norms and of weights, `-m ""` takes all.

    refused: a pattern of the messages with which the operator may refuse a case; by default it may refuse none.
    after: returns the operator that a case is grown by before it.
    """

    @pytest.mark.parametrize(
        "case",
        one_of_each([(case,) for case in all_cases()], kind_of_norms, kind_of_weights, ids=lambda case: case.name),
    )
    def test(case):
        model = random_model(case)
        try:
            larger = grown(model, chain(after(case), operator) if after else operator)
        except GrowthError as error:
            if not re.search(ABSENT if refused is None else f"{ABSENT}|{refused}", str(error)):
                raise
        else:
            assert relative_error(model, larger) <= EXACT

    return test
