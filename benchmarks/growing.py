"""Growing beside copying, beside loading and saving with transformers, and beside mergekit; and growing by size."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from measure import Run, grown, growth, python, ratios, run, size, spread, summary, warm
from models import Bench, Case, available, file_system

LOAD_AND_SAVE = """\
import sys
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").save_pretrained(sys.argv[2])
"""
# what a growth reads first: every byte of the source, hashed and looked through for NaN
READ = """\
import sys, time
from pathlib import Path
from growth.checkpoint import Checkpoint
from growth.hands import hands
from growth.reading import Reading
tensors = Checkpoint.open(Path(sys.argv[1])).tensors
began = time.perf_counter()
with hands(forks=True) as many, Reading.begun(many, tensors) as reading:
    reading.contents(tensors)
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
    """In each round a growth, then what others need for the same output; ratios are pair by pair."""
    source, recipe = bench.source(case), bench.recipe(case)
    planned = json.loads(growth("plan", recipe, "--source", source, "--json").output)
    place = bench.working_place(planned["bytes"])
    output = place / "grown"
    others = _others(bench, case, source, output, place / "other")
    skipped = [] if "mergekit" in others or case.deepens is None else ["mergekit: no mergekit-yaml on PATH"]
    in_memory = 2 + (file_system(place) == "tmpfs")  # what is grown, what is saved again, and the model between
    if available() < in_memory * planned["bytes"]:
        del others["transformers"]
        skipped.append("transformers: it needs more memory than there is")
    ours: list[Run] = []
    theirs: dict[str, list[Run]] = {name: [] for name in others}
    try:
        for number in range(rounds + 1):
            shutil.rmtree(output, ignore_errors=True)
            growing = grown(recipe, source, output)
            ours += [growing] * (number > 0)  # the first round finds the page cache and the memory cold
            for name, command in list(others.items()):
                warm(source if name == "mergekit" else output)
                found = command()
                if any((place / "other").glob("*.safetensors")):
                    theirs[name] += [found] * (number > 0)
                else:
                    del others[name], theirs[name]
                    skipped.append(f"{name}: it wrote nothing")
                shutil.rmtree(place / "other", ignore_errors=True)
        written = size(output)
    finally:
        shutil.rmtree(place)
    return {
        "source_bytes": size(source),
        "bytes": written,
        "parameters": planned["parameters"],
        "rounds": rounds,
        "place": file_system(place.parent),
        "growth": summary(ours) | {"gb_per_second": spread([written / run.seconds / 1e9 for run in ours])},
        **{name: summary(runs) | {"ratio": ratios(ours, runs)} for name, runs in theirs.items()},
        "skipped": skipped,
    }


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
    """Growths of several sizes, a quarter wider: the seconds of each, of reading its source, and the memory."""
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
                grows = grown(recipe, source, place / "grown")
            finally:
                shutil.rmtree(place)
            if number:
                growing[name].append(grows)
                reading[name].append(reads)
    points = {
        name: sizes[name]
        | summary(growing[name])
        | {
            "read_seconds": spread(reading[name]),
            "gb_per_second": spread([sizes[name]["bytes"] / run.seconds / 1e9 for run in growing[name]]),
        }
        for name in bench.sweep
    }
    return {"rounds": rounds, "place": file_system(place.parent), "points": points}


def _bytes(tensor: dict) -> int:
    count = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}[tensor["dtype"]]
    for length in tensor["shape"]:
        count *= length
    return count
