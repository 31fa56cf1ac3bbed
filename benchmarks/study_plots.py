"""Draw the plots of the study."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from study_arms import BY_NAME
from study_numbers import MOST, SCRATCH_LENGTHS, Results, Spread

DEFAULT, SCRATCH, PUBLISHED = "#1f5fbf", "#222222", "#b8b8b8"
OTHERS = ["#d1495b", "#2a9d8f", "#e9a03b", "#8e5ea2"]
PANELS = {
    "width": "Width: copies or fresh units",
    "symmetry": "Telling copies apart (default: random shares)",
    "depth": "New layers (default: interleaved identity)",
    "reuse": "Lossy reuse of the weights",
    "training": "How training continues",
    "control": "Controls",
}

# (what, least, greatest): published factors by which fewer tokens or FLOPs are needed than from scratch
SPEEDUPS = (
    ("HyperCloning, OPT/Pythia/OLMo", 2.2, 4.0),
    ("bert2BERT, GPT base (47 % saved)", 1 / 0.53, 1 / 0.53),
    ("LiGO, up to (50 % saved)", 2.0, 2.0),
    ("G_stack, 7B at 300B tokens", 300 / 194, 300 / 194),
    ("LEMON, BERT (33.2 % saved)", 1 / 0.668, 1 / 0.668),
)


def band(axes: Axes, results: Results, name: str, colour: str, label: str, strong: bool = False) -> None:
    """The mean curve of an arm over its seeds, and the range between them."""
    curves = [np.array(results.curve(name, seed)) for seed in results.seeds(name)]
    if not curves:
        return
    tokens, losses = curves[0][:, 0] / 1e3, np.stack([curve[:, 1] for curve in curves])
    axes.plot(tokens, losses.mean(0), color=colour, lw=2.2 if strong else 1.5, label=label, zorder=3 if strong else 2)
    axes.fill_between(tokens, losses.min(0), losses.max(0), color=colour, alpha=0.18, lw=0)


def limits(results: Results) -> tuple[float, float]:
    """Losses worth a look: from the least of all to a little over where the grown models start."""
    curves = [results.curve(*run) for run in results.runs if run[0] in BY_NAME and BY_NAME[run[0]].length <= 1]
    least = min(curve[-1][1] for curve in curves)
    starts = [results.curve("default", seed)[0][1] for seed in results.seeds("default")]
    ends = [results.curve("scratch", seed)[-1][1] for seed in results.seeds("scratch")]
    top = max([*starts, *ends, least + 0.1])
    return least - 0.05 * (top - least), top + 0.6 * (top - least)


def finish(figure: plt.Figure, path: Path) -> None:
    """Writes it small."""
    figure.savefig(path, dpi=90, bbox_inches="tight", pil_kwargs={"optimize": True})
    plt.close(figure)


def plot_curves(results: Results, path: Path) -> None:
    """Held-out loss by tokens, one panel for each thing that is varied."""
    done = results.arms
    panels = [factor for factor in PANELS if any(arm.factor == factor for arm in done)]
    if not panels:
        return
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4.3 * columns, 3.5 * rows), sharey=True, squeeze=False)
    for axes, factor in zip(grid.flat, panels, strict=False):
        band(axes, results, "scratch", SCRATCH, "from scratch", strong=True)
        band(axes, results, "default", DEFAULT, "default", strong=True)
        for arm, colour in zip([arm for arm in done if arm.factor == factor], OTHERS, strict=False):
            band(axes, results, arm.name, colour, arm.name)
        axes.set_title(PANELS[factor], fontsize=10)
        axes.set_ylim(*limits(results))
        axes.legend(fontsize=7, frameon=False, loc="lower left", ncols=2)  # where no curve runs
        axes.grid(alpha=0.2)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("held-out loss (nats per token)")
    for axes in grid[-1]:
        axes.set_xlabel("thousand tokens of the target model")
    figure.tight_layout()
    finish(figure, path)


def plot_beginning(results: Results, path: Path) -> None:
    """The first fifth of training, where a re-warmed learning rate undoes something."""
    names = ("default", "grown-state", "half-peak", "long-warmup", "grown-half-peak")
    names = [name for name in names if results.seeds(name)]
    figure, axes = plt.subplots(figsize=(6.5, 3.8))
    lows, highs, end = [], [], 1.0
    for name, colour in zip(names, [DEFAULT, *OTHERS], strict=False):
        band(axes, results, name, colour, BY_NAME[name].label if name != "default" else "default", name == "default")
        curves = [results.curve(name, seed) for seed in results.seeds(name)]
        end = curves[0][-1][0] / 5 / 1e3
        early = [loss for curve in curves for tokens, loss in curve if tokens / 1e3 <= end]
        lows.append(min(early)), highs.append(max(early))
    if names:
        gap = max(highs) - min(lows) or 0.1
        axes.set_ylim(min(lows) - 0.05 * gap, max(highs) + 0.05 * gap)
        axes.set_xlim(0, end)
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_xlabel("thousand tokens of the target model")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.grid(alpha=0.2)
    finish(figure, path)


def plot_flops(results: Results, path: Path) -> None:
    """Held-out loss by training FLOPs, the source's counted or not."""
    figure, axes = plt.subplots(figsize=(6.5, 4.2))

    def line(name: str, colour: str, style: str, label: str, counted: bool) -> None:
        seeds = results.seeds(name, "source")
        if not seeds:
            return
        curves = [np.array(results.curve(name, seed)) for seed in seeds]
        run = results.runs[name, seeds[0]]
        before = results.flops(name, seeds[0], counted) - results.flops(name, seeds[0], False)
        flops = (before + curves[0][:, 0] * run["flops_per_token"]) / 1e12
        losses = np.stack([curve[:, 1] for curve in curves])
        axes.plot(flops, losses.mean(0), style, color=colour, lw=1.8, label=label)
        axes.fill_between(flops, losses.min(0), losses.max(0), color=colour, alpha=0.15, lw=0)

    for (name, length), grey in zip(SCRATCH_LENGTHS, ("#222222", "#707070", "#a8a8a8"), strict=True):
        line(name, grey, "-", f"from scratch, {length}x the tokens", False)
    line("source", "#2a9d8f", "-", "the small source", False)
    line("default", DEFAULT, ":", "default, source not counted", False)
    line("default", DEFAULT, "-", "default, source counted", True)
    axes.set_xlim(0, None)
    low, high = limits(results)
    axes.set_ylim(low, high + 0.5 * (high - low))
    axes.set_xlabel("training TFLOPs (6 N D)")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.2)
    finish(figure, path)


def plot_speedups(results: Results, path: Path) -> None:
    """Speed-ups over training from scratch, ours beside the published ones."""
    rows: list[tuple[str, Spread, bool, str]] = []
    for arm in results.arms:
        if arm.grows and arm.needs_source:
            known = [each for seed in results.seeds(arm.name) if (each := results.speedup(arm.name, seed))]
            if known:
                colour = DEFAULT if arm.name == "default" else "#8fb1e3" if arm.exact else "#d99aa3"
                rows.append((arm.name, Spread(tuple(f for f, _ in known)), all(r for _, r in known), colour))
    rows.sort(key=lambda row: -row[1].mean)
    rows += [(name, Spread((low, high)), True, PUBLISHED) for name, low, high in SPEEDUPS]
    figure, axes = plt.subplots(figsize=(7.2, 0.27 * len(rows) + 1.2))
    for place, (_, spread, reached, colour) in enumerate(rows):
        axes.barh(place, spread.mean, color=colour, height=0.72)
        if max(spread.values) > min(spread.values):
            axes.plot([min(spread.values), max(spread.values)], [place, place], color="#333333", lw=1.2)
        text = f"{'' if reached else '≥ '}{spread.mean:.2f}"
        if colour == PUBLISHED:  # only the range was published, so no middle is drawn
            text = " – ".join(f"{value:.3g}" for value in sorted(set(spread.values)))
        axes.text(max(spread.values) + 0.05, place, text, va="center", fontsize=8)
    axes.axvline(1, color="#222222", lw=0.8, ls="--")
    axes.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"tokens from scratch to the same loss / tokens after growth (≥: not reached with {MOST}x)")
    colours = {"default": DEFAULT, "exact": "#8fb1e3", "lossy": "#d99aa3", "published, other models": PUBLISHED}
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    axes.legend(handles, list(colours), fontsize=8, frameon=False, loc="lower right")
    axes.set_xlim(0, max(max(row[1].values) for row in rows) * 1.25)
    finish(figure, path)


def draw(results: Results, folder: Path) -> None:
    """All of them."""
    plot_curves(results, folder / "curves.png")
    plot_beginning(results, folder / "beginning.png")
    plot_flops(results, folder / "flops.png")
    plot_speedups(results, folder / "speedups.png")
