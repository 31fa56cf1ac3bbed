"""Nothing of anybody else's is removed, replaced or published, and a refused command changes no byte."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import growth
from growth import CheckpointError
from growth.cli.app import app
from growth.operators import chain, deepen, widen
from tests.support.crash import calls_of, grow_and_die
from tests.support.folders import bytes_of, state
from tests.support.paths import ROOT

HOW = chain(widen("residual", to=40, init="tile", shares="equal"), deepen(to=5))
OTHER = deepen(to=4)
PARTS = {"max_shard_size": "30KB"}
MIDDLE = 250  # calls to the operating system, of about 500
MODES = {"whole": {}, "resume": {"resume": True}, "part": {"part": (1, 2), **PARTS}}
NAMES = ("done-1-of-1.jsonl", "finished-1-of-1", "source-1-of-1", "fingerprint", "model.safetensors", "diary")


@pytest.fixture(scope="module")
def grown(phi_folder, tmp_path_factory):
    """What undisturbed growths write: in one file, and in several."""
    folder = tmp_path_factory.mktemp("grown")
    growth.grow(HOW, phi_folder, folder / "one")
    growth.grow(HOW, phi_folder, folder / "parts", **PARTS)
    return {name: bytes_of(folder / name) for name in ("one", "parts")}


@pytest.fixture(scope="module")
def killed(phi_folder, tmp_path_factory):
    """What runs of each mode have left that were killed midway."""
    folders = {mode: tmp_path_factory.mktemp(mode) for mode in MODES}
    for mode, folder in folders.items():
        assert grow_and_die(MIDDLE, HOW, phi_folder, folder / "out", **MODES[mode]) == -signal.SIGKILL
    return folders


def diary(folder):
    """A folder of somebody's."""
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_text("mine")
    return folder


def a_link(place, home):
    place.symlink_to(home, target_is_directory=True)


def a_dangling_link(place, home):
    place.symlink_to(home / "none")


def a_file(place, home):
    place.write_text("mine")


def a_folder_of_files(place, home):
    diary(place)


def a_folder_with_checkpoint(place, home):
    place.mkdir()
    diary(place / "checkpoint")


def a_file_with_the_name_of_a_lock(place, home):
    place.mkdir()
    (place / "lock").write_text("mine")


def a_file_with_the_name_of_a_draft(place, home):
    place.mkdir()
    (place / "growth-staging.json.new").write_text("mine")


def a_mark(place, files, parts=1):
    diary(place)
    mark = {"growth_staging": 1, "plan": "x", "parts": parts, "files": files}
    (place / "growth-staging.json").write_text(json.dumps(mark))


def a_mark_of_something_else(place, home):
    a_mark(place, ["../home"])


def a_mark_of_deep_names(place, home):
    a_mark(place, ["/".join("a" * 3000)])


def a_mark_of_long_names(place, home):
    a_mark(place, ["a" * 3000])


def a_mark_of_many_parts(place, home):
    a_mark(place, ["config.json"], parts=10**9)
    with (place / "growth-staging.json").open("a") as file:
        file.write(" " * 10**5)


def a_link_for_a_mark(place, home):
    diary(place)
    (place / "growth-staging.json").symlink_to(home / "diary")


def a_pipe_for_a_mark(place, home):
    diary(place)
    os.mkfifo(place / "growth-staging.json")


NOT_OURS = [
    a_link, a_dangling_link, a_file, a_folder_of_files, a_folder_with_checkpoint, a_file_with_the_name_of_a_lock,
    a_file_with_the_name_of_a_draft, a_mark_of_something_else, a_mark_of_deep_names, a_mark_of_long_names,
    a_mark_of_many_parts, a_link_for_a_mark, a_pipe_for_a_mark,
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stranger", NOT_OURS)
def test_a_staging_folder_that_is_not_ours_is_an_error_and_stays_as_it_is(stranger, mode, phi_folder, tmp_path):
    home, shared = diary(tmp_path / "home"), tmp_path / "shared"
    shared.mkdir()
    stranger(shared / ".out.partial", home)
    before = state(tmp_path)
    with pytest.raises(CheckpointError, match=r"Nothing was changed"):
        growth.grow(HOW, phi_folder, shared / "out", **MODES[mode])
    assert state(tmp_path) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away needs root")
@pytest.mark.parametrize("mode", MODES)
def test_a_staging_folder_of_another_user_is_an_error(mode, phi_folder, tmp_path):
    assert grow_and_die(MIDDLE, HOW, phi_folder, tmp_path / "out", **MODES[mode]) == -signal.SIGKILL
    os.chown(tmp_path / ".out.partial", 12345, -1)
    before = state(tmp_path)
    with pytest.raises(CheckpointError, match="folder of user 12345"):
        growth.grow(HOW, phi_folder, tmp_path / "out", **MODES[mode])
    assert state(tmp_path) == before


def test_a_folder_above_the_output_may_be_a_link(phi_folder, grown, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    growth.grow(HOW, phi_folder, tmp_path / "link" / "out")
    assert bytes_of(tmp_path / "real" / "out") == grown["one"]
    assert os.listdir(tmp_path / "real") == ["out"]


# ------------------------------------------------- links and files within a folder of ours


def plant(tmp_path, name):
    """Somebody's file, and a link to it in the staging folder."""
    target = tmp_path / "precious"
    target.write_text("mine")
    place = tmp_path / ".out.partial" / name
    place.unlink(missing_ok=True)
    place.symlink_to(target)
    return target


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name",
    ["checkpoint/config.json", "checkpoint/growth.json", "checkpoint/{file}", "{done}", "{finished}", "{done}.new"],
)
def test_links_within_the_staging_folder_are_never_followed(name, mode, phi_folder, tmp_path):
    options, of = MODES[mode], "1-of-2" if mode == "part" else "1-of-1"
    assert grow_and_die(MIDDLE, HOW, phi_folder, tmp_path / "out", **options) == -signal.SIGKILL
    folder = tmp_path / ".out.partial"
    file = sorted(path.name for path in (folder / "checkpoint").glob("*.safetensors"))[0]
    target = plant(tmp_path, name.format(file=file, done=f"done-{of}.jsonl", finished=f"finished-{of}"))
    with contextlib.suppress(CheckpointError):  # refused, or the link is replaced: both are right
        growth.grow(HOW, phi_folder, tmp_path / "out", **options)
    assert target.read_text() == "mine"
    if (tmp_path / "out").exists():
        assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_a_second_name_of_a_shard_is_another_file(phi_folder, grown, tmp_path):
    """Somebody keeps what is begun by hard links: it stays as it was then."""
    assert grow_and_die(MIDDLE, HOW, phi_folder, tmp_path / "out") == -signal.SIGKILL
    begun = tmp_path / ".out.partial" / "checkpoint" / "model.safetensors"
    os.link(begun, tmp_path / "kept")
    before = (tmp_path / "kept").read_bytes()
    growth.grow(HOW, phi_folder, tmp_path / "out", resume=True)
    assert (tmp_path / "kept").read_bytes() == before
    assert bytes_of(tmp_path / "out") == grown["one"]


def a_directory(place, home):
    shutil.copytree(home, place)


def a_pipe(place, home):
    os.mkfifo(place)


def moved(place):
    """Moves away what is there."""
    if os.path.lexists(place):
        place.rename(place.parent.parent / "moved")


KINDS = [
    *((name, kind) for name in ("checkpoint", "selected") for kind in (a_link, a_file, a_pipe)),
    *((name, kind) for name in ("{done}", "{finished}", "checkpoint/config.json") for kind in (a_directory, a_pipe)),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "kind"), KINDS, ids=lambda value: getattr(value, "__name__", value))
def test_another_kind_of_file_under_a_name_of_ours_is_an_error(name, kind, mode, phi_folder, killed, tmp_path):
    """Whoever changed the folder is told, and what an interrupted run has written is still there."""
    home = diary(tmp_path / "home")
    shutil.copytree(killed[mode] / ".out.partial", tmp_path / "all" / ".out.partial")
    of = "1-of-2" if mode == "part" else "1-of-1"
    place = tmp_path / "all" / ".out.partial" / name.format(done=f"done-{of}.jsonl", finished=f"finished-{of}")
    moved(place)
    kind(place, home)
    before = state(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"does not belong to the run that was started there\. Nothing was changed"
    ):
        growth.grow(HOW, phi_folder, tmp_path / "all" / "out", **MODES[mode])
    assert state(tmp_path) == before


def test_a_journal_that_is_a_second_name_of_a_file_is_not_written_to(phi_folder, grown, killed, tmp_path):
    folder = shutil.copytree(killed["resume"], tmp_path / "all") / ".out.partial"
    (tmp_path / "notes").write_text("mine")
    (folder / "done-1-of-1.jsonl").unlink(missing_ok=True)
    os.link(tmp_path / "notes", folder / "done-1-of-1.jsonl")
    growth.grow(HOW, phi_folder, tmp_path / "all" / "out", resume=True)
    assert (tmp_path / "notes").read_text() == "mine"
    assert bytes_of(tmp_path / "all" / "out") == grown["one"]


def test_a_file_that_becomes_a_second_name_of_another_meanwhile_is_not_written_to(phi_folder, tmp_path):
    (tmp_path / "notes").write_text("mine")
    journal = tmp_path / ".out.partial" / "done-1-of-1.jsonl"

    def swap(phase, done, total):
        if phase == "grow" and journal.exists():
            os.link(tmp_path / "notes", tmp_path / f"second-{done}")
            os.replace(tmp_path / f"second-{done}", journal)  # at once: a worker may be about to make the journal

    with pytest.raises(CheckpointError, match="second name"):
        growth.grow(HOW, phi_folder, tmp_path / "out", progress=swap)
    assert (tmp_path / "notes").read_text() == "mine"


STRAYS = ["notes.txt", "dfs", "checkpoint/notes.txt", "checkpoint/dfs.safetensors", "checkpoint/sub/config.json"]


def add_strays(folder):
    for name in STRAYS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")


def strays_in(folder):
    return {name: (folder / name).read_text() for name in STRAYS if (folder / name).exists()}


@pytest.mark.parametrize("mode", MODES)
def test_a_someone_elses_file_in_our_folder_is_neither_removed_nor_published(mode, phi_folder, grown, tmp_path):
    options, folder = MODES[mode], tmp_path / ".out.partial"
    assert grow_and_die(MIDDLE, HOW, phi_folder, tmp_path / "out", **options) == -signal.SIGKILL
    add_strays(folder)
    growth.grow(HOW, phi_folder, tmp_path / "out", **options)
    if mode == "part":
        growth.grow(HOW, phi_folder, tmp_path / "out", part=(2, 2), **PARTS)
    assert bytes_of(tmp_path / "out") == grown["parts" if mode == "part" else "one"]
    assert strays_in(folder) == dict.fromkeys(STRAYS, "mine")
    shutil.rmtree(tmp_path / "out")
    growth.grow(OTHER, phi_folder, tmp_path / "out")  # they are in nobody's way
    assert strays_in(folder) == dict.fromkeys(STRAYS, "mine")


def test_killed_while_it_selects_what_it_publishes_it_resumes(phi_folder, grown, tmp_path):
    begun, last = tmp_path / "begun", {"part": (2, 2), **PARTS}
    growth.grow(HOW, phi_folder, begun / "out", part=(1, 2), **PARTS)
    add_strays(begun / ".out.partial")
    count = calls_of(HOW, phi_folder, shutil.copytree(begun, tmp_path / "counted") / "out", **last)
    there = []
    for number in range(count - 90, count, 6):
        output = shutil.copytree(begun, tmp_path / str(number)) / "out"
        assert grow_and_die(number, HOW, phi_folder, output, **last) == -signal.SIGKILL
        there.append(output.exists())
        growth.grow(HOW, phi_folder, output, **last)
        assert bytes_of(output) == grown["parts"]
        assert strays_in(output.parent / ".out.partial") == dict.fromkeys(STRAYS, "mine")
    assert set(there) == {False, True}


def test_a_someone_elses_file_with_a_name_that_is_about_to_be_written_is_refused(phi_folder, tmp_path):
    assert grow_and_die(MIDDLE, HOW, phi_folder, tmp_path / "out") == -signal.SIGKILL
    (tmp_path / ".out.partial" / "checkpoint" / "model-00001-of-00022.safetensors").write_text("mine")
    before = state(tmp_path)
    with pytest.raises(CheckpointError, match=r"00022\.safetensors does not belong to the run that was started"):
        growth.grow(HOW, phi_folder, tmp_path / "out", **PARTS)
    assert state(tmp_path) == before


# ------------------------------------------------- refusals


def refused(phi_folder, output, match, state=state, **options):
    before = state(output.parent)
    with pytest.raises(CheckpointError, match=match):
        growth.grow(HOW, phi_folder, output, **options)
    assert state(output.parent) == before


@pytest.mark.parametrize("options", [{}, {"resume": True}, PARTS, {"part": (1, 2), **PARTS}], ids=str)
def test_a_growth_that_is_refused_leaves_the_parts_at_work_as_they_are(options, phi_folder, grown, tmp_path):
    output, asked = tmp_path / "out", []
    growth.grow(HOW, phi_folder, output, part=(2, 2), **PARTS)

    def meanwhile(phase, done, total):
        if phase == "grow" and done > total / 2 and not asked:
            asked.append(True)
            refused(phi_folder, output, "Another process is writing|left by another run", inodes, **options)

    def inodes(folder):
        """Part 1 goes on writing meanwhile, so what its own files hold may change."""
        return {name: inode for name, (_, inode, _, _) in state(folder).items() if ".new" not in name}

    growth.grow(HOW, phi_folder, output, part=(1, 2), progress=meanwhile, **PARTS)
    assert asked
    assert bytes_of(output) == grown["parts"]


def test_other_refusals_change_nothing(phi_folder, tmp_path):
    output = tmp_path / "out"
    assert grow_and_die(MIDDLE, HOW, phi_folder, output, **PARTS) == -signal.SIGKILL
    refused(phi_folder, output, "left by another run", resume=True)
    refused(phi_folder, output, "left by another run", part=(1, 2), **PARTS)
    output.mkdir()
    (output / "model.safetensors").write_text("mine")
    refused(phi_folder, output, "exists already")
    refused(phi_folder, output, "was not written by a run with this source and these arguments", resume=True)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("phase", ["check source", "grow"])
def test_an_output_that_appears_meanwhile_is_not_replaced(phase, begun, phi_folder, killed, tmp_path):
    """Not even an empty directory, which a rename would replace; what an earlier run has left is there still."""
    home = shutil.copytree(killed["whole"], tmp_path / "all") if begun else tmp_path / "all"
    home.mkdir(exist_ok=True)
    left = state(home)

    def appear(now, done, total):
        if now == phase:
            (home / "out").mkdir(exist_ok=True)

    with pytest.raises(CheckpointError, match=r"exists already|appeared"):
        growth.grow(HOW, phi_folder, home / "out", progress=appear)
    assert os.listdir(home / "out") == []
    (home / "out").rmdir()
    if phase == "check source":
        assert state(home) == left
    else:
        assert os.listdir(home) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["none/..", "n" * 250, "n" * 255, "n" * 300])
def test_an_output_that_cannot_have_its_name_is_refused(name, mode, phi_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"exists already|too long"):
        growth.grow(HOW, phi_folder, tmp_path / name, **MODES[mode])
    assert state(tmp_path) == {}


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_a_source_that_is_refused_leaves_nothing_behind(options, phi_folder, tmp_path):
    source = shutil.copytree(phi_folder, tmp_path / "source")
    path = source / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-2] + b"\xff\x7f")  # NaN
    before = state(tmp_path)
    with pytest.raises(CheckpointError, match="NaN"):
        growth.grow(HOW, source, tmp_path / "made" / "below" / "out", **options)
    assert state(tmp_path) == before


def test_an_abandoned_growth_of_ours_is_replaced(phi_folder, grown, tmp_path):
    for killed in ({"part": (1, 2), **PARTS}, PARTS, {"seed": 9}):
        assert grow_and_die(MIDDLE, HOW, phi_folder, tmp_path / "out", **killed) == -signal.SIGKILL
    growth.grow(HOW, phi_folder, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == grown["one"]
    assert os.listdir(tmp_path) == ["out"]


def _in_staging(folder):
    return folder / ".out.partial" / "checkpoint"


def _by_a_link(folder):
    (folder / "link").symlink_to(".out.partial", target_is_directory=True)
    return folder / "link" / "checkpoint"


@pytest.mark.parametrize("name", [_in_staging, _by_a_link])
@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_a_source_within_the_staging_folder_is_refused_and_stays(options, name, phi_folder, tmp_path):
    """A folder of ours by its mark, so that only where the source is can save it."""
    assert grow_and_die(MIDDLE, HOW, phi_folder, tmp_path / "out", **options) == -signal.SIGKILL
    shutil.rmtree(_in_staging(tmp_path))
    shutil.copytree(phi_folder, _in_staging(tmp_path))
    source = name(tmp_path)
    before = state(tmp_path)
    with pytest.raises(CheckpointError, match=r"is inside .*\.out\.partial, the staging folder of .*Move the source"):
        growth.grow(HOW, source, tmp_path / "out", **options)
    assert state(tmp_path) == before


# ------------------------------------------------- files that commands write


def an_existing_file(place, other):
    place.write_text("mine")


def a_link_to_a_file(place, other):
    other.write_text("mine")
    place.symlink_to(other)


@pytest.mark.parametrize("kind", [an_existing_file, a_link_to_a_file, a_dangling_link])
@pytest.mark.parametrize(
    "words",
    [
        ("verify", "{phi}", "{phi}", "--report", "{file}.html"),
        ("diagnose", "{phi}", "{phi}", "--plot", "{file}.png"),
        ("recipe", "{phi}", "{phi}/config.json", "--output", "{file}.yaml"),
    ],
    ids=lambda words: words[0],
)
def test_a_file_that_exists_is_never_written_over(words, kind, phi_mini, tmp_path):
    words = [word.format(phi=phi_mini, file=tmp_path / "file") for word in words]
    kind(Path(words[-1]), tmp_path / "other")
    before = state(tmp_path)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2, done.output
    assert "exists already" in done.stderr
    assert state(tmp_path) == before


def test_the_demonstration_removes_nobodys_folder(tmp_path):
    diary(tmp_path / "home")
    before = state(tmp_path)
    words = [sys.executable, ROOT / "examples" / "demo.py", "--output", tmp_path / "home"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert state(tmp_path) == before
