"""Full-size figures: growing a Phi-1.5 into a Phi-2 beside a plain copy, and verifying it.

    make bench        (or: python benchmarks/bench.py --output out/bench; 30 GB of disk, about 20 minutes)

Every command is a process of its own, timed from outside, start-up included; peak memory is what the
operating system says of that process. Growth and copy take turns, so that their ratio holds on a machine
whose speed drifts. Prints tables, and writes bench.json and bench.png.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from random_checkpoint import MODELS, write
from rich.console import Console
from rich.table import Table

RECIPE = "phi-1.5-to-phi-2"
TWO_TO_THREE_LAYERS = """\
description: two layers of Phi-1.5 into three of Phi-2's geometry, exact
steps:
  - {op: widen, axis: residual, to: 2560, init: tile, shares: random}
  - {op: widen, axis: ffn, to: 10240, init: tile, shares: random}
  - {op: widen, axis: head_dim, to: 80, init: tile, shares: random}
  - {op: deepen, to: 3, order: interleave, init: identity}
"""
console = Console(width=120, soft_wrap=True)


@dataclass(frozen=True)
class Run:
    """One process: seconds of wall clock, peak resident memory in MB, what it printed."""

    seconds: float
    peak_mb: float
    output: str


def run(*command: object, may_fail: bool = False) -> Run:
    """Runs a command and measures it from outside."""
    words = [str(word) for word in command]
    console.print(f"[dim]$ {' '.join(words)}[/]")
    began = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and not may_fail:
        raise SystemExit(f"{' '.join(words)} failed with status {process.returncode}")
    return Run(seconds, usage.ru_maxrss / 1024, output)


def growth(*arguments: object, may_fail: bool = False) -> Run:
    """A growth command, as installed beside this interpreter."""
    return run(Path(sys.executable).parent / "growth", *arguments, may_fail=may_fail)


def spread(values: list[float]) -> dict[str, float]:
    """Least, middle and largest of several."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def grow_beside_copy(source: Path, output: Path, rounds: int) -> dict:
    """Pairs of `growth grow` and `cp -r` of what it wrote; the last growth stays."""
    grown, copy = output / "phi-2-init", output / "copy"
    rows = []
    for number in range(rounds + 1):
        for folder in (grown, copy):
            shutil.rmtree(folder, ignore_errors=True)
        os.sync()  # neither pays for what the other left to be written back
        growing = growth("grow", RECIPE, "--source", source, "--output", grown)
        os.sync()
        copying = run("cp", "-r", grown, copy)
        if number:  # the first pair warms the page cache and the memory
            rows.append((growing, copying))
    shutil.rmtree(copy)
    return {
        "bytes": sum(path.stat().st_size for path in grown.iterdir()),
        "grow_seconds": spread([growing.seconds for growing, _ in rows]),
        "cp_seconds": spread([copying.seconds for _, copying in rows]),
        "ratio": spread([growing.seconds / copying.seconds for growing, copying in rows]),
        "grow_peak_mb": spread([growing.peak_mb for growing, _ in rows]),
    }


def verification(source: Path, grown: Path, dtype: str) -> dict:
    """One verification of whole models, from disk."""
    result = growth("verify", source, grown, "--dtype", dtype, "--json")
    report = json.loads(result.output)
    return {
        "dtype": dtype,
        "passed": report["passed"],
        "relative_error": report["logits"]["relative_error"],
        "max_abs_error": report["logits"]["max_abs_error"],
        "floor": report["floor"],
        "kl": report["logits"]["kl"],
        "top1_agreement": report["logits"]["top1_agreement"],
        "worst_layer": max(layer["relative_error"] for layer in report["layers"]),
        "seconds": result.seconds,
        "peak_mb": result.peak_mb,
    }


def exactness(output: Path) -> dict:
    """Two layers of the true geometry, grown and verified in float64."""
    source, grown = output / "two-layers", output / "three-layers-float64"
    shutil.rmtree(grown, ignore_errors=True)
    if not source.exists():
        write(source, MODELS["phi-1.5-two-layers"])
    recipe = output / "two-to-three-layers.yaml"
    recipe.write_text(TWO_TO_THREE_LAYERS)
    growth("grow", recipe, "--source", source, "--output", grown, "--dtype", "float64")
    found = {"model": "two layers, stored in float64", **verification(source, grown, "float64")}
    shutil.rmtree(grown)
    return found


def start_up(source: Path) -> dict:
    """Medians of nine."""
    return {
        "help_seconds": spread([growth("--help").seconds for _ in range(9)]),
        "plan_seconds": spread([growth("plan", RECIPE, "--source", source).seconds for _ in range(9)]),
    }


def show(figures: dict) -> None:
    """The figures as tables."""
    table = Table("", "min", "median", "max", title="Phi-1.5 to Phi-2", title_justify="left")
    for name, values in (figures["grow"] | figures["start_up"]).items():
        if isinstance(values, dict):
            table.add_row(name, *(f"{values[key]:.3g}" for key in ("min", "median", "max")))
    console.print(table)
    table = Table("model", "dtype", "error", "floor", "worst layer", "KL", "seconds", "peak MB", title="verify")
    for row in figures["verify"]:
        table.add_row(
            row["model"],
            row["dtype"],
            f"{row['relative_error']:.2e}",
            f"{row['floor']:.2e}",
            f"{row['worst_layer']:.2e}",
            f"{row['kl']:.1e}",
            f"{row['seconds']:.0f}",
            f"{row['peak_mb']:.0f}",
        )
    console.print(table)


def draw(figures: dict, path: Path) -> None:
    """Seconds of growing and copying as bars with their spread."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = {"cp_seconds": "cp of the output", "grow_seconds": "growth grow"}
    figure, axes = plt.subplots(figsize=(7, 2.2), layout="constrained")
    for place, key in enumerate(names):
        values = figures["grow"][key]
        reach = [[values["median"] - values["min"]], [values["max"] - values["median"]]]
        axes.barh(place, values["median"], xerr=reach, color="#0072b2" if place else "#999999", capsize=4, height=0.6)
        axes.text(values["max"] + 0.2, place, f"{values['median']:.1f} s", va="center")
    axes.set_yticks(range(len(names)), names.values())
    axes.set_xlabel(f"seconds for {figures['grow']['bytes'] / 1e9:.2f} GB of output, median and range")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/bench"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    output = options.output
    output.mkdir(parents=True, exist_ok=True)
    source = output / "phi-1_5"
    if not source.exists():
        write(source, MODELS["phi-1.5"])
    figures: dict = {"start_up": start_up(source), "grow": grow_beside_copy(source, output, options.rounds)}
    grown = output / "phi-2-init"
    whole = {"model": "whole, stored in float16"}
    figures["verify"] = [whole | verification(source, grown, dtype) for dtype in ("float32", "stored", "float64")]
    figures["verify"].append(exactness(output))
    (output / "bench.json").write_text(json.dumps(figures, indent=1) + "\n")
    show(figures)
    draw(figures, output / "bench.png")
    console.print(f"Figures: {output / 'bench.json'}, picture: {output / 'bench.png'}")


if __name__ == "__main__":
    main()
