"""Compare growing with copying, with loading and saving by transformers, and with mergekit; time growing by size."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from measure import Run, growth, python, ratios, run, size, spread, summary, warm
from models import Bench, Case, available, file_system

LOAD_AND_SAVE = """\
import sys
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").save_pretrained(sys.argv[2])
"""
# what a run reads first: every byte of the source, hashed and scanned for NaN
READ = """\
import sys, time
from pathlib import Path
from growth.checkpoints.open import open_stored
from growth.checkpoints.tensor_reader import Files, scan
from growth.runtime.workers import WorkerPool
tensors = open_stored(Path(sys.argv[1])).tensors
began = time.perf_counter()
scan(WorkerPool(forks=True), Files(tensors), tensors)
print(time.perf_counter() - began)
"""
PASSTHROUGH = """\
merge_method: passthrough
dtype: {dtype}
slices:
  - sources: [{{model: {source}, layer_range: [0, {old}]}}]
  - sources: [{{model: {source}, layer_range: [{first}, {old}]}}]
"""


def compare(bench: Bench, case: Case, rounds: int) -> dict:
    """Run pairs of a growth and of each other program for the same output.

    The first round finds page cache and memory cold, so only its memory counts, not its time.
    """
    source, recipe = bench.source(case), bench.recipe(case)
    planned = json.loads(growth("plan", recipe, "--source", source, "--json").output)
    place = bench.working_place(planned["bytes"])
    output = place / "grown"
    others = _others(bench, case, source, output, place / "other")
    skipped = [] if "mergekit" in others or case.deepens is None else ["mergekit: no mergekit-yaml on PATH"]
    in_memory = 2 + (file_system(place) == "tmpfs")  # the source, the output, and the model in between
    if available() < in_memory * planned["bytes"]:
        del others["transformers"]
        skipped.append("transformers: it needs more memory than there is")
    ours: dict[str, list[Run]] = {}
    theirs: dict[str, list[Run]] = {}
    looked_at: list[Run] = []
    try:
        for name, command in others.items():
            pairs = []
            for number in range(rounds + 1):
                shutil.rmtree(output, ignore_errors=True)
                warm(source)
                growing = growth("grow", recipe, "--source", source, "--output", output, together=number == 0)
                warm(source if name == "mergekit" else output)
                pairs.append((growing, command()))
                wrote = any((place / "other").glob("*.safetensors"))
                shutil.rmtree(place / "other", ignore_errors=True)
                if not wrote:
                    skipped.append(f"{name}: it wrote nothing")
                    break
            else:
                looked_at.append(pairs[0][0])
                ours[name], theirs[name] = map(list, zip(*pairs[1:], strict=True))
        written = size(output)
    finally:
        shutil.rmtree(place)
    return {
        "source_bytes": size(source),
        "bytes": written,
        "parameters": planned["parameters"],
        "rounds": rounds,
        "place": file_system(place.parent),
        "growth": _summary([run for runs in ours.values() for run in runs], looked_at, written),
        **{name: summary(runs) | {"ratio": ratios(ours[name], runs)} for name, runs in theirs.items()},
        "skipped": skipped,
    }


def _summary(timed: list[Run], looked_at: list[Run], written: int) -> dict:
    """Return the spread of the times of growths, and of the memory of those whose memory was sampled."""
    memory = {"peak_mb": spread([run.peak_mb for run in looked_at])}
    return summary(timed) | memory | {"gb_per_second": spread([written / run.seconds / 1e9 for run in timed])}


def _others(bench: Bench, case: Case, source: Path, output: Path, other: Path) -> dict[str, Callable[[], Run]]:
    others: dict[str, Callable[[], Run]] = {
        "cp": lambda: run("cp", "-r", output, other),
        "transformers": lambda: python(LOAD_AND_SAVE, output, other),
    }
    if case.deepens is not None and shutil.which("mergekit-yaml"):
        old, new = case.deepens
        dtype = json.loads((source / "config.json").read_text())["torch_dtype"]
        path = bench.output / "passthrough.yaml"
        path.write_text(PASSTHROUGH.format(dtype=dtype, source=source.resolve(), old=old, first=2 * old - new))
        others["mergekit"] = lambda: run("mergekit-yaml", path, other, may_fail=True)
    return others


def sweep(bench: Bench, rounds: int) -> dict:
    """Grow sources of several sizes wider by a quarter; return seconds, seconds of reading the source, and memory."""
    growing: dict[str, list[Run]] = {name: [] for name in bench.sweep}
    reading: dict[str, list[float]] = {name: [] for name in bench.sweep}
    sizes: dict[str, dict] = {}
    for number in range(rounds + 1):
        for name, case in bench.sweep.items():
            source, recipe = bench.source(case), bench.recipe(case)
            if name not in sizes:
                planned = json.loads(growth("plan", recipe, "--source", source, "--json").output)
                largest = max(_bytes(tensor) for tensor in planned["tensors"])
                sizes[name] = {"source_bytes": size(source), "bytes": planned["bytes"], "largest_tensor": largest}
            place = bench.working_place(sizes[name]["bytes"])
            try:
                warm(source)
                reads = float(python(READ, source).output)
                command = ("grow", recipe, "--source", source, "--output", place / "grown")
                grows = growth(*command, together=number == 0)
            finally:
                shutil.rmtree(place)
            growing[name].append(grows)
            reading[name].append(reads)
    points = {
        name: sizes[name]
        | _summary(growing[name][1:], growing[name][:1], sizes[name]["bytes"])
        | {"read_seconds": spread(reading[name][1:])}
        for name in bench.sweep
    }
    return {"rounds": rounds, "place": file_system(place.parent), "points": points}


def _bytes(tensor: dict) -> int:
    count = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}[tensor["dtype"]]
    for length in tensor["shape"]:
        count *= length
    return count
