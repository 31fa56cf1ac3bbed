"""Show the measurements as tables and pictures."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

GOALS = {
    "growth --help": "< 0.3 s",
    "growth plan, llama of 405 B": "< 2 s, < 300 MB",
}
# What other programs needed for similar outputs, measured earlier on the same kind of machine (2 cores, 24 GB,
# a virtual disk), in environments of their own, because mergekit does not run with transformers 5. They did not run in
# turns with ours, so compare only orders of magnitude.
MEASURED_BEFORE = (
    # part to compare with, program, what it did, bytes out, seconds, bytes of peak memory
    ("phi", "mergekit 0.1.5 passthrough", "phi, 24 to 32 layers", 3.64e9, 11.3, 6.9e9),
    ("phi", "mergekit 0.1.5, shards of 200 MB", "phi, 24 to 32 layers", 3.64e9, 8.8, 3.5e9),
    ("llama-depth", "mergekit 0.1.5 passthrough", "llama, 22 to 32 layers", 3.08e9, 10.7, 5.7e9),
    ("llama-width", "HyperCloning", "llama, twice as wide", 8.28e9, 76.6, 17.5e9),
    ("llama-width", "HyperCloning", "pythia, twice as wide", 10.5e9, 90.5, 15e9),
)
OURS, OTHER = "#0072b2", "#999999"
console = Console(width=150, record=True)


def table(title: str, *columns: str) -> Table:
    found = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        found.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
    return found


def spans(values: dict[str, float], digits: str = ".3g") -> str:
    """Format a spread as least / median / greatest."""
    return " / ".join(f"{values[key]:{digits}}" for key in ("min", "median", "max"))


def show(figures: dict, path: Path) -> None:
    """Print the figures as tables and write them to a file; leave out parts that were not measured."""
    console.print("Everywhere: min / median / max. MB are 2**20 bytes of peak resident memory.")
    for part in ("phi", "llama-depth", "llama-width"):
        if part in figures:
            console.print(_comparison(part, figures[part]), *figures[part]["skipped"])
    before = [row for row in MEASURED_BEFORE if row[0] in figures]
    if before:
        console.print(_before(figures, before))
    if "sweep" in figures:
        console.print(_sweep(figures["sweep"]))
    if "verify" in figures:
        console.print(_verify(figures["verify"]))
    if "exactness" in figures:
        console.print(_exactness(figures["exactness"]))
    if "startup" in figures:
        console.print(_start_up(figures["startup"]))
    path.write_text("".join(f"{line.rstrip()}\n" for line in console.export_text().splitlines()))
    console.print(f"Tables: {path}")


def _comparison(part: str, found: dict) -> Table:
    size = f"{found['source_bytes'] / 1e9:.2f} GB to {found['bytes'] / 1e9:.2f} GB"
    title = f"{part}: {size}, {found['rounds']} rounds, on {found['place']}; ratio: seconds of growth over its"
    rows = table(title, "", "seconds", "CPU seconds", "peak MB", "ratio")
    for name, label in _programs(found):
        one = found[name]
        ratio = spans(one["ratio"], ".2f") if "ratio" in one else ""
        rows.add_row(label, spans(one["seconds"]), spans(one["cpu_seconds"]), spans(one["peak_mb"], ".0f"), ratio)
    return rows


def _programs(found: dict) -> Iterable[tuple[str, str]]:
    labels = {
        "growth": "growth grow",
        "cp": "cp -r of the output",
        "transformers": "transformers, load and save the output",
        "mergekit": "mergekit passthrough",
    }
    return [(name, label) for name, label in labels.items() if name in found]


def _before(figures: dict, before: list[tuple]) -> Table:
    rows = table(
        "Measured before, not in turns", "", "output", "seconds", "GB/s", "peak GB", "ours GB/s", "ours GB", ""
    )
    for part, program, what, size, seconds, memory in before:
        ours = figures[part]["growth"]
        speed, peak = ours["gb_per_second"]["median"], ours["peak_mb"]["median"] * 2**20
        theirs = size / seconds / 1e9
        times = f"{speed / theirs:.1f}× as fast, {memory / peak:.0f}× less memory"
        row = (f"{program}: {what}", f"{size / 1e9:.2f} GB", f"{seconds:.1f}", f"{theirs:.2f}", f"{memory / 1e9:.1f}")
        rows.add_row(*row, f"{speed:.2f}", f"{peak / 1e9:.2f}", times)
    return rows


def _sweep(found: dict) -> Table:
    a, b, r2 = line(found)
    title = f"By size, a quarter wider, {found['rounds']} rounds, on {found['place']}"
    rows = table(title, "source", "GB in", "GB out", "largest", "seconds", "GB/s", "peak MB", "source read, s")
    rows.caption = f"seconds = {a:.2f} + {b * 1e9:.3f} × GB out, R² = {r2:.4f}"
    for name, point in found["points"].items():
        sizes = (f"{point[key] / 1e9:.2f}" for key in ("source_bytes", "bytes", "largest_tensor"))
        speeds = (spans(point["seconds"]), spans(point["gb_per_second"]), spans(point["peak_mb"], ".0f"))
        rows.add_row(name, *sizes, *speeds, spans(point["read_seconds"]))
    return rows


def line(found: dict) -> tuple[float, float, float]:
    """Fit median seconds by bytes of output: return seconds at zero bytes, seconds per byte, and R²."""
    points = found["points"].values()
    x = np.array([point["bytes"] for point in points], float)
    y = np.array([point["seconds"]["median"] for point in points])
    slope, start = np.polyfit(x, y, 1)
    return float(start), float(slope), float(np.corrcoef(x, y)[0, 1] ** 2)


def _verify(found: dict) -> Table:
    tokens = " × ".join(map(str, found["shape"]))
    title = f"growth verify of the phi, float32, {tokens} tokens, {found['rounds']} rounds"
    rows = table(title, "", "seconds", "peak MB")
    rows.add_row("growth verify", spans(found["verify"]["seconds"]), spans(found["verify"]["peak_mb"], ".0f"))
    bare = found["forward"]
    rows.add_row("both forward passes, models in memory", spans(bare["seconds"]), spans(bare["peak_mb"], ".0f"))
    rows.add_row("the same, loading included", spans(bare["with_loading"]))
    rows.add_row("ratio to the passes (goal: at most 2, 2500 MB)", spans(found["ratio"], ".2f"))
    rows.add_row("ratio, loading included", spans(found["ratio_with_loading"], ".2f"))
    return rows


def _exactness(found: list[dict]) -> Table:
    rows = table(
        "Errors that growth verify finds", "model", "dtype", "error", "expected", "worst layer", "KL", "s", "peak MB"
    )
    for row in found:
        errors = (f"{row[key]:.2e}" for key in ("relative_error", "floor", "worst_layer", "kl"))
        rows.add_row(row["model"], row["dtype"], *errors, f"{row['seconds']:.0f}", f"{row['peak_mb']:.0f}")
    return rows


def _start_up(found: dict) -> Table:
    rows = table("Start-up", "", "seconds", "CPU seconds", "peak MB", "goal")
    for name, one in found.items():
        about = f" ({one['tensors']:,} tensors from {one['files']:,} files)" if "files" in one else ""
        spread = (spans(one["seconds"]), spans(one["cpu_seconds"]), spans(one["peak_mb"], ".0f"))
        rows.add_row(name + about, *spread, GOALS.get(name, ""))
    return rows


# ------------------------------------------------- pictures


def draw(figures: dict, folder: Path) -> None:
    """Draw bench.png (seconds of all programs) and sweep.png (seconds and memory by size)."""
    import matplotlib

    matplotlib.use("Agg")
    parts = [part for part in ("phi", "llama-depth", "llama-width") if part in figures]
    if parts:
        _draw_comparisons({part: figures[part] for part in parts}, folder / "bench.png")
        console.print(f"Picture: {folder / 'bench.png'}")
    if "sweep" in figures:
        _draw_sweep(figures["sweep"], folder / "sweep.png")
        console.print(f"Picture: {folder / 'sweep.png'}")


def _draw_comparisons(figures: dict, path: Path) -> None:
    """Draw bars with their spread, one panel per growth."""
    import matplotlib.pyplot as plt

    heights = [len(list(_programs(found))) for found in figures.values()]
    layout = {"height_ratios": heights, "hspace": 0.1}
    figure, panels = plt.subplots(
        len(figures), figsize=(8, 0.45 * sum(heights) + len(figures)), layout="constrained", squeeze=False,
        gridspec_kw=layout,
    )  # fmt: skip
    for (part, found), axes in zip(figures.items(), panels[:, 0], strict=True):
        programs = list(_programs(found))[::-1]
        for place, (name, _) in enumerate(programs):
            values = found[name]["seconds"]
            reach = [[values["median"] - values["min"]], [values["max"] - values["median"]]]
            color = OURS if name == "growth" else OTHER
            axes.barh(place, values["median"], xerr=reach, color=color, capsize=4, height=0.6)
            axes.annotate(
                f"{values['median']:.1f} s", (values["max"], place), (5, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(range(len(programs)), [label for _, label in programs])
        axes.set_title(f"{part}: {found['bytes'] / 1e9:.2f} GB of output on {found['place']}", loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.15)
    panels[-1, 0].set_xlabel("seconds, median and range")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_sweep(found: dict, path: Path) -> None:
    """Draw seconds and peak memory by bytes of output, with the fitted line."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    start, slope, r2 = line(found)
    largest = max(point["bytes"] for point in found["points"].values())
    panels[0].plot([0, largest / 1e9], [start, start + slope * largest], color=OTHER, zorder=0)
    panels[0].set_title(f"{1 / slope / 1e9:.2f} GB/s behind {start:.1f} s, R² = {r2:.3f}", loc="left", fontsize=10)
    for axes, key, label in zip(panels, ("seconds", "peak_mb"), ("seconds", "peak memory, MB"), strict=True):
        for number, (name, point) in enumerate(found["points"].items()):
            values, x = point[key], point["bytes"] / 1e9
            reach = [[values["median"] - values["min"]], [values["max"] - values["median"]]]
            axes.errorbar(x, values["median"], yerr=reach, fmt="o", color=OURS, capsize=4)
            right = x > largest / 2e9
            away = (-8 if right else 8, 8 if number % 2 else -14)
            side = "right" if right else "left"
            axes.annotate(name, (x, values["median"]), away, textcoords="offset points", fontsize=8, ha=side)
        axes.set_xlabel("GB of output")
        axes.set_ylabel(label)
        axes.set_ylim(0, 1.15 * max(point[key]["max"] for point in found["points"].values()))
        axes.set_xlim(0, 1.08 * largest / 1e9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
