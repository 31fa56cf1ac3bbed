"""Draw docs/concepts-*.svg: a small matrix as the algebra of the library grows it, and layers as recipes add them."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch

from growth.algebra.expansion import FRESH, Expansion

HERE = Path(__file__).parent
OLD, COPY, NEW, SILENT = "#8a8f98", "#1f5fbf", "#e9a03b", "#ffffff"
plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "growth", "font.size": 10, "font.family": "sans-serif"})


def matrix(axes, weights, writes, reads, title):
    """A grown matrix: each value in its cell, in the colour of what it is."""
    rows, columns = writes.source, reads.source
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            fresh = FRESH in (row, column)
            value = weights[row, column] * writes.write[i] * reads.read[j]
            zero = reads.read[j] == 0 if not fresh else (column == FRESH and row != FRESH)
            again = not fresh and (i >= writes.size or j >= reads.size)
            colour = SILENT if zero and fresh else NEW if fresh else COPY if again else OLD
            axes.add_patch(plt.Rectangle((j, -i), 1, 1, facecolor=colour, edgecolor="#444444", lw=0.8))
            said = "0" if colour == SILENT else "new" if fresh else f"{value:.1f}"
            ink = "#222222" if colour in (SILENT, NEW) else "white"
            axes.text(j + 0.5, 0.5 - i, said, ha="center", va="center", color=ink, fontsize=8.5)
    axes.set_xlim(-0.2, 4.2)
    axes.set_ylim(-3.2, 1.2)
    axes.set_title(title, fontsize=10.5)
    axes.set_aspect("equal")
    axes.axis("off")


def widths():
    """The source's matrix, tiled, and padded."""
    weights = np.array([[0.6, -0.4], [0.2, 0.8]])
    same, tiled = Expansion.identity(2), Expansion.copies(2, np.array([0, 1, 0, 1]))
    padded = Expansion.padding(2, 4, silent="read")
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 3.4), gridspec_kw={"wspace": 0.3})
    matrix(left, weights, same, same, "source")
    matrix(middle, weights, tiled, tiled, "init: tile\nreaders take half of each copy")
    matrix(right, weights, padded, padded, "init: pad\nnothing reads the new units yet")
    legend(figure)
    save(figure, "concepts-width")


def legend(figure):
    """What the colours mean."""
    kinds = {"the source's": OLD, "copies": COPY, "new, random": NEW, "zero": SILENT}
    handles = [plt.Rectangle((0, 0), 1, 1, facecolor=c, edgecolor="#444444", lw=0.8) for c in kinds.values()]
    figure.legend(handles, kinds, loc="lower center", ncol=4, frameon=False, fontsize=9)


def depths():
    """Three layers, and six by identity layers."""
    figure, axes = plt.subplots(figsize=(9, 2.6))
    for column, (names, x) in enumerate((((1, 2, 3), 0.0), ((1, 1, 2, 2, 3, 3), 4.9))):
        seen = set()
        axes.annotate(
            "",
            (x + len(names) * 0.9 + 0.55, 0.35),
            (x - 0.45, 0.35),
            arrowprops={"arrowstyle": "->", "lw": 1.4},
            zorder=0,
        )
        for place, name in enumerate(names):
            new = name in seen
            seen.add(name)
            box = FancyBboxPatch(
                (x + place * 0.9, 0), 0.62, 0.7, boxstyle="round,pad=0.03", fc=COPY if new else OLD, ec="none"
            )
            axes.add_patch(box)
            axes.text(x + place * 0.9 + 0.31, 0.35, str(name), color="white", ha="center", va="center", weight="bold")
            if new:
                axes.text(x + place * 0.9 + 0.31, 0.85, "adds 0", ha="center", fontsize=8.5, color=COPY)
        title = "source: 3 layers" if not column else "deepen, init: identity: 6 layers, the same function"
        axes.text(x - 0.4, 1.25, title, fontsize=10.5)
    axes.set_xlim(-0.6, 10.9)
    axes.set_ylim(-0.2, 1.6)
    axes.axis("off")
    save(figure, "concepts-depth")


def norms():
    """The residual stream under a norm: tiled, and padded with the mean."""
    rng = np.random.default_rng(3)
    stream = rng.normal(0.4, 1, 6)
    figure, panels = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True)
    pad = np.full(6, stream.mean())
    for axes, values, colours, title in (
        (panels[0], stream, [OLD] * 6, "source"),
        (panels[1], np.tile(stream, 2), [OLD] * 6 + [COPY] * 6, "tiled"),
        (panels[2], np.concatenate([stream, pad]), [OLD] * 6 + [NEW] * 6, "padded with the mean"),
    ):
        axes.bar(range(len(values)), values, color=colours, width=0.85)
        axes.axhline(values.mean(), color="#d1495b", lw=1.2, ls="--")
        axes.set_title(f"{title}\nmean {values.mean():.2f}, deviation {values.std():.2f}", fontsize=10.5)
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    panels[0].set_ylabel("value of each channel")
    save(figure, "concepts-norm")


def save(figure, name):
    """Write a picture, the same bytes each time."""
    figure.savefig(
        HERE / f"{name}.svg", bbox_inches="tight", metadata={"Date": None, "Creator": None}, facecolor="white"
    )
    plt.close(figure)


if __name__ == "__main__":
    widths()
    depths()
    norms()
