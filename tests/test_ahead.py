"""A source that is read while its growth is planned: the same bytes, the same refusals, and nothing is left behind."""

import json
import multiprocessing
import os
import shutil
import time
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

import growth
from growth import CheckpointError
from growth.ahead import read_ahead
from growth.checkpoint import Checkpoint
from growth.hands import Meter, Processes, hands
from growth.reading import Reading


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def alone(monkeypatch):
    """The threads of the tests' own machinery are not looked at, so that processes are forked."""
    monkeypatch.setattr("threading.active_count", lambda: 1)


@pytest.fixture
def copied(phi_mini, tmp_path):
    """A copy of the mini checkpoint that can be damaged."""
    return shutil.copytree(phi_mini, tmp_path / "source")


def waited_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
    return True


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
    found = Checkpoint.open(copied).tensors
    with hands(forks=forks) as many, Reading.begun(many, found) as reading:
        assert sorted(reading.contents(others)) == others
    refused = pytest.raises(CheckpointError, match=f"'{bad}' .* holds NaN or Inf")
    with hands(forks=forks) as many, Reading.begun(many, found) as reading, refused:
        reading.contents(tensors)


# ------------------------------------------------- hands


def leave(path, seconds=0.0):
    time.sleep(seconds)
    path.write_text(str(os.getpid()))
    return path.name


def test_one_process_begins_at_once_and_all_go_on(tmp_path, alone, monkeypatch):
    monkeypatch.setattr("growth.hands.cores", lambda: 4)
    with Processes().begin([partial(leave, tmp_path / str(n), 0.02) for n in range(40)]) as work:
        waited_for((tmp_path / "2").exists)
        assert len(multiprocessing.active_children()) == 1
        results = dict(work.results(Meter("work", 1)))
    assert results == {n: str(n) for n in range(40)}  # each once
    assert len({path.read_text() for path in tmp_path.iterdir()}) > 1


def test_threads_begin_when_they_are_asked(tmp_path):
    with hands(forks=False) as many, many.begin([partial(leave, tmp_path / "0")]) as work:
        time.sleep(0.05)
        assert list(tmp_path.iterdir()) == []
        assert list(work.results(Meter("work", 1))) == [(0, "0")]


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("forks", [False, True])
def test_nothing_goes_on_after_the_context(forks, asked, tmp_path, alone):
    with hands(forks=forks) as many, many.begin([partial(leave, tmp_path / str(n), 0.05) for n in range(200)]) as work:
        if asked:
            next(work.results(Meter("work", 1)))
    there = len(list(tmp_path.iterdir()))
    time.sleep(0.2)
    assert len(list(tmp_path.iterdir())) == there < 100
    assert not multiprocessing.active_children()


# ------------------------------------------------- space


@pytest.mark.parametrize("slow", [-1, 1000])
def test_space_is_kept_as_long_as_that_takes_no_time(slow, phi_mini, tmp_path, monkeypatch):
    asked, kept = [], os.posix_fallocate
    monkeypatch.setattr("growth.writing.SLOW", slow)
    monkeypatch.setattr("growth.writing.ASIDE", 1 << 10)
    monkeypatch.setattr(
        "os.posix_fallocate", lambda file, start, size: asked.append((start, size)) or kept(file, start, size)
    )
    growth.grow("phi-mini", phi_mini, tmp_path / "out")
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    expected = [0, 1 << 10, *((1 << 10) * (2**n - 1) for n in range(2, 30))]
    assert [start for start, _ in asked] == (expected[:1] if slow < 0 else [at for at in expected if at < size])
    assert sum(length for _, length in asked) == (1 << 10 if slow < 0 else size)
    assert json.loads((tmp_path / "out" / "growth.json").read_text())["tensors"]
    assert growth.verify_weights(phi_mini, tmp_path / "out").passed
