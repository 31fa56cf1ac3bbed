"""Full-size figures: growing beside cp, transformers and mergekit; by size; verifying; starting up; sharing.

    make bench        (or: python benchmarks/bench.py --output out/bench)

Needs 13 GB of disk for sources, 18 GB of memory to have everything warm (less: grown models go to disk, see --place),
and about half an hour. Every command is a process of its own, timed from outside, start-up included; peak memory is
what the operating system reports for that process. Commands that are compared run in turns, so that ratios hold on a
machine whose speed drifts. Parts can be run one by one: their figures are merged in bench.json, from which --report
draws the tables (bench.txt) and pictures again.
"""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path

from checking import exactness, start_up, verify
from growing import compare, sweep
from measure import kept_warm
from models import PARTS, Bench, machine
from report import draw, show

ROUNDS = {"phi": 5, "llama-depth": 3, "llama-width": 3, "sweep": 3, "verify": 2}


def measure(bench: Bench, part: str) -> object:
    """Return the figures of one part."""
    rounds = bench.rounds or ROUNDS.get(part, 1)
    match part:
        case "startup":
            return start_up(bench)
        case "sweep":
            return sweep(bench, rounds)
        case "verify":
            return verify(bench, rounds)
        case "exactness":
            return exactness(bench)
        case "sharing":
            from sharing import parts_of_files, ranks_on_load  # needs torch and transformers, in this process

            return {"parts": parts_of_files(bench), "ranks": ranks_on_load(bench)}
        case _:
            return compare(bench, bench.grown[part], rounds)


def parts(text: str) -> list[str]:
    """Return the named parts, in the order in which they run."""
    named = text.split(",")
    unknown = sorted(set(named) - set(PARTS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no part {', '.join(unknown)}: choose among {', '.join(PARTS)}")
    return [part for part in PARTS if part in named]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/bench"), help="where sources and figures are kept")
    parser.add_argument("--place", type=Path, help="where models are grown; by default /dev/shm if it has the room")
    parser.add_argument("--only", type=parts, default=list(PARTS), metavar=",".join(PARTS))
    parser.add_argument("--rounds", type=int, help="of each part; by default 5 of phi, 2 of verify, 3 of the others")
    parser.add_argument("--prepare", action="store_true", help="write the sources and stop")
    parser.add_argument("--report", action="store_true", help="measure nothing, draw what bench.json holds")
    parser.add_argument("--tiny", action="store_true", help="models of no size, to try the program itself")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.output, options.place, options.rounds, options.tiny)
    path = options.output / "bench.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    if options.prepare:
        for case in {*bench.grown.values(), *bench.sweep.values(), *bench.planned.values(), bench.exactness}:
            bench.source(case)
        return
    for part in [] if options.report else options.only:
        with nullcontext() if options.tiny else kept_warm():
            figures[part] = measure(bench, part)
        figures["machine"] = machine()
        path.write_text(json.dumps(figures, indent=1) + "\n")  # after each, so that none is lost
    show(figures, options.output / "bench.txt")
    draw(figures, options.output)


if __name__ == "__main__":
    main()
