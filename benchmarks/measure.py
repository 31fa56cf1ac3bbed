"""A command's seconds, processor seconds and peak memory, measured from outside by a process of its own.

    python -S measure.py RESULT_FILE together|alone COMMAND ...

A child inherits, until it executes another program, the peak memory of its parent. The small process between keeps
what the benchmark itself has in memory out of what is measured.
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

PAUSE = 0.02  # seconds between two looks at the memory of several processes
# installed packages are compiled once; where Python is told not to keep what it compiles, ours would be each time
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


@dataclass(frozen=True)
class Run:
    """One process.

    seconds: of wall clock.
    cpu_seconds: user and system time of the process.
    peak_mb: peak resident memory, mapped files counted too, in units of 2**20 bytes; where that is asked for, of
        all processes together that it forks, as far as looks every `PAUSE` seconds see it.
    output: what it printed.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    output: str


def run(*command: object, may_fail: bool = False, together: bool = False) -> Run:
    """Runs a command and measures it; its standard error goes where ours does.

    together: looks at the memory of all its processes, at the cost of its time: a look takes 7 ms of a core.
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
    """A growth command, as installed beside this interpreter."""
    return run(Path(sys.executable).parent / "growth", *arguments, may_fail=may_fail, together=together)


def python(code: str, *arguments: object) -> Run:
    """A program of this interpreter."""
    return run(sys.executable, "-c", code, *arguments)


def spread(values: list[float]) -> dict[str, float]:
    """Least, middle and largest of several."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def summary(runs: list[Run]) -> dict[str, dict[str, float]]:
    """The spread of what was measured of several runs."""
    return {name: spread([getattr(one, name) for one in runs]) for name in ("seconds", "cpu_seconds", "peak_mb")}


def ratios(ours: list[Run], theirs: list[Run]) -> dict[str, float]:
    """The spread of our seconds over theirs, pair by pair."""
    return spread([a.seconds / b.seconds for a, b in zip(ours, theirs, strict=True)])


def size(folder: Path) -> int:
    """Bytes of the files of a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


# touches all memory that processes could have but what sources need of the page cache (old files make room), and
# holds one page in each MB of it, until its standard input ends
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
    """Keeps free memory at hand for as long as something is measured.

    A virtual machine that gives free memory back to its host gets it again page by page, when it is first touched:
    measured here, a first touch goes at 0.3 GB/s and a later one at 3. It gives back whole blocks of 2 MB. Where a
    process holds one page in each, the others stay; unless the kernel moves those pages together, which it does not
    with `sysctl vm.compaction_proactiveness=0`.
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
    """Has a folder's files in the page cache, and nothing that an earlier run left to be written back."""
    buffer = bytearray(1 << 22)
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    os.sync()


class _Watch(threading.Thread):
    """Looks now and then at how much memory a process and those it has forked take together.

    peak: the most, in units of 2**20 bytes; of a page that several share each counts its part.
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
    """Resident memory of a process, in units of 2**20 bytes; what it shares in equal parts with others."""
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
