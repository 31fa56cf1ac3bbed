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
import time

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import growth
from growth import CheckpointError, RecipeError
from growth.cli.app import app
from growth.operators import break_symmetry, chain, deepen, widen
from tests.support.crash import calls_of, grow_and_die, grow_limited
from tests.support.folders import bytes_of
from tests.support.selection import first_quick

STEPS = (
    widen("residual", to=40, shares="random", init="tile"),
    widen("ffn", factor=1.25, init="pad"),
    break_symmetry(),
    deepen(to=5),
)
EVERYTHING = chain(*STEPS)
COPIES = deepen(to=5)
ALIKE = chain(
    widen("residual", to=40, init="tile", shares="equal"), deepen(order=[0, 0, 0, 1, 2, 2], init="copy")
)  # several tensors at a time
MOMENTS = 50
LAST = 34  # calls: the last tensor's, then those that make it durable, publish it and clear up
PARTS = {"max_shard_size": "30KB"}


@pytest.fixture(scope="module")
def reference(phi_folder, tmp_path_factory):
    """The outputs of growths that nothing disturbs."""
    folder = tmp_path_factory.mktemp("reference")
    growth.grow(EVERYTHING, phi_folder, folder / "whole")
    growth.grow(EVERYTHING, phi_folder, folder / "shards", **PARTS)
    growth.grow(COPIES, phi_folder, folder / "copies")
    growth.grow(ALIKE, phi_folder, folder / "alike")
    return {name: bytes_of(folder / name) for name in ("whole", "shards", "copies", "alike")}


@pytest.fixture(scope="module")
def mini(phi_mini, tmp_path_factory):
    output = tmp_path_factory.mktemp("mini") / "out"
    growth.grow("phi-mini", phi_mini, output)
    return bytes_of(output)


@pytest.fixture(scope="module")
def calls(phi_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calls")
    return {
        "whole": calls_of(EVERYTHING, phi_folder, folder / "whole"),
        "shards": calls_of(EVERYTHING, phi_folder, folder / "shards", **PARTS),
        "copies": calls_of(COPIES, phi_folder, folder / "copies"),
        "alike": calls_of(ALIKE, phi_folder, folder / "alike"),
    }


@pytest.mark.parametrize("moment", first_quick(range(MOMENTS), 20))
def test_a_killed_growth_resumes_to_the_same_bytes(moment, phi_folder, reference, calls, tmp_path):
    draw = random.Random(moment)
    name, how = draw.choice([("whole", EVERYTHING), ("copies", COPIES), ("alike", ALIKE)])
    output = tmp_path / name
    for _ in range(draw.choice([1, 1, 2])):  # some are killed again while they resume
        number = draw.randrange(1, calls[name] + 1)
        assert grow_and_die(number, how, phi_folder, output, resume=True) in (0, -signal.SIGKILL)
        assert not output.exists() or bytes_of(output) == reference[name]
    growth.grow(how, phi_folder, output, resume=True)
    assert bytes_of(output) == reference[name]
    assert os.listdir(tmp_path) == [name]


def test_killed_before_any_of_its_last_calls_a_growth_is_whole_or_not_there(phi_folder, reference, calls, tmp_path):
    there = []
    for number in range(calls["whole"] - LAST + 1, calls["whole"] + 2):
        output = tmp_path / str(number) / "whole"
        output.parent.mkdir()
        killed = grow_and_die(number, EVERYTHING, phi_folder, output)
        assert killed == (-signal.SIGKILL if number <= calls["whole"] else 0)
        there.append(output.exists())
        assert not output.exists() or bytes_of(output) == reference["whole"]
        growth.grow(EVERYTHING, phi_folder, output, resume=True)
        assert bytes_of(output) == reference["whole"]
        assert os.listdir(output.parent) == ["whole"]
    assert there == sorted(there)
    assert set(there) == {False, True}


@pytest.mark.parametrize("sign", [".out.partial/finished-1-of-1", "out"])
def test_who_watches_the_name_of_a_command_that_is_killed_sees_all_or_nothing(sign, phi_mini, mini, tmp_path):
    """It is killed as soon as the watcher sees `sign`."""
    output = tmp_path / "out"
    command = [sys.executable, "-m", "growth", "grow", "phi-mini", "-s", phi_mini, "-o", output]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if (tmp_path / sign).exists():
                process.kill()
            assert not output.exists() or bytes_of(output) == mini
            time.sleep(0.0005)
    assert process.returncode == -signal.SIGKILL or output.exists()
    assert not output.exists() or bytes_of(output) == mini
    growth.grow("phi-mini", phi_mini, output, resume=True)
    assert bytes_of(output) == mini
    assert os.listdir(tmp_path) == ["out"]


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


def test_without_resume_another_growth_starts_anew(phi_folder, calls, tmp_path):
    output = tmp_path / "out"
    assert grow_and_die(calls["whole"] // 2, EVERYTHING, phi_folder, output) == -signal.SIGKILL
    assert growth.grow(EVERYTHING, phi_folder, output, seed=9).seed == 9
    assert os.listdir(tmp_path) == ["out"]


def with_another_config(source):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"initializer_range": 0.5}))


def with_other_values(source):
    path = source / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.fc1.weight"][0, 0] += 0.125
    save_file(tensors, path, {"format": "pt"})


OTHERS = {
    "seed": {"seed": 9},
    "recipe": {"recipe": chain(*STEPS[:2], break_symmetry(method="mask"), *STEPS[3:])},
    "dtype": {"dtype": "float32"},
    "shard size": {"max_shard_size": "40KB"},
    "one file": {"max_shard_size": None},
    "parts": {"part": (1, 2)},
    "config": {"change": with_another_config},
    "values": {"change": with_other_values},
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_growth_does_not_go_on_from_it(other, phi_folder, reference, calls, tmp_path):
    source, output = shutil.copytree(phi_folder, tmp_path / "source"), tmp_path / "shards"
    assert grow_and_die(calls["shards"] // 2, EVERYTHING, source, output, **PARTS) == -signal.SIGKILL
    options = {"recipe": EVERYTHING, **PARTS, **OTHERS[other]}
    options.pop("change", lambda source: None)(source)
    with pytest.raises(CheckpointError, match="left by another run"):
        growth.grow(source=source, output=output, resume=True, **options)
    shutil.copytree(phi_folder, source, dirs_exist_ok=True)
    growth.grow(EVERYTHING, source, output, resume=True, **PARTS)  # and has spoilt nothing
    assert bytes_of(output) == reference["shards"]
    assert sorted(os.listdir(tmp_path)) == ["shards", "source"]


def test_resuming_what_is_complete_changes_nothing(phi_folder, reference, tmp_path):
    growth.grow(EVERYTHING, phi_folder, tmp_path / "whole")
    growth.grow(EVERYTHING, phi_folder, tmp_path / "whole", resume=True)
    assert bytes_of(tmp_path / "whole") == reference["whole"]
    with pytest.raises(CheckpointError, match="not written by a run with this source and these arguments"):
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


@pytest.mark.parametrize("moment", range(6))
def test_a_part_that_is_killed_beside_others_is_run_again(moment, phi_folder, reference, tmp_path):
    draw = random.Random(moment)
    count = draw.choice([2, 3])
    killed = (draw.randrange(1, count + 1), count)
    number = draw.randrange(1, calls_of(EVERYTHING, phi_folder, tmp_path / "count" / "out", part=killed, **PARTS) + 1)
    output = tmp_path / "shards"
    others = [
        multiprocessing.get_context("fork").Process(
            target=growth.grow, args=(EVERYTHING, phi_folder, output), kwargs={"part": (index, count), **PARTS}
        )
        for index in range(1, count + 1)
        if index != killed[0]
    ]
    for process in others:
        process.start()
    assert grow_and_die(number, EVERYTHING, phi_folder, output, part=killed, **PARTS) == -signal.SIGKILL
    for process in others:
        process.join()
        assert process.exitcode == 0
    assert not output.exists() or bytes_of(output) == reference["shards"]
    growth.grow(EVERYTHING, phi_folder, output, part=killed, **PARTS)
    assert bytes_of(output) == reference["shards"]
    assert sorted(os.listdir(tmp_path)) == ["count", "shards"]


def test_the_last_part_is_killed_about_its_publishing_and_run_again(phi_folder, reference, tmp_path):
    begun, there = tmp_path / "begun", []
    growth.grow(EVERYTHING, phi_folder, begun / "shards", part=(1, 2), **PARTS)
    counted = shutil.copytree(begun, tmp_path / "counted")
    last = calls_of(EVERYTHING, phi_folder, counted / "shards", part=(2, 2), **PARTS)
    for number in range(last - LAST, last + 1, 3):
        output = shutil.copytree(begun, tmp_path / str(number)) / "shards"
        assert grow_and_die(number, EVERYTHING, phi_folder, output, part=(2, 2), **PARTS) == -signal.SIGKILL
        there.append(output.exists())
        assert not output.exists() or bytes_of(output) == reference["shards"]
        growth.grow(EVERYTHING, phi_folder, output, part=(2, 2), **PARTS)
        assert bytes_of(output) == reference["shards"]
        assert os.listdir(output.parent) == ["shards"]
    assert set(there) == {False, True}


def with_another_header(path):
    content = path.read_bytes()
    path.write_bytes(content[:20] + bytes(20) + content[40:])


DAMAGES = {
    "removed": lambda path: path.unlink(),
    "empty": lambda path: os.truncate(path, 0),
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "too long": lambda path: os.truncate(path, path.stat().st_size + 1),
    "header": with_another_header,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_who_finishes_last_looks_at_the_files_of_all(damage, phi_folder, reference, tmp_path):
    output, folder = tmp_path / "shards", tmp_path / ".shards.partial" / "checkpoint"
    growth.grow(EVERYTHING, phi_folder, output, part=(1, 2), **PARTS)
    DAMAGES[damage](max(folder.glob("*.safetensors")))
    with pytest.raises(CheckpointError, match=r"is incomplete.*Grow it again"):
        growth.grow(EVERYTHING, phi_folder, output, part=(2, 2), **PARTS)
    assert not output.exists()
    growth.grow(EVERYTHING, phi_folder, output, part=(1, 2), **PARTS)
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
    with pytest.raises(CheckpointError, match="left by another run"):
        growth.grow(EVERYTHING, path.parent, output, part=(1, 2), **PARTS)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="left by another run"):
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


def touched(path):
    os.utime(path)


def rewritten(path):
    """Other values in the same place, of the same size and the same age."""
    was = path.stat()
    with path.open("r+b") as file:
        file.seek(was.st_size - 8)
        file.write(bytes(8))
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def replaced(path):
    """Another file of the same bytes, size and age."""
    shutil.copy2(path, path.with_name("draft"))
    path.with_name("draft").rename(path)


@pytest.mark.parametrize("phase", ["check source", "grow"])
@pytest.mark.parametrize("moment", ["first", "last"])
@pytest.mark.parametrize("change", [touched, rewritten, replaced])
def test_a_source_that_is_changed_underway(change, moment, phase, phi_folder, tmp_path):
    source = shutil.copytree(phi_folder, tmp_path / "source")

    def changing(now, done, total):
        if now == phase and done == (0 if moment == "first" else total):
            change(source / "model.safetensors")

    with pytest.raises(CheckpointError, match="was changed while it was read"):
        growth.grow(EVERYTHING, source, tmp_path / "out", progress=changing)
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


# ------------------------------------------------- launchers

OF_TORCHRUN = ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID")
OF_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID")


def said_by(tmp_path, phi_folder, environment, *options):
    """What the command prints where these variables, and no others of a launcher, are set."""
    (tmp_path / "recipe.yaml").write_text("description: deeper\nsteps: [{op: deepen, to: 5}]")
    command = ["grow", tmp_path / "recipe.yaml", "-s", phi_folder, "-o", tmp_path / "out", "--max-shard-size", "30KB"]
    variables = dict.fromkeys((*OF_TORCHRUN, *OF_SRUN)) | environment
    result = CliRunner().invoke(app, [*map(str, command), *options], env=variables)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("names", [OF_TORCHRUN, OF_SRUN])
@pytest.mark.parametrize(("rank", "count"), [(0, 2), (1, 2), (2, 3)])
def test_a_launcher_names_the_part(names, rank, count, phi_folder, tmp_path):
    variables = dict(zip(names, (str(rank), str(count), "7"), strict=True))
    assert f"Wrote part {rank + 1} of {count}." in said_by(tmp_path, phi_folder, variables)
    assert (tmp_path / ".out.partial" / f"finished-{rank + 1}-of-{count}").exists()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"RANK": "1"},
        {"RANK": "1", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "7"},
        {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_NPROCS": "2", "SLURM_JOB_NUM_NODES": "2"},  # of sbatch
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "2"},
    ],
)
def test_other_variables_name_no_part(variables, phi_folder, tmp_path):
    assert f"Wrote {tmp_path / 'out'}:" in said_by(tmp_path, phi_folder, variables)
    assert os.listdir(tmp_path / "out")


def test_what_is_asked_for_comes_before_the_launcher(phi_folder, tmp_path):
    variables = dict(zip(OF_TORCHRUN, ("1", "2", "7"), strict=True))
    assert "Wrote part 3 of 4." in said_by(tmp_path, phi_folder, variables, "--part", "3/4")


@pytest.mark.parametrize("names", [OF_TORCHRUN, OF_SRUN])
def test_variables_without_their_launcher_count_only_if_asked_for(names, phi_folder, tmp_path):
    variables = dict(zip(names[:2], ("1", "2"), strict=True))
    said = said_by(tmp_path, phi_folder, variables)
    assert f"{names[0]}=1 and {names[1]}=2 are set" in said
    assert f"Wrote {tmp_path / 'out'}:" in said
    shutil.rmtree(tmp_path / "out")
    assert "Wrote part 2 of 2." in said_by(tmp_path, phi_folder, variables, "--part", "auto")
