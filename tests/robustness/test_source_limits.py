"""A source of any size or shape is read in bounded time and memory, or refused with the limit named."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from itertools import product

import pytest
from typer.testing import CliRunner

import growth
from growth import CheckpointError
from growth.checkpoints.formats.safetensors import INDEX, SINGLE, read_header
from growth.checkpoints.open import open_stored
from growth.checkpoints.untrusted import LARGEST_FOLDER, parse_json
from growth.cli.app import app
from growth.operators import deepen
from growth.verification.inspect import inspect_checkpoint
from tests.support.selection import one_of_each

DEEPER = deepen(to=7)
QUICK = 2.0  # processor seconds


def source(phi_mini, tmp_path):
    return shutil.copytree(phi_mini, tmp_path / "source")


COMMANDS = {
    "plan": lambda folder, grown: growth.plan(DEEPER, folder),
    "grow": lambda folder, grown: growth.grow(DEEPER, folder, grown),
    "inspect": lambda folder, grown: inspect_checkpoint(folder),
    "verify": lambda folder, grown: growth.verify(folder, folder),
}


@pytest.mark.parametrize(
    ("name", "command"),
    one_of_each(
        product(["tokenizer.json", "LICENSE", "config.json", SINGLE, INDEX, "README.md"], COMMANDS),
        lambda name, command: name,
        lambda name, command: command,
    ),
)
def test_a_link_to_nothing_is_named(name, command, phi_mini, tmp_path):
    folder = source(phi_mini, tmp_path)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("nothing")
    with pytest.raises(CheckpointError, match=f"{name} is a link to nothing, which cannot be read"):
        COMMANDS[command](folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_loop_of_links_is_named(phi_mini, tmp_path):
    folder = source(phi_mini, tmp_path)
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    with pytest.raises(CheckpointError, match=r"is a link to .* which cannot be read: Too many levels"):
        growth.plan(DEEPER, folder)


def test_a_shard_that_is_a_link_to_nothing_is_named(phi_mini, tmp_path):
    folder = source(phi_mini, tmp_path)
    names = open_stored(folder).tensors
    (folder / SINGLE).rename(folder / "one.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "one.safetensors")}))
    growth.plan(DEEPER, folder)
    (folder / "one.safetensors").unlink()
    (folder / "one.safetensors").symlink_to("two.safetensors")
    result = CliRunner().invoke(app, ["plan", "double-depth", "-s", str(folder)])
    assert result.exit_code == 2
    assert "one.safetensors is a link to two.safetensors, which cannot be read" in result.output.replace("\n", " ")


def test_a_folder_of_any_number_of_files_is_bounded(phi_mini, tmp_path):
    folder = source(phi_mini, tmp_path)
    count = len(list(folder.iterdir()))
    for number in range(LARGEST_FOLDER - count):
        (folder / f"file-{number}").touch()
    began = time.process_time()
    growth.plan(DEEPER, folder)
    assert time.process_time() - began < QUICK
    (folder / "one more").touch()
    for command in COMMANDS.values():
        began = time.process_time()
        with pytest.raises(CheckpointError, match=f"more than {LARGEST_FOLDER:,} entries"):
            command(folder, tmp_path / "again")
        assert time.process_time() - began < QUICK


def header(path, content):
    path.write_bytes(struct.pack("<Q", len(content)) + content)
    return path


METADATA = {
    "empty": b'{"__metadata__":{%b}}' % b",".join(b'"%d":""' % number for number in range(2_500_000)),
    "braces": b'{"__metadata__":{%b}}' % b",".join(b'"%d":"{"' % number for number in range(600_000)),
}


@pytest.mark.parametrize("content", METADATA.values(), ids=METADATA.keys())
def test_millions_of_metadata_keys_are_refused_with_the_limit(content, tmp_path):
    path = header(tmp_path / SINGLE, content)
    began = time.process_time()
    with pytest.raises(CheckpointError, match="524,288"):
        read_header(path)
    assert time.process_time() - began < QUICK


def test_flat_lists_are_bounded_too():
    with pytest.raises(ValueError, match="524,288"):
        parse_json(b"[%b]" % b",".join([b"0"] * 600_000))
    assert len(parse_json(b"[%b]" % b",".join([b"0"] * 500_000))) == 500_000


def test_what_is_refused_is_refused_before_it_is_parsed(tmp_path):
    """The memory of a header with 2.5 million keys is that of its bytes."""
    path = header(tmp_path / SINGLE, METADATA["empty"])
    code = (
        "import resource, sys; from pathlib import Path; from growth.checkpoints.formats.safetensors import read_header\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_header(Path(sys.argv[1]))\n"
        "except ValueError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    grown = int(subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=True).stdout)
    assert grown < 4 * os.path.getsize(path) / 1024
