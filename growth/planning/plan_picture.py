"""A plan as a picture for notebooks: what of each axis, and which layers, are the source's, copies, or new.

It is SVG without scripts, of numbers and escaped names alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from growth.algebra.expansion import FRESH, Expansion
from growth.runtime.printable import html_text

if TYPE_CHECKING:
    from growth.operators.base import Layer
    from growth.planning.plan import Plan

COLOURS = {"the source's": "#8a8f98", "copies": "#1f5fbf", "new": "#e9a03b"}
KEPT, COPY, NEW = COLOURS
WIDTH, LABEL, NUMBERS, ROW = 360, 90, 130, 20  # pixels: of the bars, of text left and right of them, and of each row


def plan_picture(plan: Plan) -> str:
    """A bar for each axis that grows and for the layers, in the order of their units."""
    grown = {name: e for name, e in plan.growth.expansions.items() if not e.is_identity}
    rows = [(name, e.size, units_of(e)) for name, e in grown.items()]
    if len(plan.growth.layers) != plan.source.depth:
        rows.append(("layers", plan.source.depth, layers_of(plan.growth.layers)))
    height = ROW * (len(rows) + 1)
    inside = "".join(_row(place * ROW, *row) for place, row in enumerate(rows))
    legend = "".join(_legend(number, name, height - ROW) for number, name in enumerate(COLOURS))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{LABEL + WIDTH + NUMBERS}" height="{height}" '
        f'font-family="sans-serif" font-size="12" fill="currentColor">{inside}{legend}</svg>'
    )


def units_of(expansion: Expansion) -> list[str]:
    """What each unit of an axis is.

    >>> units_of(Expansion.copies(2, np.array([0, 1, 0, -1])))
    ["the source's", "the source's", 'copies', 'new']
    """
    _, first = np.unique(expansion.source, return_index=True)
    kinds = np.full(len(expansion), COPY, dtype=object)
    kinds[first] = KEPT
    kinds[expansion.source == FRESH] = NEW
    return list(kinds)


def layers_of(layers: tuple[Layer, ...]) -> list[str]:
    """What each layer is: random layers are new, and so are copies of a layer that the source has once."""
    seen: set[int] = set()
    kinds = []
    for layer in layers:
        kept = not layer.new and layer.source not in seen
        seen |= {layer.source} if kept else set()
        kinds.append(KEPT if kept else NEW if layer.fresh else COPY)
    return kinds


def _row(top: int, name: str, before: int, kinds: list[str]) -> str:
    bars = "".join(_bars(top, kinds))
    left = f'<text x="{LABEL - 6}" y="{top + 13}" text-anchor="end">{html_text(name)}</text>'
    return f'{left}{bars}<text x="{LABEL + WIDTH + 6}" y="{top + 13}">{before:,} → {len(kinds):,}</text>'


def _bars(top: int, kinds: list[str]) -> Iterator[str]:
    at, unit = 0, WIDTH / len(kinds)
    for kind, run in groupby(kinds):
        count = len(list(run))
        yield (
            f'<rect x="{LABEL + at * unit:.1f}" y="{top + 3}" width="{count * unit:.1f}" height="{ROW - 6}" '
            f'fill="{COLOURS[kind]}"/>'
        )
        at += count


def _legend(number: int, name: str, top: int) -> str:
    x = LABEL + number * 110
    return (
        f'<rect x="{x}" y="{top + 5}" width="10" height="10" fill="{COLOURS[name]}"/>'
        f'<text x="{x + 14}" y="{top + 14}">{html_text(name)}</text>'
    )
