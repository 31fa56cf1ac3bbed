"""Draw the pictures of the study."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from study_arms import BASE, BY_NAME
from study_numbers import COUNTS, Figure, Results, reported

STYLES = {  # colour and label
    "scratch": ("#222222", "from scratch"),
    "small": ("#9a9a9a", "small model alone"),
    "default": ("#1f5fbf", "double-width (default), grown at 25 %"),
    "exact": ("#2a9d8f", "double-width-exact"),
    "free": ("#7fb2ff", "double-width, source free"),
    "submatrix": ("#d1495b", "sub-matrix (lossy)"),
    "g-stack": ("#e9a03b", "G_stack, 2 → 6 layers (lossy)"),
    "depth-one": ("#8e5ea2", "1 → 6 layers, identity"),
    "sparkling": ("#c2739b", "SPARKLING, grown at 50 %"),
    "unit-shares": ("#8a6d3b", "shares per unit (old default)"),
    "default-half": ("#5b8def", "double-width, grown at 50 %"),
    "default-tenth": ("#123f80", "double-width, grown at 10 %"),
}
PUBLISHED = ("submatrix", "unit-shares", "sparkling", "g-stack", "depth-one")


def tokens_axis(axes: Axes, budgets: Sequence[float]) -> None:
    """Budgets on a logarithmic axis."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
    axes.minorticks_off()
    axes.set_xlabel("FLOPs, in tokens per parameter from scratch")
    axes.grid(alpha=0.2)


def line(axes: Axes, name: str, figures: Sequence[tuple[float, Figure | None]], factors: bool) -> None:
    """A figure of an arm by budget, with the interval of factors or the range; hollow where it is only a bound."""
    found = [(budget, figure) for budget, figure in figures if figure]
    colour, label = STYLES[name]
    if found:
        axes.plot(
            [budget for budget, _ in found], [figure.mean for _, figure in found],
            color=colour, label=label, lw=2.2 if name == "default" else 1.4,
        )  # fmt: skip
    for budget, figure in found:
        ends = (factors and figure.interval) or (min(figure.values), max(figure.values))
        axes.plot([budget] * 2, ends, color=colour, lw=1)
        axes.plot(budget, figure.mean, "o", ms=5, color=colour, mfc="white" if figure.bound else colour)


def differences(axes: Axes, results: Results, names: Sequence[str]) -> None:
    """Losses less the mean from scratch."""
    for name in names:
        figures = []
        for budget in reported(BASE):
            scratch, own = (results.losses(BASE, BY_NAME[each], budget) for each in ("scratch", name))
            both = scratch and own
            figures.append((budget, Figure(tuple(v - scratch.mean for v in own.values)) if both else None))
        line(axes, name, figures, factors=False)
    axes.axhline(0, color="#222222", lw=0.8, ls="--")
    tokens_axis(axes, reported(BASE))
    axes.set_ylabel("loss less that from scratch (nats per byte)")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def finish(figure: plt.Figure, path: Path) -> None:
    """Write it small."""
    figure.savefig(path, dpi=100, bbox_inches="tight", pil_kwargs={"optimize": True})
    plt.close(figure)


def plot_saving(results: Results, path: Path) -> None:
    """Saving against tokens per parameter; budgets that do not count are shaded."""
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    budgets = reported(BASE)
    for name in ("default", "default-tenth", "exact", *PUBLISHED):
        line(axes, name, [(budget, results.saving(BASE, BY_NAME[name], budget)) for budget in budgets], factors=True)
    axes.axhline(1, color="#222222", lw=0.8, ls="--")
    tokens_axis(axes, budgets)
    axes.set_ylabel("saving: FLOPs from scratch / FLOPs, equal loss")
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.15 * (high - low), high)
    axes.set_xlim(budgets[0] / 1.2, budgets[-1] * 1.2)
    out = [budget for budget in budgets if results.counts(BASE, budget) is False]
    if out:
        axes.axvspan(budgets[0] / 1.2, max(out) * 1.2, color="#eeeeee", zorder=0, lw=0)
        text = f"the small model alone is as good (within {COUNTS} nats)"
        axes.text(budgets[0] / 1.15, axes.get_ylim()[0], text, va="bottom", fontsize=8, color="#666666")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    finish(figure, path)


def plot_losses(results: Results, path: Path) -> None:
    """Final loss against FLOPs, and the difference to scratch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    scratch = results.curve(BASE, BY_NAME["scratch"], 0)
    unit = scratch[-1][0] / BASE.budgets[len(scratch) - 1] if scratch else 1
    for name in ("scratch", "small", "default", "exact", "free"):
        for seed in range(BASE.seeds):
            points = [(flops / unit, loss) for flops, loss in results.curve(BASE, BY_NAME[name], seed)]
            colour, label = STYLES[name]
            if points:
                left.plot(*zip(*points, strict=True), "o-", ms=3, color=colour, lw=1.2, label=None if seed else label)
    tokens_axis(left, BASE.budgets)
    left.set_ylabel("held-out loss after decay (nats per byte)")
    left.legend(fontsize=8, frameon=False)
    differences(right, results, ("default", "default-tenth", "exact", *PUBLISHED))
    finish(figure, path)


def plot_time(results: Results, path: Path) -> None:
    """The default by the time of growth."""
    figure, axes = plt.subplots(figsize=(5.6, 3.4))
    differences(axes, results, ("default-tenth", "default", "default-half", "sparkling"))
    finish(figure, path)


def draw(results: Results, folder: Path) -> None:
    """All of them."""
    plot_saving(results, folder / "saving.png")
    plot_losses(results, folder / "losses.png")
    plot_time(results, folder / "time.png")
