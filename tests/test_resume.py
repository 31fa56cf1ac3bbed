"""Killed, resumed, shared among processes, on a full disk: the output is the same bytes, whole or not there."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

import growth
from growth import CheckpointError, RecipeError
from growth.operators import break_symmetry, chain, deepen, widen
from tests.crash import calls_of, grow_and_die, grow_limited
from tests.models import random_phi, save

EVERYTHING = chain(
    widen("residual", to=40, shares="random"),
    widen("ffn", factor=1.25, init="pad"),
    break_symmetry(method="noise"),
    deepen(to=5),
)
MOMENTS = 50
PARTS = {"max_shard_size": "30KB"}


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def reference(phi_folder, tmp_path_factory):
    """The outputs of growths that nothing disturbs."""
    folder = tmp_path_factory.mktemp("reference")
    growth.grow(EVERYTHING, phi_folder, folder / "whole")
    growth.grow(EVERYTHING, phi_folder, folder / "shards", **PARTS)
    growth.grow(deepen(to=5), phi_folder, folder / "copies")
    return {name: bytes_of(folder / name) for name in ("whole", "shards", "copies")}


@pytest.fixture(scope="module")
def calls(phi_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calls")
    return {
        "whole": calls_of(EVERYTHING, phi_folder, folder / "whole"),
        "copies": calls_of(deepen(to=5), phi_folder, folder / "copies"),
    }


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_killed_growth_resumes_to_the_same_bytes(moment, phi_folder, reference, calls, tmp_path):
    draw = random.Random(moment)
    name, how = draw.choice([("whole", EVERYTHING), ("copies", deepen(to=5))])
    output = tmp_path / name
    for _ in range(draw.choice([1, 1, 2])):  # some are killed again while they resume
        number = draw.randrange(1, calls[name] + 1)
        assert grow_and_die(number, how, phi_folder, output, resume=True) in (0, -signal.SIGKILL)
        assert not output.exists() or bytes_of(output) == reference[name]
    growth.grow(how, phi_folder, output, resume=True)
    assert bytes_of(output) == reference[name]
    assert os.listdir(tmp_path) == [name]


def test_what_is_done_is_not_done_again(phi_folder, reference, calls, tmp_path):
    output = tmp_path / "whole"
    assert grow_and_die(calls["whole"] * 3 // 4, EVERYTHING, phi_folder, output) == -signal.SIGKILL
    (journal,) = (tmp_path / ".whole.partial").glob("done-*")
    done = journal.read_text().splitlines()
    assert len(done) > 5
    inodes = {path.name: path.stat().st_ino for path in (tmp_path / ".whole.partial" / "checkpoint").iterdir()}
    growth.grow(EVERYTHING, phi_folder, output, resume=True)
    assert output.joinpath("model.safetensors").stat().st_ino == inodes["model.safetensors"]
    assert bytes_of(output) == reference["whole"]


def test_damage_to_what_was_done_is_found(phi_folder, reference, calls, tmp_path):
    output = tmp_path / "whole"
    assert grow_and_die(calls["whole"] - 60, EVERYTHING, phi_folder, output) == -signal.SIGKILL
    path = tmp_path / ".whole.partial" / "checkpoint" / "model.safetensors"
    content = bytearray(path.read_bytes())
    for at in range(len(content) // 2, len(content) // 2 + 5000, 100):
        content[at] ^= 1
    path.write_bytes(content)
    growth.grow(EVERYTHING, phi_folder, output, resume=True)
    assert bytes_of(output) == reference["whole"]


def test_another_growth_does_not_go_on_from_it(phi_folder, calls, tmp_path):
    output = tmp_path / "out"
    assert grow_and_die(calls["whole"] // 2, EVERYTHING, phi_folder, output) == -signal.SIGKILL
    with pytest.raises(CheckpointError, match="left by another growth"):
        growth.grow(EVERYTHING, phi_folder, output, resume=True, seed=9)
    plan = growth.grow(EVERYTHING, phi_folder, output, seed=9)  # without resume it starts anew
    assert plan.seed == 9
    assert os.listdir(tmp_path) == ["out"]


def test_resuming_what_is_complete_changes_nothing(phi_folder, reference, tmp_path):
    growth.grow(EVERYTHING, phi_folder, tmp_path / "whole")
    growth.grow(EVERYTHING, phi_folder, tmp_path / "whole", resume=True)
    assert bytes_of(tmp_path / "whole") == reference["whole"]
    with pytest.raises(CheckpointError, match="not this growth"):
        growth.grow(EVERYTHING, phi_folder, tmp_path / "whole", resume=True, seed=4)


# ------------------------------------------------- several processes


@pytest.mark.parametrize("count", [2, 4])
def test_parts_make_the_bytes_of_one_process(count, phi_folder, reference, tmp_path):
    output = tmp_path / "shards"
    order = random.Random(count).sample(range(1, count + 1), count)
    for index in order:
        assert not output.exists()
        growth.grow(EVERYTHING, phi_folder, output, part=(index, count), **PARTS)
    assert bytes_of(output) == reference["shards"]
    assert os.listdir(tmp_path) == ["shards"]


@pytest.mark.parametrize("count", [2, 4])
def test_parts_run_side_by_side_and_one_that_is_killed_is_run_again(count, phi_folder, reference, tmp_path):
    output = tmp_path / "shards"

    def part(index, moment):
        grow_and_die(moment, EVERYTHING, phi_folder, output, part=(index, count), **PARTS)

    context = multiprocessing.get_context("fork")
    parts = [context.Process(target=part, args=(n, 60 if n == 1 else 0)) for n in range(1, count + 1)]
    for process in parts:
        process.start()
    for process in parts:
        process.join()
    assert not output.exists()
    growth.grow(EVERYTHING, phi_folder, output, part=(1, count), **PARTS)
    assert bytes_of(output) == reference["shards"]
    assert os.listdir(tmp_path) == ["shards"]


def test_parts_read_what_they_copy_alone_and_publish_no_mixture_of_sources(phi_folder, tmp_path):
    output, path = tmp_path / "out", shutil.copytree(phi_folder, tmp_path / "source") / "model.safetensors"
    read = {}
    for index in (1, 2):
        total = []
        growth.grow(
            EVERYTHING, path.parent, tmp_path / f"only-{index}", part=(index, 2), **PARTS,
            progress=lambda phase, _, all_, total=total: total.append(all_) if phase == "check source" else None,
        )  # fmt: skip
        read[index] = total[-1]
        noted = json.loads((tmp_path / f".only-{index}.partial" / f"source-{index}-of-2").read_text())
        assert sum(tensor.nbytes for name, tensor in load_file(path).items() if name in noted) == total[-1]
    assert max(read.values()) < path.stat().st_size * 0.9
    growth.grow(EVERYTHING, path.parent, output, part=(1, 2), **PARTS)
    tensors = load_file(path)
    save_file({name: tensor + 0.125 for name, tensor in tensors.items()}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"other values of tensor '.*': the source was changed between them"):
        growth.grow(EVERYTHING, path.parent, output, part=(2, 2), **PARTS)
    assert not output.exists()
    with pytest.raises(CheckpointError, match="left by another growth"):
        growth.grow(EVERYTHING, path.parent, output, part=(1, 2), **PARTS)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="left by another growth"):
        growth.grow(EVERYTHING, path.parent, output, part=(2, 2), **PARTS)


def test_a_part_that_is_at_work_is_not_joined(phi_folder, tmp_path):
    output = tmp_path / "out"

    def again(phase, done, total):
        if phase == "grow":
            growth.grow(EVERYTHING, phi_folder, output, part=(1, 2), **PARTS)

    with pytest.raises(CheckpointError, match="Another process is writing"):
        growth.grow(EVERYTHING, phi_folder, output, part=(1, 2), progress=again, **PARTS)


def test_parts_that_cannot_be(phi_folder, tmp_path):
    with pytest.raises(RecipeError, match=r"4 parts cannot share 1 output file.*--max-shard-size \d+"):
        growth.grow(EVERYTHING, phi_folder, tmp_path / "out", part=(1, 4))
    with pytest.raises(RecipeError, match="no part 3 of 2"):
        growth.grow(EVERYTHING, phi_folder, tmp_path / "out", part=(3, 2))
    assert os.listdir(tmp_path) == []


# ------------------------------------------------- what goes wrong underway


def test_a_file_that_may_not_grow_so_large(phi_folder, tmp_path):
    assert "cannot hold the output: File too large" in grow_limited(50_000, EVERYTHING, phi_folder, tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_full(phi_folder, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("this system does not let one mount")
    try:
        with pytest.raises(CheckpointError, match="GB free"):
            growth.grow(EVERYTHING, phi_folder, small / "out")
        free = shutil.disk_usage
        shutil.disk_usage = lambda path: free("/")  # another process has taken the space since
        try:
            with pytest.raises(CheckpointError, match="No space left on device"):
                growth.grow(EVERYTHING, phi_folder, small / "out")
        finally:
            shutil.disk_usage = free
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("call", ["preadv", "pwrite"])
def test_an_error_of_the_disk(call, phi_folder, tmp_path, monkeypatch):
    source = {path.name: path.read_bytes() for path in phi_folder.iterdir()}
    real, left = getattr(os, call), [30]

    def failing(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EIO, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(CheckpointError, match=r"cannot be (read|written): Input/output error"):
        growth.grow(EVERYTHING, phi_folder, tmp_path / "out")
    assert os.listdir(tmp_path) == []
    assert {path.name: path.read_bytes() for path in phi_folder.iterdir()} == source


def test_a_source_that_is_written_to_underway(tmp_path):
    source = save(random_phi(), tmp_path / "source")

    def touch(phase, done, total):
        if phase == "grow" and done == total:
            os.utime(source / "model.safetensors")

    with pytest.raises(CheckpointError, match="was changed while it was read"):
        growth.grow(EVERYTHING, source, tmp_path / "out", progress=touch)
    assert os.listdir(tmp_path) == ["source"]


def test_the_keyboard_leaves_what_is_done(phi_folder, reference, tmp_path):
    def interrupt(phase, done, total):
        if phase == "grow" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        growth.grow(EVERYTHING, phi_folder, tmp_path / "whole", progress=interrupt)
    assert os.listdir(tmp_path) == [".whole.partial"]
    growth.grow(EVERYTHING, phi_folder, tmp_path / "whole", resume=True)
    assert bytes_of(tmp_path / "whole") == reference["whole"]


def test_a_launcher_names_the_part(phi_folder, phi_mini, tmp_path):
    output = tmp_path / "out"
    for rank in range(2):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}
        command = ["-m", "growth.cli", "grow", "phi-mini", "-s", phi_mini, "-o", output, "--max-shard-size", "1MB"]
        result = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert ("appears when the others" in result.stdout) == (rank == 0)
    assert growth.verify_weights(phi_mini, output).passed
