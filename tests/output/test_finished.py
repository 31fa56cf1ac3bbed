"""--resume onto an output that is there: it is checked and not written; and outputs inside of sources."""

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import growth
from growth import CheckpointError
from growth.cli.app import app
from growth.operators import widen
from tests.support.folders import bytes_of

OPERATOR = widen("ffn", factor=2, init="tile", shares="equal")


def train(folder):
    """Another value in the tensor `tensor`, as training makes it."""
    path = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    return f"tensor '{name}' has the xxh3_128 "


def reword(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace("{", '{"vocab_size_note": 1, ', 1))
    return "config.json has the xxh3_128 "


def remove(folder):
    (folder / "tokenizer.json").unlink()
    return "tokenizer.json is missing"


def remove_shard(folder):
    path = sorted(folder.glob("*.safetensors"))[-1]
    path.unlink()
    return f"{path.name} is missing"


def reheader(folder):
    path = sorted(folder.glob("*.safetensors"))[0]
    save_file(load_file(path), path, metadata={"format": "pt", "trained": "yes"})
    return f"{path.name} has "


def edit_manifest(folder):
    path = folder / "growth.json"
    path.write_text(path.read_text().replace('"preserving": true', '"preserving": false', 1))
    return "growth.json does not end with the hash of its content"


@pytest.fixture
def source(phi_folder, tmp_path):
    folder = Path(shutil.copytree(phi_folder, tmp_path / "source"))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("change", [train, reword, remove, remove_shard, reheader, edit_manifest])
def test_what_was_changed_is_named_and_stays(change, source, tmp_path):
    output = tmp_path / "out"
    options = {"max_shard_size": "30KB", "resume": True}
    growth.grow(OPERATOR, source, output, **options)
    problem = change(output)
    before = bytes_of(output)
    with pytest.raises(CheckpointError) as refused:
        growth.grow(OPERATOR, source, output, **options)
    assert f"{output} was changed after it was grown: {problem}" in str(refused.value)
    assert bytes_of(output) == before


def test_what_is_finished_and_unchanged_stays(source, tmp_path):
    growth.grow(OPERATOR, source, tmp_path / "out")
    before, inode = bytes_of(tmp_path / "out"), os.stat(tmp_path / "out" / "model.safetensors").st_ino
    (tmp_path / "out" / "notes.txt").write_text("mine")  # what growth.json does not record is the user's own
    growth.grow(OPERATOR, source, tmp_path / "out", resume=True)
    (tmp_path / "out" / "notes.txt").unlink()
    assert bytes_of(tmp_path / "out") == before
    assert os.stat(tmp_path / "out" / "model.safetensors").st_ino == inode


def test_the_command_says_that_nothing_was_written(phi_mini, tmp_path):
    words = ["grow", "phi-mini", "-s", str(phi_mini), "-o", str(tmp_path / "out"), "--resume"]
    assert "Wrote " in CliRunner().invoke(app, words).output
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0
    assert "out is finished already: nothing was written." in again.output
    assert "Wrote" not in again.output
    assert "computes" not in again.output
    train(tmp_path / "out")
    changed = CliRunner().invoke(app, words)
    assert changed.exit_code == 2
    assert "was changed after it was grown: tensor '" in changed.output
    assert "and growth.json records" in changed.output


@pytest.mark.parametrize("place", ["sub", "deep/sub", "../{name}/sub"])
@pytest.mark.parametrize("options", [{}, {"resume": True}, {"format": "dcp"}])
def test_an_output_inside_of_its_source_is_refused(place, options, source):
    before = bytes_of(source)
    output = source / place.format(name=source.name)
    with pytest.raises(CheckpointError, match="is inside the source"):
        growth.grow(OPERATOR, source, output, **options)
    assert bytes_of(source) == before
    assert json.loads((source / "config.json").read_text())
