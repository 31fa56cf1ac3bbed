"""Grow two published models by every generic recipe and towards a larger model of their family; docs/real-models.md.

    python benchmarks/real.py [--cache FOLDER] [--report docs/real-models.md] [--only gemma3:double-width]

Each growth is planned, verified in float32 and bf16, run beside its source on text, and some are trained. What each
stage finds is stored as JSON in the cache, and a later run skips it; --fresh forgets it. The grown models are deleted
as soon as their stages are done.
"""

import argparse
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from real_models import MODELS, Model, source
from real_train import ROWS, read_text, train
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from stored import error, logits
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import growth
from growth.planning.stored_error import expected_error

RECIPES = ("double-width", "double-width-exact", "double-depth", "double-both", "one-and-a-half-width")
DERIVED = "derived"
PROMPTS = ("The capital of France is", "Water boils when", "def fibonacci(n):\n")
NEW_TOKENS = 24
CACHE = Path(os.environ.get("GROWTH_REAL_CACHE", Path.home() / ".cache" / "growth-real"))

Result = dict[str, Any]
Report = Callable[[str, int, int], None]


# ------------------------------------------------- stages, whose results are kept


def processor_seconds() -> float:
    """What this process and its children have used."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


@dataclass(frozen=True)
class Stages:
    """Runs stages and keeps their results: what is in `folder` already is not computed again."""

    folder: Path
    progress: Progress = field(default_factory=lambda: Progress(disable=True))
    task: TaskID | None = None

    def path(self, name: str) -> Path:
        """Where the result of a stage is kept."""
        return self.folder / f"{name}.json"

    def run(self, name: str, compute: Callable[[Report], Any]) -> Any:
        """Return the result of a stage, kept or computed now."""
        path = self.path(name)
        if not path.exists():
            began, used = time.perf_counter(), processor_seconds()
            result = compute(functools.partial(self._tell, name))
            kept = {
                "result": result,
                "seconds": round(time.perf_counter() - began, 1),
                "processor_seconds": round(processor_seconds() - used, 1),
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(kept, indent=1) + "\n")
            part.replace(path)
            self.progress.console.print(f"{name}: {kept['seconds']:.0f} s", highlight=False)
        if self.task is not None:
            self.progress.advance(self.task)
        return json.loads(path.read_text())["result"]

    def skip(self, count: int) -> None:
        """Count stages that a refused recipe does not have."""
        if self.task is not None:
            self.progress.advance(self.task, count)

    def _tell(self, name: str, what: str, done: int, total: int) -> None:
        if self.task is not None:
            self.progress.update(self.task, description=f"{name}: {what} {done} of {total}")


def stage_names(model: Model, recipe: str) -> tuple[str, ...]:
    """The stages of a recipe, or, for the recipe "", those of the source.

    >>> stage_names(MODELS[0], "double-width")
    ('plan', 'float32', 'run', 'text', 'bf16')
    >>> stage_names(MODELS[0], "")
    ('run', 'text', 'train')
    """
    if not recipe:
        return ("run", "text", "train")
    trained = ("train",) if recipe in model.trained else ()
    return ("plan", "float32", "run", "text", *trained, "bf16")


# ------------------------------------------------- one model


@functools.lru_cache(1)
def texts(folder: Path) -> Any:
    """The text for a model."""
    return read_text(folder)


@functools.lru_cache(1)
def exact_logits(folder: Path) -> torch.Tensor:
    """The logits of a source in float32, on held-out text."""
    return logits(folder, texts(folder).held_out[:ROWS], torch.float32)


def run_in_bf16(source: Path, folder: Path) -> float:
    """The relative error of the logits of a model that runs in bf16, against its source's in float32."""
    return error(exact_logits(source), logits(folder, texts(source).held_out[:ROWS], torch.bfloat16))


def continuations(folder: Path) -> list[Result]:
    """Greedy continuations of the prompts, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    batch = tokenizer(list(PROMPTS), return_tensors="pt", padding=True)
    ids = model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=False,
        min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS,
    )[:, batch["input_ids"].shape[1] :]  # fmt: skip
    written = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [
        {"prompt": prompt, "ids": row, "text": text}
        for prompt, row, text in zip(PROMPTS, ids.tolist(), written, strict=True)
    ]


def planned(recipe: str, source: Path) -> Result:
    """What `growth plan` says of a recipe, or why it refuses it."""
    try:
        plan = growth.plan(recipe, source)
    except growth.GrowthError as refusal:
        return {"refused": str(refusal)}
    return {
        "parameters": plan.parameters,
        "bytes": plan.bytes,
        "layers": plan.config["num_hidden_layers"],
        "hidden_size": plan.config["hidden_size"],
        "expected": expected_error(plan),
    }


def trained(model: Model, source: Path, folder: Path, place: Path, report: Report) -> Result:
    """Train a grown model and diagnose it."""
    try:
        curve = train(folder, texts(source), model.rate, functools.partial(report, "step"), place)
        return {"curve": curve, "diagnosis": growth.diagnose(folder, place).to_dict()}
    finally:
        shutil.rmtree(place, ignore_errors=True)


def derive(model: Model, source: Path, folder: Path) -> Path:
    """The recipe that `growth recipe` writes for a larger model of the family."""
    folder.mkdir(parents=True, exist_ok=True)
    target, recipe = folder / f"{model.name}.json", folder / f"{model.name}.yaml"
    target.write_text(json.dumps(model.target_config(source), indent=1))
    command = [sys.executable, "-m", "growth", "recipe", str(source), str(target), "--output", str(recipe)]
    recipe.unlink(missing_ok=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return recipe


@contextmanager
def grown_when_needed(recipe: str, source: Path, place: Path) -> Iterator[Callable[[], Path]]:
    """A function that grows a model when it is first called; the model is deleted at the end."""
    shutil.rmtree(place, ignore_errors=True)

    def folder() -> Path:
        if not place.exists():
            growth.grow(recipe, source, place)
        return place

    try:
        yield folder
    finally:
        shutil.rmtree(place, ignore_errors=True)


def grow_and_measure(model: Model, recipe: str, folder: Path, cache: Path, stages: Stages) -> None:
    """All stages of one recipe."""
    path = str(derive(model, folder, cache / "recipes")) if recipe == DERIVED else recipe
    name = f"{model.name}/{recipe}"
    if "refused" in stages.run(f"{name}/plan", lambda report: planned(path, folder)):
        stages.skip(len(stage_names(model, recipe)) - 1)
        return
    with grown_when_needed(path, folder, cache / f"grown-{model.name}") as grown:
        found: dict[str, Callable[[Report], Any]] = {
            "float32": lambda report: growth.verify(folder, grown(), path, dtype="float32", progress=report).to_dict(),
            "bf16": lambda report: growth.verify(folder, grown(), path, dtype="stored", progress=report).to_dict(),
            "run": lambda report: run_in_bf16(folder, grown()),
            "text": lambda report: continuations(grown()),
            "train": lambda report: trained(model, folder, grown(), cache / f"trained-{model.name}", report),
        }
        for stage in stage_names(model, recipe)[1:]:
            stages.run(f"{name}/{stage}", found[stage])


def measure(model: Model, wanted: tuple[str, ...], cache: Path, stages: Stages) -> None:
    """All stages of one model."""
    folder = source(model, cache)
    stages.run(f"{model.name}/run", lambda report: run_in_bf16(folder, folder))
    stages.run(f"{model.name}/text", lambda report: continuations(folder))
    stages.run(
        f"{model.name}/train",
        lambda report: {"curve": train(folder, texts(folder), model.rate, functools.partial(report, "step"))},
    )
    for recipe in wanted:
        grow_and_measure(model, recipe, folder, cache, stages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--report", type=Path, help="the page to write, with a picture beside it")
    parser.add_argument("--only", help="models and recipes, as smollm2:double-width,gemma3:derived")
    parser.add_argument("--fresh", action="store_true", help="forget the results of earlier runs")
    options = parser.parse_args()
    results = options.cache / "results"
    if options.fresh:
        shutil.rmtree(results, ignore_errors=True)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    wanted = {model: chosen(model, options.only) for model in MODELS}
    total = sum(len(stage_names(model, recipe)) for model, recipes in wanted.items() for recipe in ("", *recipes))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        stages = Stages(results, progress, progress.add_task("fetching", total=total))
        for model, recipes in wanted.items():
            measure(model, recipes, options.cache, stages)
    if options.report:
        from real_page import write_page

        write_page(results, options.report)


def chosen(model: Model, only: str | None) -> tuple[str, ...]:
    """The recipes for a model.

    >>> chosen(MODELS[0], "smollm2:double-width,gemma3:derived,smollm2:derived")
    ('double-width', 'derived')
    """
    if only is None:
        return (*RECIPES, DERIVED)
    pairs = [word.split(":") for word in only.split(",")]
    return tuple(recipe for name, recipe in pairs if name == model.name)


if __name__ == "__main__":
    main()
