"""Test hostile input in bulk: `python benchmarks/fuzz.py [--cases 100000] [--seed 0] [--atheris SECONDS]`.

Every target of tests/support/hostile.py reads mutations of valid input. Exit status 1 where one raises anything but a
GrowthError, takes more than LONGEST seconds of processor time, or needs more than MEMORY further bytes.
The counts are printed and written to out/fuzz.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # larger than any vocabulary

from growth.errors import GrowthError
from tests.support.hostile import TARGETS

SHARES = {
    "header": 42, "index": 18, "config": 6, "derivation": 3, "recipe": 2, "manifest": 18, "tokenizer": 4,
    "dcp": 2, "names": 4, "end_to_end": 1,
}  # fmt: skip
LONGEST = 2.0  # seconds of one case
ROUNDS = 50
MEMORY = 2 << 30  # bytes of address space above what the imports take


def limit_memory() -> None:
    """Limit the process to MEMORY more than it has now, and reset its peak."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """Return the peak memory in megabytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@dataclass
class Tally:
    """Count the outcomes of the cases of one target."""

    name: str
    seed: int
    cases: int = 0
    accepted: int = 0
    refused: int = 0
    failed: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    peak: float = 0.0

    def run(self, cases: Iterable[int], folder: Path) -> None:
        """Run cases, and print each that fails."""
        folder.mkdir(exist_ok=True)
        limit_memory()
        for case in cases:
            began = time.process_time()
            try:
                TARGETS[self.name](folder, random.Random(f"{self.seed}/{self.name}/{case}"))
                self.accepted += 1
            except GrowthError:
                self.refused += 1
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                self._fail(case, f"{type(error).__name__}: {error!s:.100} ({last.filename}:{last.lineno})")
            self.cases += 1
            took = time.process_time() - began
            self.seconds += took
            self.longest = max(self.longest, took)
            if took > LONGEST:
                self._fail(case, f"took {took:.1f} s")
        self.peak = max(self.peak, peak())

    def _fail(self, case: int, why: str) -> None:
        self.failed += 1
        print(f"{self.name} {case}: {why}", flush=True)

    def __str__(self) -> str:
        counts = f"{self.cases:>9,}{self.refused:>9,}{self.accepted:>10,}{self.failed:>8,}"
        return f"{self.name:12}{counts}{self.seconds:>9.1f}{self.longest:>9.2f}{self.peak:>9,.0f}"

    def figures(self) -> dict[str, float]:
        """Return the counts as JSON values."""
        return {
            "cases": self.cases,
            "refused": self.refused,
            "accepted": self.accepted,
            "failures": self.failed,
            "seconds": round(self.seconds, 2),
            "worst_seconds": round(self.longest, 3),
            "peak_mb": round(self.peak),
        }


def record(tallies: list[Tally], seed: int, seconds: float, path: Path) -> None:
    """Print and write the counts of each target and of all together."""
    print(f"{'target':12}{'cases':>9}{'refused':>9}{'accepted':>10}{'failed':>8}{'s':>9}{'worst s':>9}{'peak MB':>9}")
    print(*tallies, sep="\n")
    found = {
        "seed": seed,
        "cases": sum(tally.cases for tally in tallies),
        "failures": sum(tally.failed for tally in tallies),
        "seconds": round(seconds, 1),
        "worst_seconds": round(max(tally.longest for tally in tallies), 3),
        "peak_mb": round(max(tally.peak for tally in tallies)),
        "targets": {tally.name: tally.figures() for tally in tallies},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    total = f"{found['cases']:,} cases in {seconds:.0f} s, {found['failures']:,} failures"
    print(f"{total}, worst case {found['worst_seconds']:.2f} s, peak {found['peak_mb']:,} MB: {path}", flush=True)


def guided(seconds: int, folder: Path) -> None:
    """Let atheris, guided by coverage, choose the bytes that seed the mutations, and the bytes of a header."""
    import atheris

    for name in [name for name in sys.modules if name.partition(".")[0] in ("growth", "tests")]:
        del sys.modules[name]  # so that they are imported again, with coverage counted
    with atheris.instrument_imports(include=["growth"]):
        from growth.checkpoints.untrusted import parse_json
        from growth.errors import GrowthError
        from growth.planning.recipe import parse_recipe
        from tests.support.hostile import TARGETS

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
    parser.add_argument("--output", type=Path, default=Path("out/fuzz.json"), help="where the figures are written")
    parser.add_argument("--atheris", type=int, metavar="SECONDS", help="coverage-guided, where atheris is installed")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # print the counts, however it ends
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as home:
        if options.atheris:
            guided(options.atheris, Path(home))
            return 0
        names = [options.target] if options.target else list(TARGETS)
        for name in names:  # imports what the targets import
            Tally(name, -1).run(range(1), Path(home) / name)
        tallies = [Tally(name, options.seed) for name in names]
        began = time.perf_counter()
        try:
            for turn in range(ROUNDS):  # targets take turns, so that each has its share even if it ends early
                for tally in tallies:
                    cases = -(-options.cases * SHARES[tally.name] // 100)
                    tally.run(range(cases * turn // ROUNDS, cases * (turn + 1) // ROUNDS), Path(home) / tally.name)
        except KeyboardInterrupt:
            print("stopped early")
            return 130
        finally:
            record(tallies, options.seed, time.perf_counter() - began, options.output)
    return any(tally.failed for tally in tallies)


if __name__ == "__main__":
    sys.exit(main())
