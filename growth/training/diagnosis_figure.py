"""A diagnosis as one figure, with a panel for each question that has an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from growth.training.axis_placement import Side
from growth.training.diagnosis import AxisRank, Copies, CopyDistance, Diagnosis, FreshUnits, NewLayer
from growth.training.divergence import INDEPENDENT

# colours that are distinct for colour-blind readers (Okabe and Ito, 2008)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
BAD, UNSURE, GOOD = "#D55E00", "#E69F00", "#009E73"
MARKERS: Mapping[Side, str] = {"written": "o", "read": "s"}
LINES: Mapping[Side, str] = {"written": "-", "read": ":"}
WORDS: Mapping[Side, str] = {"written": "writes", "read": "reads"}
OUTSIDE = -1  # abscissa of what is outside of layers: embeddings and head


def diagnosis_figure(found: Diagnosis) -> Figure:
    """Draw a diagnosis; `savefig` writes the figure.

    Copies and fresh units by layer, with embeddings and head at E; new layers as bars.
    """
    panels: list[tuple[Callable[[Axes, Any], None], Any]] = [
        (_draw_copies, found.copies),
        (partial(_draw_distances, ranks=found.ranks), found.distances),
        (_draw_layers, found.new_layers),
        (_draw_fresh, found.fresh),
    ]
    shown = [(draw, findings) for draw, findings in panels if findings]
    figure = Figure(figsize=(8.4, 0.5 + 2.9 * max(1, len(shown))), layout="constrained")
    for axes, (draw, findings) in zip(np.atleast_1d(figure.subplots(max(1, len(shown)))), shown, strict=False):
        draw(axes, findings)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="y", color="#e5e7eb", lw=0.6)
    return figure


def _draw_copies(axes: Axes, copies: tuple[Copies, ...]) -> None:
    limits = [found.limit for found in copies]
    bottom, identical = min(limits) / 30, max(limits)
    bands = [(bottom, identical, BAD, "identical"), (identical, INDEPENDENT, UNSURE, "diverging")]
    for lower, upper, colour, name in [*bands, (INDEPENDENT, 3.0, GOOD, "independent")]:
        axes.axhspan(lower, upper, color=colour, alpha=0.10, lw=0)
        middle = float(np.sqrt(lower * upper))
        axes.text(1.01, middle, name, transform=axes.get_yaxis_transform(), va="center", color=colour, fontsize=9)
    names = list(dict.fromkeys(found.axis for found in copies))
    for found in copies:
        values = {layer: max(value, bottom * 1.5) for layer, value in found.layers.items()}
        _line(axes, values, names.index(found.axis), found.side, found.axis)
    axes.set_yscale("log")
    axes.set_ylim(bottom, 3.0)
    axes.set_ylabel("apart\n(0: as one, 1: independent)")
    _finish(axes, "Have copies diverged?", copies)


def _draw_distances(axes: Axes, distances: tuple[CopyDistance, ...], ranks: tuple[AxisRank, ...]) -> None:
    rank_of = {rank.axis: f"\nrank {rank.before:.1f} → {rank.after:.1f} of {rank.units}" for rank in ranks}
    for colour, found in enumerate(distances):
        _line(
            axes, found.layers, colour, "written", f"{found.axis} (was {found.before:.2f}){rank_of.get(found.axis, '')}"
        )
    axes.set_ylim(0, 1.5)
    axes.set_ylabel("distance of copies\n(0: equal, 1.41: independent)")
    _finish(axes, "How different are copies?", distances)


def _draw_fresh(axes: Axes, fresh: tuple[FreshUnits, ...]) -> None:
    names = list(dict.fromkeys(found.axis for found in fresh))
    for found in fresh:
        values = {layer: 100 * value for layer, value in found.layers.items()}
        _line(axes, values, names.index(found.axis), found.side, f"{found.axis} (was {found.before:.0%})")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("size, % of\nold units' weights")
    _finish(axes, "How large are fresh units?", fresh)


def _draw_layers(axes: Axes, layers: tuple[NewLayer, ...]) -> None:
    branches = list(layers[0].gained)
    width = 0.8 / len(branches)
    for number, branch in enumerate(branches):
        at = np.arange(len(layers)) + (number - (len(branches) - 1) / 2) * width
        axes.bar(at, [100 * layer.gained.get(branch, 0.0) for layer in layers], 0.92 * width,
                 color=COLOURS[number % len(COLOURS)], label=branch)  # fmt: skip
    axes.set_xticks(range(len(layers)), [str(layer.layer) for layer in layers])
    axes.set_xlim(-0.7, max(len(layers), 6) - 0.3)
    axes.set_xlabel("new layer")
    axes.set_ylabel("branch end, % of\nold layers' norm")
    _name(axes, "Do new layers contribute?")


def _line(axes: Axes, values: Mapping[int | None, float], colour: int, side: Side, name: str) -> None:
    style: dict[str, Any] = {"color": COLOURS[colour % len(COLOURS)], "ms": 5}
    style |= {"mfc": "white"} if side == "read" else {}
    label = f"{WORDS[side]} {name}"
    inside = sorted((layer, value) for layer, value in values.items() if layer is not None)
    if inside:
        axes.plot(*zip(*inside, strict=True), MARKERS[side], ls=LINES[side], lw=1.3, label=label, **style)
    if None in values:
        axes.plot([OUTSIDE], [values[None]], MARKERS[side], ls="", label=None if inside else label, **style)


def _finish(axes: Axes, title: str, found: tuple[Copies | CopyDistance | FreshUnits, ...]) -> None:
    layers = {layer for entry in found for layer in entry.layers}
    depth = 1 + max((layer for layer in layers if layer is not None), default=0)
    ticks = list(range(0, depth, 1 + depth // 17))
    outside = None in layers
    axes.set_xticks([OUTSIDE] * outside + ticks, ["E"] * outside + [str(tick) for tick in ticks])
    axes.set_xlim(-0.5 - outside, depth - 0.5)
    axes.set_xlabel("layer (E: embeddings and head)" if outside else "layer")
    _name(axes, title)


def _name(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.15, 0.5))
