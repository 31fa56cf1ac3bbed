"""Bits: verify_weights names whatever differs from what the recipe makes of the source, wherever it stands."""

import json
import random
import re

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

import growth
from growth import VerificationError
from growth.checkpoints.open import open_stored
from growth.cli.app import app
from growth.operators import break_symmetry, chain, deepen, widen
from tests.support.models import random_phi, save

RECIPE = """\
description: of every kind
steps:
  - {op: widen, axis: residual, to: 40, shares: random}
  - {op: widen, axis: ffn, to: 60, init: pad}
  - {op: widen, axis: heads, to: 5, init: sample}
  - {op: widen, axis: head_dim, to: 10}
  - {op: break_symmetry}
  - {op: deepen, to: 5}
"""


@pytest.fixture(scope="module")
def grown(phi_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bits")
    (folder / "recipe.yaml").write_text(RECIPE)
    growth.grow(folder / "recipe.yaml", phi_folder, folder / "out", max_shard_size="100KB", seed=3, dtype="bfloat16")
    return folder / "out"


@pytest.fixture
def copy(grown, tmp_path):
    for path in grown.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_what_was_written_is_what_the_recipe_makes(phi_folder, grown):
    report = growth.verify_weights(phi_folder, grown)
    assert report.passed
    assert report.tensors == len(json.loads((grown / "growth.json").read_text())["tensors"])
    assert report.to_dict()["passed"] is True


@pytest.mark.parametrize("seed", range(60))
def test_a_single_flipped_bit_is_found_and_named(seed, phi_folder, copy):
    draw = random.Random(seed)
    path = draw.choice(sorted(copy.iterdir()))
    flip(path, draw.randrange(8 * path.stat().st_size))
    try:
        problems = dict(growth.verify_weights(phi_folder, copy).problems)
    except growth.GrowthError as error:  # a growth.json that is none any more
        problems = {path.name: str(error)} if "growth.json" in str(error) else {}
    tensors = [name for name in problems if not (copy / name).exists()]
    assert path.name in problems or tensors, problems


def test_the_tensor_of_a_flipped_bit_is_the_only_one_named(phi_folder, copy):
    for name in ("model.layers.2.mlp.fc1.weight", "lm_head.bias", "model.layers.1.self_attn.dense.weight"):
        info = open_stored(copy).tensors[name]
        flip(info.path, 8 * (info.begin + info.bytes // 2) + 3)
    report = growth.verify_weights(phi_folder, copy)
    assert set(report.problems) == {
        "model.layers.2.mlp.fc1.weight",
        "lm_head.bias",
        "model.layers.1.self_attn.dense.weight",
    }


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A source and what it grew into: tensors of several blocks where blocks are of the least size, 64 rows."""
    folder = tmp_path_factory.mktemp("long")
    sizes = {"hidden_size": 144, "intermediate_size": 192, "num_hidden_layers": 1}
    source = save(random_phi(vocab_size=150, **sizes), folder / "source")
    steps = chain(
        widen("residual", to=180, shares="random", init="tile"), widen("ffn", to=250, init="pad"), deepen(to=2)
    )
    growth.grow(steps, source, folder / "out", max_shard_size="200KB", dtype="bfloat16")
    return source, folder / "out", steps


@pytest.mark.slow
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_flipped_bit_is_found_in_every_block_of_every_tensor(place, long, monkeypatch):
    source, out, steps = long
    monkeypatch.setattr("growth.engine.grow_tensor.BLOCK_BYTES", 1)
    for name, info in open_stored(out).tensors.items():
        assert info.shape[0] > 2 * 64
        bit = 8 * info.begin + {"first": 0, "middle": 4 * info.bytes, "last": 8 * info.bytes - 1}[place]
        flip(info.path, bit)
        assert set(growth.verify_weights(source, out, steps).problems) == {name}
        flip(info.path, bit)
    assert growth.verify_weights(source, out, steps).passed


def test_the_command_names_the_tensor_of_a_flipped_bit(phi_folder, copy):
    command = ["verify", str(phi_folder), str(copy), "--weights"]
    intact = CliRunner().invoke(app, command)
    assert (intact.exit_code, "PASSED" in intact.output) == (0, True)
    info = open_stored(copy).tensors["model.layers.1.mlp.fc2.weight"]
    flip(info.path, 8 * (info.begin + info.bytes) - 1)
    broken = CliRunner().invoke(app, command)
    assert (broken.exit_code, "FAILED" in broken.output) == (1, True)
    assert re.findall(r"^  (\S+): ", broken.output, re.M) == [info.name]


def test_growth_json_has_the_hash_of_every_tensors_bytes(grown):
    import xxhash

    told = json.loads((grown / "growth.json").read_text())["tensors"]
    for path in grown.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            content = tensor.contiguous().flatten().view(dtype=__import__("torch").uint8).numpy().tobytes()
            assert xxhash.xxh3_128_hexdigest(content) == told[name]["xxh3_128"], name


def test_files_that_come_or_go_are_named(phi_folder, copy):
    (copy / "notes.txt").write_text("mine")
    (copy / "generation_config.json").unlink()
    assert set(growth.verify_weights(phi_folder, copy).problems) == {"notes.txt", "generation_config.json"}


def test_another_source_is_not_taken_for_the_one(copy, tmp_path_factory):
    other = save(random_phi(seed=5), tmp_path_factory.mktemp("other") / "source")
    report = growth.verify_weights(other, copy)
    assert not report.passed
    assert "lm_head.bias" in report.problems


def test_operators_of_python_are_asked_for(phi_folder, tmp_path):
    operator = chain(widen("ffn", factor=2, init="tile", shares="equal"), break_symmetry(), deepen(to=4))
    growth.grow(operator, phi_folder, tmp_path / "out")
    with pytest.raises(VerificationError, match="operators given in Python"):
        growth.verify_weights(phi_folder, tmp_path / "out")
    assert growth.verify_weights(phi_folder, tmp_path / "out", operator).passed
    with pytest.raises(VerificationError, match=r"no growth\.json"):
        growth.verify_weights(phi_folder, phi_folder)
