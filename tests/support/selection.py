"""Which cases of a large product the quick run keeps: every kind once. The others are marked slow."""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest


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
    return [
        pytest.param(*row, id=ids(*row) if ids else None, marks=() if place in quick else pytest.mark.slow)
        for place, row in enumerate(rows)
    ]
