"""What the quick run keeps: every kind of case once, and fewer examples of each property.

The other cases are marked slow, and are not even collected in the quick run. `make test-all` runs all.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import settings

_run_all = False  # whether slow tests run: set by conftest.py before the tests are imported


def run_slow_tests(answer: bool) -> None:
    """Say whether this run has the slow tests, before any test is imported."""
    global _run_all
    _run_all = answer


def slow_tests_run() -> bool:
    """Whether this run has the slow tests."""
    return _run_all


def examples(quick: int, thorough: int, **options: Any) -> settings:
    """Settings of hypothesis with so many examples in the quick run, and so many where slow tests run too."""
    return settings(max_examples=thorough if _run_all else quick, **options)


def first_quick(values: Iterable[Any], count: int = 1, *, ids: Sequence[str] | None = None) -> list:
    """The values as parameters, marked slow but for the first ones.

    ids: the ids of the values; pytest's own by default.
    """
    return _parameters(
        pytest.param(value, id=ids[place] if ids else None, marks=() if place < count else pytest.mark.slow)
        for place, value in enumerate(values)
    )


def one_of_each(
    rows: Iterable[Sequence[Any]], *kinds: Callable[..., Any], ids: Callable[..., str] | None = None
) -> list:
    """The rows as parameters, marked slow but for a few in which every value of every kind occurs.

    rows: the arguments of each case.
    kinds: functions of a row's arguments, such as its family, or the pair of its axis and init.
    ids: the id of a row; pytest's own by default.
    """
    rows = [tuple(row) for row in rows]
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)  # or the first values of a product would stand for most of the others
    seen: set[tuple[int, Any]] = set()
    quick = set()
    for place in order:
        found = {(number, kind(*rows[place])) for number, kind in enumerate(kinds)}
        if not found <= seen:
            quick.add(place)
            seen |= found
    return _parameters(
        pytest.param(*row, id=ids(*row) if ids else None, marks=() if place in quick else pytest.mark.slow)
        for place, row in enumerate(rows)
    )


def _parameters(parameters: Iterable[Any]) -> list:
    """Those that this run has: to collect tens of thousands of tests takes longer than to run the quick ones of them."""
    return [parameter for parameter in parameters if _run_all or not parameter.marks]
