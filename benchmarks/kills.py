"""Kill growths at random moments, resume them, and compare every byte: `python benchmarks/kills.py --kills 120`.

Each case kills a command by SIGKILL up to three times, in one of three modes (whole, --resume, --part), with files of
others beside the staging folder, in it and in its checkpoint. Then it runs the command to its end. The output must have
the bytes of an undisturbed run, and the files of others must be unchanged.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE, RECIPE = ROOT / "examples" / "phi-mini", "phi-mini"
MODES = {
    "whole": [[]],
    "--resume": [["--resume"]],
    "--part": [["--part", f"{n}/3"] for n in (1, 2, 3)],
}
SHARDS = ["--max-shard-size", "500KB"]
MARK = ".out.partial/growth-staging.json"
STRAYS = ("notes.txt", ".out.partial/notes.txt", ".out.partial/checkpoint/done.txt", ".out.partial/checkpoint/x/f")


def command(output: Path, *options: str) -> list[str]:
    """Return the command that grows the small model."""
    return [sys.executable, "-m", "growth", "grow", RECIPE, "-s", str(SOURCE), "-o", str(output), *SHARDS, *options]


def start(words: list[str]) -> subprocess.Popen:
    """Start a command without output."""
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)


def finish(words: list[str]) -> None:
    """Run a command to its end; retry while workers of a killed one still hold their lock."""
    for _ in range(50):
        process = start(words)
        _, said = process.communicate()
        if process.returncode == 0:
            return
        if b"Another process is writing" not in said:
            raise SystemExit(f"{' '.join(words)} failed: {said.decode()}")
        time.sleep(0.1)
    raise SystemExit(f"{' '.join(words)} never got its lock")


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def add_strays(place: Path) -> None:
    """Put files of others into those of the folders that exist."""
    for name in STRAYS:
        path = place / name
        home = path.parent.parent if path.parent.name == "x" else path.parent
        marked = home == place or (place / MARK).exists()  # without its mark, the folder would count as theirs
        if home.is_dir() and marked and not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text("mine")


def strays_in(place: Path) -> set[str]:
    """Return the files of others that are unchanged."""
    return {name for name in STRAYS if (place / name).is_file() and (place / name).read_text() == "mine"}


def killed(words: list[str], moment: float) -> bool:
    """Kill a command after so many seconds; return False if it had ended before."""
    process = start(words)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def case(mode: str, place: Path, draw: random.Random, seconds: float, expected: dict[str, bytes]) -> int:
    """Kill, resume and compare; return the number of kills."""
    output, kills = place / "out", 0
    for _ in range(draw.choice([1, 1, 2, 3])):
        options = draw.choice(MODES[mode])
        if output.exists():
            break
        kills += killed(command(output, *options), draw.uniform(0.2, 1.05) * seconds)
        before = strays_in(place)
        add_strays(place)
        assert strays_in(place) >= before, "somebody's file is gone"
    kept = strays_in(place)
    if mode == "--part":
        for options in MODES[mode]:
            finish(command(output, *options))
    elif mode == "--resume" or output.exists():
        finish(command(output, "--resume"))
    else:
        finish(command(output))
    assert bytes_of(output) == expected, f"{output} has other bytes"
    assert strays_in(place) == kept, "somebody's file is gone"
    left = {path.name for path in place.iterdir()}
    assert left <= {"out", "notes.txt"} | ({".out.partial"} if len(kept) > 1 else set()), f"left behind: {left}"
    return kills


def main() -> None:
    """Run cases until there are as many kills as requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    draw, kills, cases = random.Random(options.seed), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="growth-kills-") as home:
        finish(command(Path(home) / "warm"))
        began = time.perf_counter()
        finish(command(Path(home) / "reference"))
        seconds = time.perf_counter() - began
        expected = bytes_of(Path(home) / "reference")
        while kills.total() < options.kills:
            mode = min(MODES, key=lambda name: kills[name])
            place = Path(home) / "case"
            place.mkdir()
            kills[mode] += case(mode, place, draw, seconds, expected)
            cases[mode] += 1
            shutil.rmtree(place)
    for mode in MODES:
        print(f"{mode}: {kills[mode]} kills in {cases[mode]} cases")
    print(f"{kills.total()} kills in {cases.total()} cases: every output has the same bytes, no file of others is gone")


if __name__ == "__main__":
    main()
