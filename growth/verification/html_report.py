"""A verification report as one self-contained HTML page, with plots."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import chain
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.open import as_checkpoint
from growth.planning.manifest import labelled, read_manifest
from growth.runtime.printable import html_text
from growth.training.value_kinds import Kinds, axis_kinds, kinds_along
from growth.verification.report import Report
from growth.verification.residual import EMBEDDING, LayerError
from growth.verification.streaming import read_tensor

# Colours that stay apart in every common colour blindness (Okabe and Ito, 2008).
BLUE, ORANGE, SKY, VERMILLION, GREY = "#0072B2", "#E69F00", "#56B4E9", "#D55E00", "#6b7280"
ORIGINS = (("kept", "#e5e7eb"), ("copy", SKY), ("fresh", ORANGE))  # as `axis_kinds` numbers them
LAYERS = {  # marker and face of each kind of layer
    "copied layer": ("o", BLUE),
    "silent layer (identity)": ("o", "white"),
    "exactly zero": ("v", BLUE),
    "over the limit": ("X", VERMILLION),
}
PIXELS = 512  # of the longer side of a picture; larger weights are shown by every k-th row and column

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")  # of the command line, in a sentence
MARKS = {"PASSED": "✓ Passed", "LOSSY": "≈ Lossy, by the recipe", "FAILED": "✗ Failed"}
PROBLEMS = ("file or tensor", "how it differs from what the recipe makes of the source")
PICTURES = {
    "Attention, queries": r"(q_proj|query|q_lin)\.weight$",
    "MLP, up projection": r"(up_proj|fc1|fc_in|dense_h_to_4h|gate_up_proj)\.weight$",
}


def write_html(report: Report, source: Path | Checkpoint, grown: Path, path: Path) -> None:
    """Write a report with its plots to one file without links.

    Args:
        report: what `verify(source, grown)` returned.
        source: the source's folder, opened or not, read for the pictures of weights.
        grown: the grown folder, read for the same, with its growth.json.
        path: the HTML file, which must not exist.
    """
    manifest = read_manifest(grown) or {}
    generation = [check.row() for check in report.generation]
    sections = [
        _section("What differs", _table(PROBLEMS, list(report.totals.problems.items()), prose=True)),
        _section("What was measured", _table(("measure", "value", "meaning"), report.rows())),
        _section("What was covered", _table(("", ""), report.coverage_rows(), prose=True)),
        _section("Generation", _table(("comparison", "relative error", "limit", ""), generation)),
        _section("Geometry", _geometry(report)),
        _section(*_steps(report, manifest)),
        _section("Error by layer", _layers(report)),
        _section("Weights before and after", weight_figures(manifest, source, grown)),
    ]
    texts = {"status": report.status.lower(), "mark": MARKS[report.status], "verdict": report.verdict()}
    texts |= {"source": report.source, "grown": report.grown, "name": Path(report.grown).name}
    page = Template((files(__package__) / "report.html").read_text(encoding="utf-8"))
    html = page.substitute({key: html_text(text) for key, text in texts.items()}, sections="\n".join(sections))
    with path.open("x", encoding="utf-8") as file:
        file.write(html)


# ------------------------------------------------- text


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html_text(title)}</h2>{content}</section>" if content else ""


def _cell(text: str) -> str:
    """An escaped text, in which options of the command line stay whole."""
    return OPTION.sub(r'<span class="option">\g<0></span>', html_text(text))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, prose: bool = False) -> str:
    """A table of escaped text, or nothing if it has no rows; in `prose`, cells are sentences that may wrap."""
    if not rows:
        return ""
    top = "".join(f"<th>{html_text(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    kind = ' class="prose"' if prose else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _geometry(report: Report) -> str:
    before, after = (dict(labelled(report.sizes[when])) for when in ("before", "after"))
    sizes = [(name, before[name], after[name]) for name in before if name in after]
    rows = [
        (name, f"{old:,}", f"{new:,}", "unchanged" if old == new else f"× {new / old:.4g}")
        for name, old, new in [*sizes, ("parameters", *report.parameters)]
    ]
    return _table(("axis", "before", "after", "ratio"), rows)


def _steps(report: Report, manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Title and table of the recipe's steps: from source and recipe, else from growth.json."""
    steps = [vars(step) for step in report.steps] or manifest.get("steps", [])
    rows = [(s["operator"], "yes" if s["preserving"] else "no", s["why"]) for s in steps]
    title = "Recipe" if report.steps else "Recipe, as growth.json states it (not checked)"
    return title, _table(("step", "preserves the function", "why"), rows)


def _layers(report: Report) -> str:
    if not report.layers:
        return "<p>It is not known which layers correspond, so they were not compared.</p>"
    caption = (
        "Relative error of the residual stream after each layer, against the expansion of the source's. Dashed: "
        "the error that rounding alone usually causes. Dotted: the limit, the largest that rounding alone can cause."
    )
    return _figure(layer_figure(report.layers), caption)


def weight_figures(manifest: Mapping[str, Any], source: Path | Checkpoint, grown: Path) -> str:
    """Return the pictures of weights before and after as HTML; none of tensors that growth.json does not state."""
    before, after = as_checkpoint(source).tensors, as_checkpoint(grown).tensors
    figures = []
    for title, pattern in PICTURES.items():
        pair = _find(pattern, manifest, before, after)
        if pair:
            picture = weight_figure(*pair, origins_of(manifest, pair[1]))
            stride = _stride(pair[1])
            thinned = f" (every {_nth(stride)} row and column)" if stride > 1 else ""
            figures.append(_figure(picture, f"{title}: {pair[1].name}{thinned}"))
    return "".join(figures)


def _nth(number: int) -> str:
    """An ordinal number.

    >>> _nth(2), _nth(4), _nth(12), _nth(23)
    ('2nd', '4th', '12th', '23rd')
    """
    suffixes = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number % 100 in (11, 12, 13) else suffixes.get(number % 10, 'th')}"


def _figure(figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    text = html_text(caption)
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


# ------------------------------------------------- error by layer


def layer_figure(layers: Sequence[LayerError]) -> Figure:
    """Errors and limits by layer on a log scale; zero is drawn at the bottom, what is not finite at the top."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes, depth = figure.subplots(), len(layers) - 1
    numbers = [(error.layer, error.relative_error, error.floor, error.limit) for error in layers]
    at, errors, expected, limit = np.array(numbers).T
    finite = np.concatenate([errors[np.isfinite(errors)], limit])
    bottom, top = finite[finite > 0].min() / 10, finite.max() * 10
    shown = np.where(np.isfinite(errors), np.maximum(errors, bottom), top / 2)
    axes.fill_between(at, limit, top, color=VERMILLION, alpha=0.08, lw=0)
    axes.plot(at, limit, color=VERMILLION, lw=1, ls=":", label="limit")
    axes.plot(at, expected, color=GREY, lw=1.5, ls="--", label="expected from rounding")
    axes.plot(at, shown, color=BLUE, lw=1.5, label="error")
    kinds = np.array([_kind(error) for error in layers])
    for kind, (marker, face) in LAYERS.items():
        chosen, edge = kinds == kind, VERMILLION if face == VERMILLION else BLUE
        if chosen.any():
            axes.plot(at[chosen], shown[chosen], marker, mfc=face, mec=edge, ms=6, ls="", label=kind, zorder=3)
    axes.set_yscale("log")
    axes.set_ylim(bottom / 2, top)
    ticks = list(range(0, depth, 1 + depth // 17))
    axes.set_xlim(EMBEDDING - 0.5, depth - 0.5)
    axes.set_xticks([EMBEDDING, *ticks], ["E", *map(str, ticks)])
    axes.set_xlabel("layer of the grown model (E: embedding)")
    axes.set_ylabel("relative error of the\nresidual stream")
    axes.grid(axis="y", color="#e5e7eb", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def _kind(error: LayerError) -> str:
    if not error.passed:
        return "over the limit"
    if error.silent:
        return "silent layer (identity)"
    return "copied layer" if error.relative_error else "exactly zero"


# ------------------------------------------------- weights


def weight_figure(before: TensorInfo, after: TensorInfo, origins: Sequence[Kinds] = ()) -> Figure:
    """A matrix before and after growth, both on the same scale of size and of colour.

    `origins` numbers the origin of each row and each column of the grown matrix; strips along the edges show it.
    """
    height, width = after.shape
    stride, tall = _stride(after), height > 2 * width
    figure = Figure(figsize=(9, 6.4) if tall else (9, 5.3), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    values = [read_tensor(info, torch.float32)[::stride, ::stride].numpy() for info in (before, after)]
    scale = float(np.quantile(np.abs(values[0]), 0.99)) or 1.0
    for axes, name, shown, info in zip(panels, ("before", "after"), values, (before, after), strict=True):
        rows, columns = info.shape
        extent = (0, columns, rows, 0)
        axes.imshow(shown, cmap="RdBu_r", vmin=-scale, vmax=scale, extent=extent, interpolation="nearest")
        axes.set_title(f"{name}: {rows:,} × {columns:,}", fontsize=10)
        axes.set_xlabel("input channel (column)")
        axes.spines[:].set_visible(False)
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto" if tall else "equal")
    panels[0].set_ylabel("output unit (row)")
    _strips(panels[1], origins)
    if origins:
        handles = [Patch(color=color, label=label) for label, color in ORIGINS]
        where: dict[str, Any] = {"loc": "outside lower center", "ncols": 3, "frameon": False}
        figure.legend(handles=handles, title="rows and columns after", fontsize=9, title_fontsize=9, **where)
    figure.colorbar(panels[1].images[0], ax=panels, label="weight", shrink=0.7, extend="both")
    return figure


def _strips(axes: Axes, origins: Sequence[Kinds]) -> None:
    colors = ListedColormap([color for _, color in ORIGINS])
    places = ((-0.045, 0, 0.03, 1), axes.axhline), ((0, 1.015, 1, 0.03), axes.axvline)
    for dimension, (origin, (bounds, draw_line)) in enumerate(zip(origins, places, strict=False)):
        strip = axes.inset_axes(bounds)
        strip.pcolormesh(np.expand_dims(origin, 1 - dimension), cmap=colors, vmin=0, vmax=len(ORIGINS) - 1)
        strip.set_axis_off()
        if dimension == 0:
            strip.invert_yaxis()
        changes = np.flatnonzero(np.diff(origin)) + 1
        for change in changes.tolist() if len(changes) <= 4 else ():  # the strip shows a pattern better than lines
            draw_line(change, color="black", lw=1, ls="--")


def _stride(info: TensorInfo) -> int:
    return -(-max(info.shape) // PIXELS)


def _find(
    pattern: str, manifest: Mapping[str, Any], before: Mapping[str, TensorInfo], after: Mapping[str, TensorInfo]
) -> tuple[TensorInfo, TensorInfo] | None:
    """The first weight of the grown model whose name matches, and the source's weight that it was made from."""
    names = [name for name, info in after.items() if re.search(pattern, name) and len(info.shape) == 2]
    if not names:
        return None
    first = min(names, key=lambda name: (len(name), name))  # layer 2 comes before layer 10
    source = manifest["tensors"].get(first, {}).get("source") if manifest else first
    return (before[source], after[first]) if source in before and len(before[source].shape) == 2 else None


def origins_of(manifest: Mapping[str, Any], info: TensorInfo) -> tuple[Kinds, ...]:
    """Whether each row and each column is kept, a copy or fresh; nothing where growth.json does not say.

    The units that several axes span are fresh if one part is, else copies if one part is.
    """
    if not manifest:
        return ()
    dimensions, sizes = manifest["tensors"][info.name]["axes"], manifest["sizes"]["after"]
    told = [math.prod(sizes.get(name, 0) for name in axes) for axes in dimensions]
    if told != list(info.shape):  # growth.json describes another tensor, or a fused tensor's first part
        return ()
    changed = manifest["axes"]
    kinds = {
        name: axis_kinds(changed[name]) if name in changed else np.zeros(sizes[name], np.uint8)
        for name in chain(*dimensions)
    }
    return tuple(kinds_along(axes, kinds) for axes in dimensions)
