"""Does the knowledge transfer? Compare grown models with models from scratch, on the standard library's sources.

    make study        (or: python benchmarks/study.py --output out/study; about 65 minutes on two cores)
    python benchmarks/study.py --output out/study --report docs/study   # page and plots, of whatever is done

Every (arm, seed) is one run in a worker process with one thread. Its result is a JSON file of its own, so a second
start resumes where the first one stopped. study_arms.py defines the arms.
"""

import argparse
import json
import logging
import multiprocessing
import os
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))
from study_arms import ARMS, BY_NAME, Arm

log = logging.getLogger("study")


LATER = ("copied-stack", "long-warmup", "grown-half-peak")


def _waits(arm: Arm) -> bool:
    """Return whether the runs of an arm come last, seed by seed: controls, second variants, the most expensive."""
    return arm.factor == "control" or arm.length > 2 or arm.name in LATER


def jobs(arms: tuple[Arm, ...], seeds: int) -> list[tuple[str, Arm | None, int]]:
    """(name, arm, seed): every seed's source before its arms, all arms of a seed before the next seed."""
    ordered: list[tuple[str, Arm | None, int]] = []
    for seed in range(seeds):
        ordered.append((f"source-s{seed}", None, seed))
        ordered.extend((f"{arm.name}-s{seed}", arm, seed) for arm in arms if not _waits(arm))
    ordered.extend((f"{arm.name}-s{seed}", arm, seed) for seed in range(seeds) for arm in arms if _waits(arm))
    return ordered


def cost(arm: Arm | None, settings) -> float:
    """Return the approximate cost of a run in runs of the default; the source costs about half as much per token."""
    return 0.6 * settings.source_length if arm is None else arm.length


def run_all(folder: Path, arms: tuple[Arm, ...], seeds: int, workers: int, settings) -> list[str]:
    """Run what is not done yet; return the names of the runs that failed."""
    from study_train import job, source_path

    pending = [each for each in jobs(arms, seeds) if not (folder / f"{each[0]}.json").exists()]
    log.info("%d runs to do", len(pending))
    running: dict[Future, tuple[str, Arm | None, int]] = {}
    failed = []
    began, done_cost = time.perf_counter(), 0.0
    all_cost = sum(cost(arm, settings) for _, arm, _ in pending)
    # Forked workers would inherit torch's threads in an unknown state.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        while pending or running:
            ready = [each for each in pending if each[1] is None or not each[1].needs_source]
            ready += [each for each in pending if each not in ready and source_path(folder, each[2]).exists()]
            for each in sorted(ready, key=pending.index)[: workers - len(running)]:
                pending.remove(each)
                running[pool.submit(job, folder, *each, settings)] = each
            if not running:
                failed += [name for name, *_ in pending]
                log.error("%d runs wait for a source that failed", len(pending))
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, arm, _ = running.pop(future)
                try:
                    done = future.result()
                except Exception as error:  # one failed run must not end the others
                    log.exception("%s failed: %s", name, error)
                    failed.append(name)
                else:
                    done_cost += cost(arm, settings)
                    minutes, share = (time.perf_counter() - began) / 60, done_cost / all_cost
                    left = minutes / share - minutes
                    log.info("[%.0f %%, %.1f min, about %.0f to go] %s", 100 * share, minutes, left, done)
    return failed


def main() -> None:
    from study_report import report
    from study_train import Settings, read_text, store

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/study"), help="results, one JSON file a run")
    parser.add_argument("--report", type=Path, help="only write the page and its plots here, from the results so far")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="of the default; others are multiples")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--arms", nargs="+", default=list(BY_NAME), choices=list(BY_NAME), metavar="ARM")
    parser.add_argument("--quick", action="store_true", help="two steps on a few files: shows that everything runs")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.report:
        report(options.output, options.report)
        return

    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    settings = Settings(steps=options.steps)
    if options.quick:
        settings = Settings(steps=2, rows=2, length=32, prompts=4, new_tokens=8, files=3)
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    recorded = folder / "study.json"
    if recorded.exists():
        before = json.loads(recorded.read_text())["settings"]
        if before != asdict(settings):
            raise SystemExit(f"{folder} holds runs with {before}, not {asdict(settings)}: choose another --output.")
    else:
        text = read_text(settings)
        torch.save(vars(text), folder / "text.pt")
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        store(recorded, {"settings": asdict(settings), "text": text.facts, "versions": versions})
        log.info("%s", text.facts)
    arms = tuple(arm for arm in ARMS if arm.name in options.arms)
    failed = run_all(folder, arms, options.seeds, options.workers, settings)
    report(folder, folder / "report")
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}. A second start tries them again.")


if __name__ == "__main__":
    main()
