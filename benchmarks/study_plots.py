"""Draw the pictures of the study."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from study_arms import BASE, BY_NAME
from study_numbers import COUNTS, Results, reported

COLOURS = {
    "scratch": "#222222", "small": "#9a9a9a", "default": "#1f5fbf", "exact": "#2a9d8f", "free": "#7fb2ff",
    "submatrix": "#d1495b", "g-stack": "#e9a03b", "depth-one": "#8e5ea2", "sparkling": "#c2739b",
    "unit-shares": "#8a6d3b", "random": "#b0a160", "default-half": "#5b8def", "default-tenth": "#123f80",
}  # fmt: skip
LABELS = {
    "scratch": "from scratch", "small": "small model alone", "default": "double-width (default)",
    "exact": "double-width-exact", "free": "double-width, source free", "submatrix": "sub-matrix (lossy)",
    "g-stack": "G_stack, 2 → 6 layers (lossy)", "depth-one": "1 → 6 layers, identity", "sparkling": "SPARKLING",
    "unit-shares": "shares per unit (old default)", "random": "shares: random",
    "default-half": "default, grown at 50 %", "default-tenth": "default, grown at 10 %",
}  # fmt: skip


def tokens_axis(axes: Axes) -> None:
    """Budgets on a logarithmic axis."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(reported(BASE), [f"{budget:g}" for budget in reported(BASE)])
    axes.minorticks_off()
    axes.set_xlabel("budget: FLOPs of so many tokens per parameter from scratch")
    axes.grid(alpha=0.2)


def line(axes: Axes, results: Results, name: str, value: str) -> None:
    """A figure of an arm by budget, with the range over seeds."""
    points = []
    for budget in reported(BASE):
        arm = BY_NAME[name]
        if value == "difference":
            scratch, own = results.losses(BASE, BY_NAME["scratch"], budget), results.losses(BASE, arm, budget)
            if scratch and own:
                points.append((budget, [loss - scratch.mean for loss in own.values], True))
        elif found := results.saving(BASE, arm, budget):
            points.append((budget, list(found.values), not found.bound))
    if points:
        budgets = [budget for budget, *_ in points]
        means = [sum(values) / len(values) for _, values, _ in points]
        style = {"color": COLOURS[name], "lw": 2.2 if name in ("default", "scratch") else 1.4}
        axes.plot(budgets, means, label=LABELS[name], **style)
        for (budget, values, measured), middle in zip(points, means, strict=True):
            axes.plot([budget] * 2, [min(values), max(values)], color=COLOURS[name], lw=1)
            axes.plot(budget, middle, "o", ms=5, color=COLOURS[name], mfc=COLOURS[name] if measured else "white")


def shade(axes: Axes, results: Results) -> None:
    """Mark the budgets that do not count."""
    out = [budget for budget in reported(BASE) if results.counts(BASE, budget) is False]
    if out:
        axes.axvspan(reported(BASE)[0] / 1.2, max(out) * 1.25, color="#eeeeee", zorder=0, lw=0)
        text = f"no claim: the small model alone\nis within {COUNTS} nats, or better"
        axes.text(reported(BASE)[0] / 1.15, axes.get_ylim()[1], text, va="top", fontsize=8, color="#666666")
    axes.set_xlim(reported(BASE)[0] / 1.2, reported(BASE)[-1] * 1.2)


def finish(figure: plt.Figure, path: Path) -> None:
    """Write it small."""
    figure.savefig(path, dpi=100, bbox_inches="tight", pil_kwargs={"optimize": True})
    plt.close(figure)


def plot_saving(results: Results, path: Path) -> None:
    """Saving against tokens per parameter."""
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    for name in ("default", "exact", "submatrix", "g-stack", "depth-one", "sparkling", "unit-shares"):
        line(axes, results, name, "saving")
    axes.axhline(1, color="#222222", lw=0.8, ls="--")
    tokens_axis(axes)
    axes.set_ylabel("saving: FLOPs from scratch / FLOPs, equal loss")
    shade(axes, results)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    finish(figure, path)


def plot_losses(results: Results, path: Path) -> None:
    """Final loss against FLOPs, and the difference to scratch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for name in ("scratch", "small", "default", "exact", "free"):
        for seed in range(BASE.seeds):
            if curve := results.curve(BASE, BY_NAME[name], seed):
                label = LABELS[name] if seed == 0 else None
                left.plot(*zip(*curve, strict=True), "o-", ms=3, color=COLOURS[name], lw=1.2, label=label)
    left.set_xscale("log")
    left.set_xlabel("training FLOPs")
    left.set_ylabel("held-out loss after decay (nats per byte)")
    left.grid(alpha=0.2, which="both")
    left.legend(fontsize=8, frameon=False)
    for name in ("small", "default", "exact", "submatrix", "g-stack", "depth-one", "sparkling", "unit-shares"):
        line(right, results, name, "difference")
    right.axhline(0, color="#222222", lw=0.8, ls="--")
    tokens_axis(right)
    right.set_ylabel("loss less that from scratch (nats per byte)")
    right.legend(fontsize=8, frameon=False)
    finish(figure, path)


def plot_time(results: Results, path: Path) -> None:
    """The loss of the default by the time of growth."""
    figure, axes = plt.subplots(figsize=(5.6, 3.4))
    for name in ("default-tenth", "default", "default-half", "sparkling"):
        line(axes, results, name, "difference")
    axes.axhline(0, color="#222222", lw=0.8, ls="--")
    tokens_axis(axes)
    axes.set_ylabel("loss less that from scratch (nats per byte)")
    axes.legend(fontsize=8, frameon=False)
    finish(figure, path)


def draw(results: Results, folder: Path) -> None:
    """All of them."""
    plot_saving(results, folder / "saving.png")
    plot_losses(results, folder / "losses.png")
    plot_time(results, folder / "time.png")
