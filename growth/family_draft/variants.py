"""The proof of a table for every boolean of the config with its other value."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from growth.errors import ConfigError
from growth.family_draft.omissions import omissions
from growth.family_draft.outcome import Outcome
from growth.family_draft.proof import prove, tensor_differences
from growth.family_draft.stock import StockClass

TELLING = ("residual", "head_dim", "depth")  # the axes along which variants grow


def variants(stock: StockClass, known: Collection[str] = ()) -> Iterator[Outcome]:
    """Set each boolean to its other value, and prove the registered table; call it with float64 throughout.

    Each has one row if it is exact. None has a row if the class cannot run it.

    known: the axes and keys that are not exact in any case, and are not repeated.
    """
    for stated, variant in stock.variants():
        if variant.runs():
            rows = [row for row in _proved(variant) if row.axis not in known]
            yield from [replace(row, axis=f"{row.axis}, {stated}") for row in rows] or [Outcome(stated, "exact")]


def _proved(variant: StockClass) -> Iterator[Outcome]:
    """What is not exact in a variant."""
    try:
        differences = tensor_differences(variant)
    except ConfigError as error:
        yield Outcome("all axes", "refused", str(error))
        return
    if differences:
        yield Outcome("all axes", "broken", f"{len(differences)} tensors differ, the first: {differences[0]}")
        return
    yield from (outcome for outcome in prove(variant, TELLING) if outcome.verdict != "exact")
    yield from (outcome for outcome in omissions(variant) if not outcome.stands)
