"""Measure a command's seconds, processor seconds and peak memory from outside, in a process of its own.

    python -S measure.py RESULT_FILE together|alone COMMAND ...

Until a child process executes another program, it inherits the peak memory of its parent. The small process in between
keeps the memory of the benchmark itself out of the measurement.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PAUSE = 0.02  # seconds between two samples of the memory of several processes
# installed packages are compiled once; without this, ours would be compiled each time if Python may not cache it
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


@dataclass(frozen=True)
class Run:
    """The measurement of one process.

    seconds: of wall clock.
    cpu_seconds: user and system time of the process.
    peak_mb: peak resident memory, mapped files counted too, in units of 2**20 bytes; if requested, of
        all processes that it forks together, sampled every `PAUSE` seconds.
    output: what it printed.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    output: str


def run(*command: object, may_fail: bool = False, together: bool = False) -> Run:
    """Run a command and measure it; its standard error is inherited.

    together: sample the memory of all its processes, which slows it down: each sample takes 7 ms of a core.
    """
    words = [str(word) for word in command]
    print("$", *(word if "\n" not in word else "'…'" for word in words), flush=True)
    with tempfile.NamedTemporaryFile("r") as result:
        launcher = [sys.executable, "-S", __file__, result.name, "together" if together else "alone", *words]
        done = subprocess.run(launcher, stdout=subprocess.PIPE, text=True, check=False, env=ENVIRONMENT)
        if done.returncode and not may_fail:
            raise SystemExit(f"{' '.join(words)} failed with status {done.returncode}\n{done.stdout}")
        figures = json.load(result)
    return Run(output=done.stdout, **figures)


def growth(*arguments: object, may_fail: bool = False, together: bool = False) -> Run:
    """Run a command of growth, as installed beside this interpreter."""
    return run(Path(sys.executable).parent / "growth", *arguments, may_fail=may_fail, together=together)


def python(code: str, *arguments: object) -> Run:
    """Run a program by this interpreter."""
    return run(sys.executable, "-c", code, *arguments)


def spread(values: list[float]) -> dict[str, float]:
    """Return the least, median and greatest of several values."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def summary(runs: list[Run]) -> dict[str, dict[str, float]]:
    """Return the spread of each measurement over several runs."""
    return {name: spread([getattr(one, name) for one in runs]) for name in ("seconds", "cpu_seconds", "peak_mb")}


def ratios(ours: list[Run], theirs: list[Run]) -> dict[str, float]:
    """Return the spread of the ratio of our seconds to theirs, pair by pair."""
    return spread([a.seconds / b.seconds for a, b in zip(ours, theirs, strict=True)])


def size(folder: Path) -> int:
    """Return the bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


# touch all available memory but what the page cache needs for the sources (old files make room), and hold one page
# in each MB of it, until standard input ends
KEEP = """\
import mmap, sys
with open("/proc/meminfo") as file:
    words = (line.split() for line in file)
    memory = {word: int(number) << 10 for word, number, *_ in words}
page, block = mmap.PAGESIZE, 1 << 20
size = max(block, memory["MemFree:"] - (1 << 30), memory["MemAvailable:"] - (6 << 30)) // block * block
held = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
held.madvise(mmap.MADV_NOHUGEPAGE)
for at in range(0, len(held), page):
    held[at] = 1
for at in range(0, len(held), block):
    held.madvise(mmap.MADV_DONTNEED, at + page, block - page)
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def kept_warm() -> Iterator[None]:
    """Keep free memory resident while something is measured.

    A virtual machine that returns free memory to its host gets it back page by page, when it is first touched: at
    0.3 GB/s here, against 3 GB/s for later touches. It returns whole blocks of 2 MB. If a process holds one page of
    each block, the others stay, unless the kernel compacts those pages (`sysctl vm.compaction_proactiveness=0`
    prevents it).
    """
    keeper = subprocess.Popen([sys.executable, "-S", "-c", KEEP], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert keeper.stdout is not None
        if keeper.stdout.readline() != b"ready\n":
            raise SystemExit("Free memory could not be touched, so that nothing can be measured: see above.")
        yield
    finally:
        keeper.communicate()


def warm(folder: Path) -> None:
    """Read the files of a folder into the page cache, and wait until nothing is left to be written back."""
    buffer = bytearray(1 << 22)
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    os.sync()


class _Watch(threading.Thread):
    """Sample the memory that a process and those it has forked use together.

    peak: the largest sample, in units of 2**20 bytes; of a page shared by n processes, each counts 1/n.
    """

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.peak = pid, 0.0

    def run(self) -> None:
        while True:
            time.sleep(PAUSE)
            with suppress(OSError, StopIteration):  # it has just ended
                children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
                if children:
                    self.peak = max(self.peak, sum(map(_share, [self.pid, *children])))


def _share(pid: int | str) -> float:
    """Return the proportional set size of a process in units of 2**20 bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _launch(result: str, together: bool, words: list[str]) -> int:
    began = time.perf_counter()
    process = subprocess.Popen(words)
    watch = _Watch(process.pid)
    if together:
        watch.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    used = {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": max(watch.peak, usage.ru_maxrss / 1024),
    }
    Path(result).write_text(json.dumps(used))
    return process.returncode


if __name__ == "__main__":
    sys.exit(_launch(sys.argv[1], sys.argv[2] == "together", sys.argv[3:]))
