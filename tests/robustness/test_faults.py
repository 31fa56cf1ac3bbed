"""File systems that lack calls, and limits that are reached: the same bytes, or one sentence and nothing left behind."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import growth
from growth import CheckpointError
from growth.cli.app import app
from growth.operators import chain, deepen, widen
from tests.support.folders import bytes_of, state

HOW = chain(widen("residual", to=40, init="tile", shares="equal"), deepen(to=5, init="copy"))
PARTS = {"max_shard_size": "30KB"}


@pytest.fixture(scope="module")
def grown(phi_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grown")
    growth.grow(HOW, phi_folder, folder / "wider")
    growth.grow(deepen(to=5), phi_folder, folder / "deeper")  # tensors that the kernel copies
    return {name: bytes_of(folder / name) for name in ("wider", "deeper")}


def failing(code):
    def call(*arguments, **keywords):
        raise OSError(code, os.strerror(code))

    return call


# ------------------------------------------------- file systems without locks

NO_LOCKS = [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL]


@pytest.mark.parametrize("code", NO_LOCKS, ids=errno.errorcode.get)
def test_without_locks_a_growth_alone_works_in_a_folder_of_its_own(code, phi_folder, grown, tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", failing(code))
    growth.grow(HOW, phi_folder, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == grown["wider"]
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("code", NO_LOCKS, ids=errno.errorcode.get)
@pytest.mark.parametrize("options", [{}, {"resume": True}, {"part": (1, 2), **PARTS}], ids=["whole", "resume", "part"])
def test_without_locks_nobody_joins_or_replaces_what_is_there(options, code, phi_folder, tmp_path, monkeypatch):
    def interrupt(phase, done, total):
        if phase == "grow" and done:
            raise KeyboardInterrupt

    if "part" not in options:
        with pytest.raises(KeyboardInterrupt):
            growth.grow(HOW, phi_folder, tmp_path / "out", progress=interrupt)
    before = state(tmp_path)
    monkeypatch.setattr(fcntl, "flock", failing(code))
    with pytest.raises(CheckpointError, match=r"file system without locks .*remove that folder"):
        growth.grow(HOW, phi_folder, tmp_path / "out", **options)
    assert state(tmp_path) == before


# ------------------------------------------------- file systems that lack other calls


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS], ids=errno.errorcode.get)
def test_space_that_cannot_be_kept_is_not(code, phi_folder, grown, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", failing(code))
    growth.grow(HOW, phi_folder, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == grown["wider"]


REAL_COPY = os.copy_file_range


def some_then_nothing(source, target, count, *offsets):
    """The first calls copy a few bytes; then there is nothing more to be had."""
    some_then_nothing.calls += 1
    return REAL_COPY(source, target, min(count, 100), *offsets) if some_then_nothing.calls < 9 else 0


@pytest.mark.parametrize(
    "call",
    [
        lambda *arguments: 0,
        some_then_nothing,
        *(failing(getattr(errno, name)) for name in ("EXDEV", "EINVAL", "ENOSYS", "EBADF", "EOPNOTSUPP", "EPERM")),
    ],
    ids=["nothing", "some", "EXDEV", "EINVAL", "ENOSYS", "EBADF", "EOPNOTSUPP", "EPERM"],
)
def test_what_the_kernel_does_not_copy_is_read_and_written(call, phi_folder, grown, tmp_path, monkeypatch):
    some_then_nothing.calls = 0
    monkeypatch.setattr(os, "copy_file_range", call)
    growth.grow(deepen(to=5), phi_folder, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == grown["deeper"]


@pytest.mark.parametrize("operator", [HOW, deepen(to=5)], ids=["grown", "copied"])
def test_short_writes_are_continued(operator, phi_folder, grown, tmp_path, monkeypatch):
    real, append = os.pwrite, os.write
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: real(file, data[: max(1, len(data) // 3)], at))
    monkeypatch.setattr(os, "write", lambda file, data: append(file, data[: max(1, len(data) // 3)]))
    monkeypatch.setattr(os, "copy_file_range", failing(errno.EXDEV))
    growth.grow(operator, phi_folder, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == grown["wider" if operator is HOW else "deeper"]


@pytest.mark.parametrize("name", ["pwrite", "write"])
def test_writes_that_take_nothing_are_an_error(name, phi_folder, tmp_path, monkeypatch):
    real, left = getattr(os, name), [5]

    def stuck(*arguments):
        left[0] -= 1
        return real(*arguments) if left[0] > 0 else 0

    monkeypatch.setattr(os, name, stuck)
    with pytest.raises(CheckpointError, match=r"cannot (be written|hold the output): .*accepted none of the bytes"):
        growth.grow(HOW, phi_folder, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_directories_that_cannot_be_synced_are_not(phi_folder, grown, tmp_path, monkeypatch):
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: failing(errno.EINVAL)() if os.path.isdir(f"/proc/self/fd/{file}") else real(file)
    )
    growth.grow(HOW, phi_folder, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == grown["wider"]


# ------------------------------------------------- limits of a process


@pytest.fixture(scope="module")
def run_folder(phi_mini, tmp_path_factory):
    """A Trainer's checkpoint, as far as growth reads it."""
    import torch
    import transformers

    folder = shutil.copytree(phi_mini, tmp_path_factory.mktemp("run") / "run")
    model = transformers.AutoModelForCausalLM.from_pretrained(phi_mini)
    trainer = transformers.Trainer(model, transformers.TrainingArguments(str(folder.parent), report_to=[]))
    torch.save(trainer.create_optimizer().state_dict(), folder / "optimizer.pt")
    return folder


def limited(limit, *arguments):
    """A command under a limit of the shell's."""
    words = [sys.executable, "-m", "growth", *map(str, arguments)]
    return subprocess.run(
        ["bash", "-c", f'ulimit {limit} && exec "$@"', "bash", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )


LIMITS = {
    "memory to begin": ("-v 100000", "memory"),
    "memory": ("-v 215000", "Memory has run out"),
    "size of files": ("-f 100", "File too large"),
    "no file at all": ("-f 0", "File too large"),
    "open files": ("-n 8", "No further file can be opened"),
}


@pytest.mark.parametrize(
    ("how", "limit"),
    [
        *(("plain", limit) for limit in LIMITS),
        ("training", "memory"),
        pytest.param("training", "size of files", marks=pytest.mark.slow),
        pytest.param("training", "open files", marks=pytest.mark.slow),
        pytest.param("training", "no file at all", marks=pytest.mark.slow),
    ],
)
def test_a_limit_that_is_reached_is_one_sentence(how, limit, phi_mini, run_folder, tmp_path):
    (setting, message), source = LIMITS[limit], phi_mini if how == "plain" else run_folder
    options = ["--training"] if how == "training" else []
    done = limited(setting, "grow", "phi-mini", "-s", source, "-o", tmp_path / "made" / "out", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "phi-mini", "-s", "{source}"),
        ("inspect", "{source}"),
        ("verify", "{source}", "{source}"),
        ("diagnose", "{source}", "{source}"),
        ("grow", "phi-mini", "-s", "{source}", "-o", "{out}", "--format", "dcp"),
    ],
    ids=lambda words: words[0],
)
def test_other_commands_say_so_too(words, phi_mini, tmp_path):
    done = limited("-v 100000", *(word.format(source=phi_mini, out=tmp_path / "out") for word in words))
    assert (done.returncode, done.stdout) == (2, "")
    assert "memory" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        RuntimeError("can't start new thread"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.EIO, "Input/output error", "place"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("command", ["plan", "inspect", "diagnose", "verify", "grow"])
def test_errors_of_the_system_are_sentences_wherever_they_come_from(command, error, phi_mini, tmp_path, monkeypatch):
    def fails(*arguments, **keywords):
        raise error

    monkeypatch.setattr(Path, "is_dir", fails)
    words = {
        "plan": ["phi-mini", "-s", phi_mini],
        "inspect": [phi_mini],
        "diagnose": [phi_mini, phi_mini],
        "verify": [phi_mini, phi_mini],
        "grow": ["phi-mini", "-s", phi_mini, "-o", tmp_path / "out"],
    }
    done = CliRunner().invoke(app, [command, *map(str, words[command])])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_processes_that_cannot_be_forked(phi_mini, tmp_path, alone, monkeypatch):
    monkeypatch.setattr(os, "fork", failing(errno.EAGAIN))
    done = CliRunner().invoke(app, ["grow", "phi-mini", "-s", str(phi_mini), "-o", str(tmp_path / "out")])
    assert done.exit_code == 2, done.output
    assert "No further process or thread can be started" in done.stderr
    assert os.listdir(tmp_path) == []


# ------------------------------------------------- torch.distributed.checkpoint


@pytest.mark.slow
def test_a_dcp_folder_has_the_same_bytes_in_every_run(phi_folder, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("description: deeper\nsteps: [{op: deepen, to: 5}]")
    for number, seed in enumerate(("1", "2")):
        output = tmp_path / str(number) / f"out{number}"
        if number == 0:
            growth.grow(recipe, phi_folder, output, format="dcp")
            continue
        words = ["grow", recipe, "-s", phi_folder, "-o", output, "--format", "dcp"]
        subprocess.run(
            [sys.executable, "-m", "growth", *map(str, words)],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": seed},
        )
    first, second = (bytes_of(tmp_path / n / f"out{n}") for n in "01")
    assert first == second
    assert {".metadata", "__0_0.distcp", "growth.json"} <= first.keys()


@pytest.mark.parametrize("options", [{"resume": True}, {"part": (1, 2)}], ids=["resume", "part"])
def test_a_dcp_folder_says_that_it_cannot_be_resumed(options, phi_folder, tmp_path):
    with pytest.raises(growth.ConfigError, match="dcp folder cannot be resumed or divided among processes"):
        growth.grow(HOW, phi_folder, tmp_path / "out", format="dcp", **options)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_dcp_growth_leaves_nothing(phi_folder, tmp_path):
    def interrupt(phase, done, total):
        if phase == "grow" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        growth.grow(HOW, phi_folder, tmp_path / "out", format="dcp", progress=interrupt)
    assert os.listdir(tmp_path) == []


# ------------------------------------------------- standard streams


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("words", [("grow", "double-depth", "-o", "{out}", "-s"), ("inspect",)], ids=lambda w: w[0])
def test_a_closed_stream_is_no_fault(words, closed, phi_mini, tmp_path):
    """No file of the command takes the place of one, where libraries would write to it."""
    words = [word.format(out=tmp_path / "out") for word in words]
    close = " ".join(f"{descriptor}>&-" for descriptor in closed)
    line = ["bash", "-c", f'"$@" {close}', "bash", sys.executable, "-m", "growth", *words, str(phi_mini)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (done.stdout != "") == (1 not in closed)
