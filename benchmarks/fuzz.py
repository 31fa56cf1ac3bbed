"""Hostile input in numbers: python benchmarks/fuzz.py [--cases 100000] [--seed 0] [--atheris SECONDS]

Every target of tests/hostile.py reads mutations of valid input. Exit status 1 where one raises anything but a
GrowthError, takes above LONGEST seconds of processor time, or the process needs above MEMORY bytes more.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from growth.errors import GrowthError
from tests.hostile import TARGETS

SHARES = {"header": 45, "index": 20, "config": 6, "derivation": 3, "recipe": 2, "manifest": 20, "tokenizer": 4}
LONGEST = 1.0  # seconds of one case
MEMORY = 2 << 30  # bytes of address space above what the imports take


def limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


def run(name: str, cases: int, seed: int, folder: Path) -> tuple[Counter[str], float, list[str]]:
    """Accepted and refused cases, the worst time, and what failed."""
    counts: Counter[str] = Counter()
    worst, failures = 0.0, []
    for case in range(cases):
        began = time.process_time()
        try:
            TARGETS[name](folder, random.Random(f"{seed}/{name}/{case}"))
            counts["accepted"] += 1
        except GrowthError:
            counts["refused"] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            counts["failed"] += 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            failures.append(f"{name} {case}: {type(error).__name__}: {error!s:.100} ({last.filename}:{last.lineno})")
        took = time.process_time() - began
        worst = max(worst, took)
        if took > LONGEST:
            failures.append(f"{name} {case}: took {took:.1f} s")
    return counts, worst, failures


def guided(seconds: int, folder: Path) -> None:
    """Coverage-guided: atheris chooses the bytes that seed the mutations, and the bytes of a header."""
    import atheris

    from growth.foreign import parse_json
    from growth.recipe import parse_recipe

    atheris.instrument_all()

    def one(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        choice = provider.ConsumeIntInRange(0, len(TARGETS) + 1)
        try:
            if choice == len(TARGETS):
                parse_json(provider.ConsumeBytes(4096))
            elif choice > len(TARGETS):
                parse_recipe(provider.ConsumeUnicode(2048), "r.yaml")
            else:
                list(TARGETS.values())[choice](folder, random.Random(provider.ConsumeBytes(64)))
        except GrowthError:
            pass
        except ValueError:
            if choice != len(TARGETS):
                raise

    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=4096"], one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--atheris", type=int, metavar="SECONDS", help="coverage-guided, where atheris is installed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as home:
        if options.atheris:
            guided(options.atheris, Path(home))
            return 0
        failures = []
        print(f"{'target':12}{'cases':>9}{'refused':>9}{'accepted':>10}{'failed':>8}{'worst s':>9}{'peak MB':>9}")
        for name in [options.target] if options.target else TARGETS:
            folder = Path(home) / name
            folder.mkdir()
            cases = -(-options.cases * SHARES[name] // 100)
            warm(name, folder)
            limit_memory()
            counts, worst, failed = run(name, cases, options.seed, folder)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            numbers = (
                f"{counts['refused']:>9,}{counts['accepted']:>10,}{counts['failed']:>8,}{worst:>9.2f}{peak:>9,.0f}"
            )
            print(f"{name:12}{cases:>9,}{numbers}", flush=True)
            failures += failed
    print("\n".join(failures[:40]))
    return bool(failures)


def warm(name: str, folder: Path) -> None:
    """Imports what the target imports, so that the first case does not pay for it."""
    run(name, 1, -1, folder)


if __name__ == "__main__":
    sys.exit(main())
