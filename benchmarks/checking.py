"""Compare verifying with the two forward passes alone; verify at several precisions; time start-up and planning."""

import json
import shutil
from pathlib import Path

from measure import Run, growth, python, ratios, size, spread, summary, warm
from models import Bench, Case, file_system

TOKENS = 512
# loads the models one after the other, and times a forward pass of each, after a short one that warms it up
FORWARD = """\
import gc, sys, time, torch
from transformers import AutoModelForCausalLM
seconds = 0.0
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.randint(model.config.vocab_size, (2, int(sys.argv[1]) // 2), generator=torch.manual_seed(0))
    with torch.inference_mode():
        model(tokens[:, :8], use_cache=False)
        began = time.perf_counter()
        model(tokens, use_cache=False)
        seconds += time.perf_counter() - began
    del model
    gc.collect()
print(seconds)
"""
REPEATS = 9


def verify(bench: Bench, rounds: int) -> dict:
    """Compare `growth verify` of whole models in float32 with the two forward passes that it contains."""
    source, place = _grown_phi(bench)
    grown = place / "grown"
    verifying: list[Run] = []
    passing: list[Run] = []
    bare: list[float] = []
    try:
        report = {}
        for _ in range(rounds):
            warm(source)
            warm(grown)
            command = ("verify", source, grown, "--dtype", "float32", "--tokens", TOKENS, "--json")
            verifying.append(growth(*command))
            report = json.loads(verifying[-1].output)
            passing.append(python(FORWARD, TOKENS, source, grown))
            bare.append(float(passing[-1].output))
        return {
            "rounds": rounds,
            "place": file_system(place),
            "shape": report["shape"],
            "passed": report["passed"],
            "relative_error": report["logits"]["relative_error"],
            "floor": report["floor"],
            "verify": summary(verifying),
            "forward": summary(passing)
            | {"seconds": spread(bare), "with_loading": spread([r.seconds for r in passing])},
            "ratio": spread([a.seconds / b for a, b in zip(verifying, bare, strict=True)]),
            "ratio_with_loading": ratios(verifying, passing),
        }
    finally:
        shutil.rmtree(place)


def _grown_phi(bench: Bench) -> tuple[Path, Path]:
    """Yield the source, and a place whose new folder `grown` holds the grown model."""
    case = bench.grown["phi"]
    source, recipe = bench.source(case), bench.recipe(case)
    planned = json.loads(growth("plan", recipe, "--source", source, "--json").output)
    place = bench.working_place(planned["bytes"])
    growth("grow", recipe, "--source", source, "--output", place / "grown")
    return source, place


def exactness(bench: Bench) -> list[dict]:
    """Verify whole models as stored, at each precision, and two layers that are grown in float64."""
    source, place = _grown_phi(bench)
    try:
        whole = {"model": "whole, stored in float16"}
        found = [whole | _errors(source, place / "grown", dtype) for dtype in ("float32", "stored", "float64")]
        shutil.rmtree(place / "grown")
        case = bench.exactness
        source = bench.source(case)
        growth("grow", bench.recipe(case), "--source", source, "--output", place / "grown", "--dtype", "float64")
        return [*found, {"model": "few layers, stored in float64"} | _errors(source, place / "grown", "float64")]
    finally:
        shutil.rmtree(place)


def _errors(source: Path, grown: Path, dtype: str) -> dict:
    """Return what one verification of whole models, from disk, finds."""
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


def start_up(bench: Bench) -> dict:
    """Time --help, the plan of the Phi, and plans of models of which only headers exist."""
    growth("--help")
    phi = bench.grown["phi"]
    commands = {"growth --help": ["--help"], "growth plan, phi of 1.4 B": _plan(bench, phi)}
    commands |= {f"growth plan, {name}": _plan(bench, case) for name, case in bench.planned.items()}
    found = {
        name: summary([growth(*command) for _ in range(bench.rounds or REPEATS)]) for name, command in commands.items()
    }
    for name, case in bench.planned.items():
        planned = json.loads(growth(*_plan(bench, case), "--json").output)
        about = {"bytes": size(bench.source(case)), "files": case.files, "tensors": len(planned["tensors"])}
        found[f"growth plan, {name}"] |= about
    return found


def _plan(bench: Bench, case: Case) -> list[object]:
    return ["plan", bench.recipe(case), "--source", bench.source(case)]
