"""A source that is read while its growth is planned: the same bytes, the same refusals, and nothing is left behind."""

import multiprocessing
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import load_file, save_file

import growth
from growth import CheckpointError
from growth.__main__ import begun_early, named_source
from growth.checkpoints.open import open_stored
from growth.checkpoints.tensor_reader import SourceScan
from growth.output.prefetch import read_ahead
from growth.runtime.workers import hands
from tests.support.folders import bytes_of


@pytest.fixture
def copied(phi_mini, tmp_path):
    """A copy of the mini checkpoint that can be damaged."""
    return shutil.copytree(phi_mini, tmp_path / "source")


def test_it_is_read_before_anybody_asks_and_grows_to_the_same_bytes(phi_mini, tmp_path, alone):
    growth.grow("phi-mini", phi_mini, tmp_path / "plain")
    with read_ahead(phi_mini) as ahead:
        assert len(multiprocessing.active_children()) == 1
        plan = growth.grow("phi-mini", ahead, tmp_path / "ahead", forks=True)
    assert plan.preserving
    assert bytes_of(tmp_path / "ahead") == bytes_of(tmp_path / "plain")
    assert not multiprocessing.active_children()


def test_a_refused_growth_stops_it(phi_mini, tmp_path, alone):
    with pytest.raises(growth.ConfigError), read_ahead(phi_mini) as ahead:
        growth.grow("phi-1.5-to-phi-2", ahead, tmp_path / "out", seed=-1, forks=True)
    assert not multiprocessing.active_children()
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_changes_after_it_was_read_is_refused(copied, tmp_path, alone):
    with read_ahead(copied) as ahead:
        time.sleep(0.2)
        tensors = load_file(copied / "model.safetensors")
        save_file({name: tensor + 1 for name, tensor in tensors.items()}, copied / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"changed (while it was read|underway)"):
            growth.grow("phi-mini", ahead, tmp_path / "out", forks=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("forks", [True, False])
def test_what_is_not_finite_matters_where_it_is_asked_for(copied, forks, alone):
    path = copied / "model.safetensors"
    tensors = load_file(path)
    bad, *others = sorted(tensors)
    tensors[bad].view(-1)[0] = torch.nan
    save_file({**tensors, "counts": torch.arange(3)}, path)
    found = open_stored(copied).tensors
    with hands(forks=forks) as many, SourceScan.begun(many, found) as reading:
        assert sorted(reading.contents(others)) == others
    refused = pytest.raises(CheckpointError, match=f"'{bad}' .* holds NaN or Inf")
    with hands(forks=forks) as many, SourceScan.begun(many, found) as reading, refused:
        reading.contents(tensors)


# ------------------------------------------------- the command


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ("grow phi-mini -s {} -o out", True),
        ("grow --source {} phi-mini -o out --resume --verify", True),
        ("grow --source={} phi-mini -o out", True),
        ("grow phi-mini -o out", False),
        ("grow phi-mini -s {}/nowhere -o out", False),
        ("grow phi-mini -s {} -s {} -o out", False),
        ("grow phi-mini -s {} --source={} -o out", False),
        ("grow phi-mini -s", False),
        ("grow phi-mini -s {} -o out --part 1/2", False),
        ("grow phi-mini -s {} -o out --part=1/2", False),
        ("grow phi-mini -s {} -o out --format dcp", False),
        ("grow phi-mini -s {} -o out --training", False),
        ("plan phi-mini -s {}", False),
        ("", False),
    ],
)
def test_a_source_that_is_named_plainly_is_found_without_parsing(arguments, read, tmp_path):
    assert named_source(arguments.format(tmp_path, tmp_path).split()) == (tmp_path if read else None)


@pytest.mark.parametrize(("count", "reads"), [("1", True), ("2", False)])
def test_one_of_several_processes_does_not_read_all_of_it(count, reads, phi_mini, monkeypatch, alone):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", count)
    with ExitStack() as stack:
        assert (begun_early(["grow", "phi-mini", "-s", str(phi_mini)], stack) is not None) == reads


TRACED = """\
import os, sys
fork = os.fork
os.fork = lambda: print("typer was there:", "typer" in sys.modules, flush=True) or fork()
from growth.__main__ import main
main()
"""


def traced(*arguments):
    """Returns when nobody writes to its pipes any more: when all that were forked have ended too."""
    return subprocess.run([sys.executable, "-c", TRACED, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
def test_the_command_reads_before_it_parses(phi_mini, tmp_path):
    growth.grow("phi-mini", phi_mini, tmp_path / "threads")
    done = traced("grow", "phi-mini", "-s", phi_mini, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    first, *others = [line for line in done.stdout.splitlines() if line.startswith("typer was there")]
    assert (first, set(others)) == ("typer was there: False", {"typer was there: True"})
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "threads")


def test_what_cannot_be_read_early_is_refused_by_the_command(copied, tmp_path):
    (copied / "config.json").write_text("{")
    refused = traced("grow", "phi-mini", "-s", copied, "-o", tmp_path / "out")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert "config.json" in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
def test_arguments_that_are_wrong_end_what_was_begun(phi_mini, tmp_path):
    refused = traced("grow", "phi-mini", "-s", phi_mini, "-o", tmp_path / "out", "--nonsense")
    assert refused.returncode == 2
    assert "--nonsense" in refused.stderr
    assert refused.stdout.splitlines()[-1] == "typer was there: False"
    assert list(tmp_path.iterdir()) == []
