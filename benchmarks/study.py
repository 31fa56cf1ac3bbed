"""When does growth pay? Grown models against tuned models from scratch, at equal FLOPs: docs/study.

    make study                                               # all of it, 4 hours on two idle cores; resumes
    python benchmarks/study.py run --output out/study --workers 2
    python benchmarks/study.py run --output out/study --stored    # only what the results in docs/study lack
    python benchmarks/study.py collect --output out/study    # store the results, of whatever is done, in docs/study
    make study-report                                        # tables and pictures from the stored results
    make study-check                                         # repeat one seed of one arm and compare

study_arms.py has the design. Each run stores a result and a checkpoint of its own and continues from those of another
run, so the study can be killed at any time: it resumes from checkpoints that are at most a minute old.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))
from study_arms import BASE, BY_NAME, LARGE, QUICK, SCALES, Run, Scale, best_rates, final, wanted

CHECKED = ("default", 0, 20)  # arm, seed, budget


def loss_in(folder: Path, run: Run) -> float | None:
    """The loss of a run, if it is done."""
    path = folder / f"{run.name}.json"
    return json.loads(path.read_text())["loss"] if path.exists() else None


def weight(run: Run) -> float:
    """About how many seconds a run takes on one core."""
    from study_train import steps_of

    arm = BY_NAME[run.arm]
    return steps_of(run) * arm.layers * (SCALES[run.scale].width * arm.share + 6) * 3e-4


def can_continue(folder: Path, run: Run) -> bool:
    """Whether a run is done and has a checkpoint: a stored result may have lost it."""
    return loss_in(folder, run) is not None and (folder / f"{run.name}.pt").exists()


def to_do(folder: Path, scales: Mapping[str, Scale]) -> Iterator[Run]:
    """The runs that are not done, each after those that it continues, in the order of their importance."""
    seen: set[str] = set()
    rates = best_rates(scales, lambda run: loss_in(folder, run))
    for last in wanted(scales, rates):
        if loss_in(folder, last) is None:
            missing = takewhile(lambda run: not can_continue(folder, run), reversed(last.ancestry[:-1]))
            for run in [*reversed(list(missing)), last]:
                if run.name not in seen:
                    yield run
                seen.add(run.name)


def work(run: Run, folder: Path) -> dict[str, Any]:
    """One run in a worker process."""
    from study_train import execute
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return execute(run, folder)


def run_all(folder: Path, scales: Mapping[str, Scale], workers: int) -> None:
    """Run what is not done, with progress, which is estimated within a run."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    # Forked workers would inherit torch's threads in an unknown state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool, Progress(*columns) as progress:
        running: dict[Future[dict[str, Any]], tuple[Run, float]] = {}
        bar, finished = progress.add_task("study"), 0.0
        while True:
            busy = {run.name for run, _ in running.values()}
            pending = [run for run in to_do(folder, scales) if run.name not in busy]
            for run in pending:
                ready = not run.parent or can_continue(folder, run.parent)
                if ready and len(running) < workers:
                    running[pool.submit(work, run, folder)] = run, time.monotonic()
            if not running:
                break
            inside = sum(min(weight(run), time.monotonic() - begun) for run, begun in running.values())
            left = sum(map(weight, {*pending, *(run for run, _ in running.values())}))
            names = ", ".join(run.name for run, _ in running.values())
            progress.update(bar, completed=finished + inside, total=finished + left, description=names)
            for future in wait(running, timeout=5, return_when=FIRST_COMPLETED).done:
                run, _ = running.pop(future)
                finished += weight(run)
                result = future.result()
                line = f"{run.name}: {result['loss']:.4f} in {result['seconds']:.0f} s"
                progress.console.print(line, highlight=False)


def take(stored: Path, folder: Path) -> None:
    """Put stored results in place of runs that are not done: checkpoints that others need are made again."""
    from study_numbers import Results
    from study_train import store

    for name, result in Results.read(stored).runs.items():
        if not (folder / f"{name}.json").exists():
            store(folder / f"{name}.json", result)


def facts() -> dict[str, Any]:
    """What the results depend on."""
    import torch
    import transformers
    from study_train import corpus

    training, held_out = (part.numpy().tobytes() for part in corpus())
    return {
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "machine": platform.machine(), "training_bytes": len(training), "held_out_bytes": len(held_out),
        "sha256": sha256(training + held_out).hexdigest(),
    }  # fmt: skip


def check_facts(recorded: Path, now: Mapping[str, Any], remedy: str) -> None:
    """End the program if results depend on other facts than those here: results of both would be mixed."""
    if recorded.exists() and json.loads(recorded.read_text()) != now:
        raise SystemExit(f"{recorded} states {json.loads(recorded.read_text())}, and here is {now}: {remedy}.")


def check(stored: Path) -> bool:
    """Repeat one seed of one arm at one budget, its source included, and print stored and repeated losses."""
    from study_numbers import Results

    results = Results.read(stored)
    arm, seed, budget = CHECKED
    last = final(BASE, BY_NAME[arm], seed, budget, results.rates)
    print("| run | stored | repeated |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for run in last.ancestry:
            loss, expected = work(run, Path(place))["loss"], results.runs[run.name]["loss"]
            print(f"| {run.name} | {expected:.4f} | {loss:.4f} |", flush=True)
    same = abs(loss - expected) < 0.02
    now = facts()
    for key, value in results.facts.items():
        if now[key] != value:
            print(f"{key}: {now[key]} here, {value} in the stored results")
    print("The result is repeated." if same else "The result differs by more than the spread of seeds.")
    return same


def main() -> None:
    """Run, report or check."""
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["run", "collect", "report", "check"])
    parser.add_argument("--output", type=Path, default=Path("out/study"), help="results and checkpoints")
    parser.add_argument("--report", type=Path, default=root / "docs" / "study", help="stored results, page, pictures")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--stored", action="store_true", help="run only what the stored results lack")
    parser.add_argument("--quick", action="store_true", help="a few steps of a minute model")
    given = parser.parse_args()
    if given.task == "run":
        given.output.mkdir(parents=True, exist_ok=True)
        scales = (QUICK,) if given.quick else (BASE, LARGE)
        recorded, now = given.output / "facts.json", facts()
        check_facts(recorded, now, "choose another --output")
        if given.stored:
            check_facts(given.report / "facts.json", now, "leave out --stored")
            take(given.report, given.output)
        recorded.write_text(json.dumps(now, indent=1) + "\n")
        run_all(given.output, {scale.name: scale for scale in scales}, given.workers)
    elif given.task == "collect":
        from study_report import collect

        collect(given.output, given.report)
    elif given.task == "report":
        from study_report import report

        report(given.report)
    elif not check(given.report):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
