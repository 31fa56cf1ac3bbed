"""The programs of benchmarks/, tried on models of no size and on few cases."""

import json
import subprocess
import sys

import pytest

from tests.support.paths import ROOT


def run(script, *arguments):
    command = [sys.executable, ROOT / "benchmarks" / script, *arguments]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_benchmark_writes_tables_figures_and_pictures(tmp_path):
    output = tmp_path / "bench"
    printed = run(
        "bench.py", "--tiny", "--only", "startup,sweep", "--rounds", 1, "--output", output, "--place", tmp_path
    )
    found = json.loads((output / "bench.json").read_text())
    assert found.keys() == {"startup", "sweep", "machine"}
    assert found["sweep"]["points"].keys() == {"tiny", "larger"}
    tables = (output / "bench.txt").read_text()
    assert "Start-up" in tables
    assert "By size" in tables
    assert all(line in printed for line in tables.splitlines())
    assert (output / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert printed.splitlines()[-2:] == [f"Tables: {output / 'bench.txt'}", f"Picture: {output / 'sweep.png'}"]


@pytest.mark.slow
def test_hostile_input_is_counted(tmp_path):
    path = tmp_path / "out" / "fuzz.json"
    printed = run("fuzz.py", "--cases", 200, "--output", path)
    found = json.loads(path.read_text())
    assert found["failures"] == 0
    assert found["cases"] == sum(target["cases"] for target in found["targets"].values()) >= 200
    assert all(target["cases"] > 0 for target in found["targets"].values())
    assert found["worst_seconds"] < 2
    assert 0 < found["peak_mb"] < 2000
    assert str(path) in printed.splitlines()[-1]


@pytest.mark.slow
def test_growths_are_killed_and_resumed():
    printed = run("kills.py", "--kills", 6)
    assert "every output has the same bytes, no file of others is gone" in printed.splitlines()[-1]
