"""Count false alarms and missed corruptions: `benchmarks/trust.py [--right 2100] [--seeds 100] [--report FILE]`.

Correctly grown tiny models of every family, stored in three types, with and without massive activations, and grown
checkpoints that were corrupted in every way of benchmarks/trust_faults.py are given to `growth.verify`, as folders.
Outcomes are appended to out/trust.jsonl, where a second run resumes; --report writes the tables once
every case has run. Exit status 1 if a correctly grown checkpoint fails, or a kind that should be
caught is missed too often.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch starts: many processes run small models at once
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import transformers
from safetensors.torch import load_file, save_file

import growth
from benchmarks.trust_faults import KINDS, Grown, Kind
from benchmarks.trust_models import MASSIVES, RECIPES, STORED, WEIGHTS, make_source, recipe
from growth import GrowthError, VerificationError
from growth.architectures import architecture
from growth.operators import Operator
from growth.verification.rounding_floor import ALARM, DRAWS, MARGIN, relative_difference
from growth.verification.streaming import stream
from tests.support.families import Case, all_cases

OUTCOMES = Path("out/trust.jsonl")
ARITHMETICS = ("float64", "float32", "stored")
REQUIRED = 0.99
HARDER = "harder: "  # before the name of a kind: in half types, or with massive activations
TRIES = 80
HARMLESS = 1e-7  # relative change of the logits in float64: what rounding every stored value to float32 does
CLEAR = 1e-5  # a measured change of a model stored in float32 that is surely not harmless
Outcome = dict[str, Any]


@cache
def cases() -> list[Case]:
    return all_cases()


# ------------------------------------------------- one case


def make_pair(
    draw: random.Random, case: Case, stored: str, massive: str, seed: int, home: Path
) -> tuple[str, Operator] | None:
    """Saves a source and a growth of it in a folder; the recipe and its name, or None where the case refuses it."""
    make_source(case, stored, massive, seed, home / "source")
    config = json.loads((home / "source" / "config.json").read_text())
    for name in draw.sample(list(RECIPES), 3):
        try:
            made_by = recipe(name, case, config)
            growth.grow(made_by, home / "source", home / "grown", seed=seed)
            return name, made_by
        except GrowthError:
            continue
    return None


def arithmetic(draw: random.Random, stored: str, massive: str) -> Any:
    """Return a dtype to compute in that the source survives: massive activations may leave float16's range."""
    return draw.choice(ARITHMETICS[: 2 if stored == "float16" and massive != "none" else 3])


def judge(home: Path, made_by: Operator, dtype: Any, seed: int) -> Outcome:
    """Return the verdict on a pair, and the largest error in units of its limit."""
    report = growth.verify(home / "source", home / "grown", made_by, growth_seed=seed, dtype=dtype, seed=seed)
    pairs = [(report.logits.relative_error, report.limit), *((e.relative_error, e.limit) for e in report.layers)]
    worst = max(error / limit if error == error else float("inf") for error, limit in pairs)
    return {
        "status": report.status,
        "by_running": not report.agrees,
        "in_full": bool(report.totals.problems),
        "worst": min(worst, 1e30),
        "change": report.logits.relative_error if report.logits.relative_error < 1e30 else 1e30,
    }


def right(number: int) -> Outcome:
    """Judge a correctly grown checkpoint."""
    stored = list(STORED)[number // len(cases()) % len(STORED)]
    for attempt in range(TRIES):
        draw = random.Random(f"right/2/{number}/{attempt}")
        massive = draw.choice(["none", draw.choice(list(MASSIVES))])
        with tempfile.TemporaryDirectory(dir=memory()) as home:
            case = cases()[number % len(cases())]
            chosen = make_pair(draw, case, stored, massive, number, Path(home))
            if chosen is None:
                continue
            dtype = arithmetic(draw, stored, massive)
            said = {"case": case.name, "stored": stored, "massive": massive, "recipe": chosen[0], "dtype": dtype}
            try:
                return said | judge(Path(home), chosen[1], dtype, number)
            except VerificationError as error:
                return said | {"status": "CANNOT TELL", "why": str(error)[:200]}
    raise AssertionError(f"{case.name} refuses every recipe")


def corrupted(kind: Kind, seed: int, *, harder: bool = False) -> Outcome:
    """Judge a corrupted checkpoint: of a plain model in float32, or of one in which corruption is harder to see."""
    for attempt in range(TRIES):
        draw = random.Random(f"{kind.name}/2/{seed}/{attempt}")
        case, stored, massive = draw.choice(cases()), "float32", "none"
        if harder:
            stored = draw.choice(list(STORED))
            massive = draw.choice(list(MASSIVES)) if stored == "float32" else draw.choice(["none", *MASSIVES])
        with tempfile.TemporaryDirectory(dir=memory()) as home:
            chosen = make_pair(draw, case, stored, massive, seed, Path(home))
            if chosen is None:
                continue
            shutil.copytree(Path(home) / "grown", Path(home) / "right")
            if not corrupt(kind, Path(home) / "grown", Path(home) / "source", draw):
                continue
            dtype = "float64"
            said = {"case": case.name, "stored": stored, "massive": massive, "recipe": chosen[0], "dtype": dtype}
            try:
                outcome = judge(Path(home), chosen[1], dtype, seed)
                if kind.expected and (harder or outcome["change"] < CLEAR) and is_harmless(Path(home)):
                    continue  # caught or not
                return said | outcome
            except VerificationError as error:
                return said | {"status": "CANNOT TELL", "by_running": False, "in_full": False, "why": str(error)[:200]}
            except GrowthError as error:
                refused = {"status": "REFUSED", "by_running": False, "in_full": True, "why": str(error)[:200]}
                return said | refused
    return {"status": "NOT APPLICABLE"}


def is_harmless(home: Path) -> bool:
    """Whether a corruption leaves the function as it is: a key's bias, which softmax cancels; a scale before a norm."""
    vocab = json.loads((home / "source" / "config.json").read_text())["vocab_size"]
    tokens = torch.randint(vocab, (4, 64), generator=torch.Generator().manual_seed(1))
    right, wrong = (stream(home / name, tokens, torch.float64) for name in ("right", "grown"))
    return relative_difference(wrong, right) < HARMLESS


def corrupt(kind: Kind, folder: Path, source: Path, draw: random.Random) -> bool:
    """Corrupts a grown folder; whether the kind applies to it."""
    weights, config = load_file(folder / WEIGHTS), json.loads((folder / "config.json").read_text())
    before = {name: weight.clone() for name, weight in weights.items()}
    manifest = json.loads((folder / "growth.json").read_text())
    old = architecture(json.loads((source / "config.json").read_text()))
    grown = Grown(
        weights,
        json.loads(json.dumps(config)),
        architecture(config).named_as_in(weights),
        {name: axis.size for name, axis in old.axes.items()},
        manifest["layers"],
    )
    same = not kind.fault(grown, draw) or (
        grown.config == config and all(torch.equal(before[name], grown.weights[name]) for name in before)
    )
    if same:
        return False
    if grown.config != config:
        (folder / "config.json").write_text(json.dumps(grown.config))
    save_file({name: value.contiguous() for name, value in grown.weights.items()}, folder / WEIGHTS, {"format": "pt"})
    return True


def memory() -> str | None:
    """Return the folder whose files are in memory, if there is one."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


# ------------------------------------------------- all cases


def tasks(rights: int, seeds: int) -> Iterator[tuple[str, int]]:
    """Every case: ("right", number) or (a kind's name, seed)."""
    yield from (("right", number) for number in range(rights))
    for seed in range(seeds):
        yield from ((kind.name, seed) for kind in KINDS if kind.expected or seed < seeds // 5)
        yield from ((HARDER + kind.name, seed) for kind in KINDS if seed < seeds // 10)


def run(task: tuple[str, int]) -> Outcome:
    """One case."""
    name, number = task
    began = time.process_time()
    by_name = {kind.name: kind for kind in KINDS}
    kind = by_name.get(name.removeprefix(HARDER))
    outcome = right(number) if kind is None else corrupted(kind, number, harder=name.startswith(HARDER))
    return {"task": name, "seed": number, **outcome, "seconds": round(time.process_time() - began, 3)}


def quiet() -> None:
    """Of a worker."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def outcomes(path: Path) -> dict[tuple[str, int], Outcome]:
    """Those of earlier runs."""
    if not path.exists():
        return {}
    found = map(json.loads, path.read_text().splitlines())
    return {(one["task"], one["seed"]): one for one in found}


def run_all(wanted: list[tuple[str, int]], path: Path, processes: int) -> None:
    """Run the cases that no earlier run has, and append their outcomes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = outcomes(path)
    left = [task for task in wanted if task not in done]
    began = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(processes, quiet) as pool, path.open("a") as lines:
        for count, outcome in enumerate(pool.imap_unordered(run, left, chunksize=4), 1):
            lines.write(json.dumps(outcome) + "\n")
            lines.flush()
            if count % 100 == 0 or count == len(left):
                print(f"{count:,} of {len(left):,} cases, {time.perf_counter() - began:.0f} s", flush=True)


# ------------------------------------------------- the tables

HEAD = """# How `verify` judges correctly grown and corrupted checkpoints

`make trust` writes this page (`python benchmarks/trust.py --report docs/trust-figures.md`). The models are tiny (3
layers, about 32 channels) and have random values; every family and variant in `tests/cases` is covered. In models with
massive activations, one channel is {massive:,} times as large as the others. It is made so in one of four ways: in the
embedding of every token (`embedding`) or of every fourth token (`tokens`), in what the branches of the first layer add
(`branch`), or in the embedding with norm gains that undo it (`tamed`). All kinds of recipes are used, and the results
are verified as folders. Each limit is derived from {draws} draws, a false-alarm probability of {alarm:g} per comparison
and a safety factor of {margin:g}; see [trust.md](trust.md).
"""


def page(done: Mapping[tuple[str, int], Outcome], rights: int, seeds: int) -> str:
    """Both tables and how long they took."""
    grown = [done["right", number] for number in range(rights)]
    head = HEAD.format(massive=1000, draws=DRAWS, alarm=ALARM, margin=MARGIN)
    seconds = sum(outcome["seconds"] for outcome in done.values())
    false = sum(map(_caught, grown))
    text = [head, f"## {false} false alarms on {rights:,} correctly grown checkpoints\n", *_right_table(grown)]
    text += [
        "",
        "## Corruptions\n",
        *_corruption_table(done, seeds),
        "",
        f"All cases took {seconds:,.0f} s of processor time.",
    ]
    return "\n".join(text) + "\n"


def _right_table(grown: list[Outcome]) -> list[str]:
    lines = [
        "A false alarm is a correct checkpoint that gets FAILED. Checkpoints with added tokens are expected to be "
        "LOSSY, all others PASSED. *Cannot tell*: rounding changes the outputs of the source itself so much that "
        "`verify` gives no verdict (only with `--dtype stored`). *Largest error / limit* is the largest ratio of "
        "error to limit, over the logits and the residual stream after every layer.\n",
        "| stored in | massive activations | correct checkpoints | false alarms | cannot tell "
        "| largest error / limit: median | maximum |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = defaultdict(list)
    for one in grown:
        groups[one["stored"], one["massive"]].append(one)
    for (stored, massive), some in sorted(groups.items()):
        worst = [one["worst"] for one in some if "worst" in one]
        counts = [len(some), sum(map(_caught, some)), len(some) - len(worst)]
        told = " | ".join(map(str, counts))
        lines.append(f"| {stored} | {massive} | {told} | {median(worst):.2f} | {max(worst):.2f} |")
    return lines


def _corruption_table(done: Mapping[tuple[str, int], Outcome], seeds: int) -> list[str]:
    lines = [
        f"Each kind is tried with {seeds} seeds; each seed has a different model (without massive activations) and "
        "recipe. Checkpoints are stored in float32 and verified in float64, the default. *Running* counts the "
        "corruptions that show in the logits or in a layer, *in full* those found by the checks of every row and key, "
        "and *caught* those found by either. The next columns give the relative change of the logits and the largest "
        "ratio of error to limit. *Harder*: the same with fp16 or bf16 storage, massive activations or both, "
        "where rounding hides more; no detection rate is promised. "
        f"Except in the last five rows, a change that moves the logits by less than {HARMLESS:g} in float64 (in a key "
        "bias, for example, which softmax cancels) does not count as a corruption and is left out, whether it was "
        "caught or not.\n",
        "| corruption | size | seeds | caught | running | in full | change of the logits, median "
        "| error / limit: median | minimum | harder: caught |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for expected in (True, False):
        if not expected:
            lines.append("| **too small, or almost too small, to be distinguished from rounding:** | | | | | | | | | |")
        for kind in KINDS:
            if kind.expected == expected:
                lines.append(_corruption_line(kind, _of(kind.name, done, seeds), _of(HARDER + kind.name, done, seeds)))
    return lines


def _of(name: str, done: Mapping[tuple[str, int], Outcome], seeds: int) -> list[Outcome]:
    found = (done[name, seed] for seed in range(seeds) if (name, seed) in done)
    return [one for one in found if one["status"] != "NOT APPLICABLE"]


def _caught(one: Outcome) -> bool:
    return one["status"] in ("FAILED", "REFUSED")


def _corruption_line(kind: Kind, some: list[Outcome], harder: list[Outcome]) -> str:
    ran = [one for one in some if "worst" in one]
    counts = [sum(map(_caught, some)), sum(one["by_running"] for one in some), sum(one["in_full"] for one in some)]
    sizes = (
        [
            f"{median(o['change'] for o in ran):.1e}",
            f"{median(o['worst'] for o in ran):.3g}",
            f"{min(o['worst'] for o in ran):.2g}",
        ]
        if ran
        else ["–", "–", "–"]
    )
    hard = f"{sum(map(_caught, harder))} of {len(harder)}"
    return (
        f"| {kind.name} | {kind.size} | {len(some)} | {' | '.join(map(str, counts))} | {' | '.join(sizes)} | {hard} |"
    )


def summary(done: Mapping[tuple[str, int], Outcome], rights: int, seeds: int) -> tuple[str, bool]:
    """A line, and whether all is as promised."""
    false = sum(_caught(done["right", number]) for number in range(rights))
    found = {kind: _of(kind.name, done, seeds) for kind in KINDS if kind.expected}
    caught = [kind for kind, some in found.items() if sum(map(_caught, some)) >= REQUIRED * max(len(some), 1)]
    missed = ", ".join(kind.name for kind in found if kind not in caught)
    text = f"{false} false alarms on {rights:,} correctly grown checkpoints; "
    text += f"{len(caught)} of {len(found)} kinds of corruption caught"
    return text + (f"; missed too often: {missed}" if missed else ""), not false and not missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--right", type=int, default=2100, help="correctly grown checkpoints")
    parser.add_argument("--seeds", type=int, default=100, help="of each kind of corruption")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--outcomes", type=Path, default=OUTCOMES)
    parser.add_argument("--report", type=Path, help="where the tables are written")
    options = parser.parse_args()
    run_all(list(tasks(options.right, options.seeds)), options.outcomes, options.processes)
    done = outcomes(options.outcomes)
    text, good = summary(done, options.right, options.seeds)
    if options.report:
        options.report.write_text(page(done, options.right, options.seeds), encoding="utf-8")
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
