"""A run that accelerate shards by FSDP2 grows between two runs, by one command."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import growth
from growth.cli.app import app
from growth.errors import CheckpointError, ConfigError
from growth.training.in_place import grow_in_place
from tests.distributed.fsdp_run import AFTER, BEFORE, KINDS, optimizer_of, small, train
from tests.support.ranks import torchrun

pytestmark = pytest.mark.slow
RECIPE = """description: wider and deeper
steps:
  - {op: widen, axis: ffn, factor: 2, init: tile, shares: random}
  - {op: widen, axis: residual, factor: 1.5}
  - {op: deepen, to: 3}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Checkpoints of two ranks after three steps, saved in both ways, and a folder with the model's config."""
    folder = tmp_path_factory.mktemp("runs")
    torchrun(2, "-m", "tests.distributed.fsdp_run", "save", folder)
    small().config.save_pretrained(folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE)
    for kind in KINDS:
        source = folder / kind / "checkpoint-3"
        (source / "trainer_state.json").write_text(json.dumps({"global_step": 3, "log_history": []}))
        torch.save({"cpu": torch.get_rng_state()}, source / "rng_state_0.pth")
    model, source = small(), folder / "FULL_STATE_DICT" / "checkpoint-3"  # whose weights the Trainer saves too
    model.load_state_dict(torch.load(source / "pytorch_model_fsdp.bin", weights_only=True))
    model.save_pretrained(source)
    return folder


def grown(runs, kind):
    """The folder that the command makes of a checkpoint."""
    source, output = runs / kind / "checkpoint-3", runs / kind / "grown"
    if not output.exists():
        command = ["grow", runs / "recipe.yaml", "--source", source, "--output", output, "--training"]
        command += ["--config", runs / "model"] if kind == "SHARDED_STATE_DICT" else []
        done = CliRunner().invoke(app, list(map(str, command)))
        assert done.exit_code == 0, done.output
    return source, output


def test_the_losses_continue_as_those_of_one_process_that_grows_in_place(runs):
    for kind in KINDS:
        grown(runs, kind)
    torchrun(2, "-m", "tests.distributed.fsdp_run", "resume", runs)
    model = small()
    optimizer, scheduler = optimizer_of(model)
    before = train(model, optimizer, scheduler, range(BEFORE))
    grow_in_place(model, optimizer, runs / "recipe.yaml")
    after = train(model, optimizer, scheduler, range(BEFORE, BEFORE + AFTER))  # the class computes losses in float32
    for kind in KINDS:
        assert json.loads((runs / f"save-{kind}.json").read_text()) == pytest.approx(before, rel=1e-6)
        assert json.loads((runs / f"resume-{kind}.json").read_text()) == pytest.approx(after, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_holds_what_the_source_does_and_every_bit_can_be_verified(runs, kind, tmp_path):
    source, output = grown(runs, kind)
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    found = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert {name for name in files if "__1_0" not in name} <= found  # this process writes one file for all ranks
    assert found - files <= {"growth.json", "README.md", "config.json"}
    assert (output / "rng_state_0.pth").read_bytes() == (source / "rng_state_0.pth").read_bytes()
    (entry,) = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert entry["sizes"] == {"ffn": [24, 48], "residual": [16, 24], "layers": [2, 3]}
    if not (source / "config.json").exists():
        (source / "config.json").write_bytes((runs / "model" / "config.json").read_bytes())
    assert growth.verify_weights(source, output, runs / "recipe.yaml").passed
    target = output / ("optimizer_0/__0_0.distcp" if kind == "SHARDED_STATE_DICT" else "optimizer.bin")
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    assert not growth.verify_weights(source, output, runs / "recipe.yaml").passed


def test_what_is_missing_is_named(runs, tmp_path):
    source = runs / "SHARDED_STATE_DICT" / "checkpoint-3"
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "pytorch_model_fsdp_0").mkdir()
    for path in (source / "pytorch_model_fsdp_0").iterdir():
        (bare / "pytorch_model_fsdp_0" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"bare has no config.json.*--config"):
        growth.grow_training(runs / "recipe.yaml", bare, tmp_path / "grown")
    with pytest.raises(CheckpointError, match=r"bare has no optimizer_0/.metadata: the run did not save"):
        growth.grow_training(runs / "recipe.yaml", bare, tmp_path / "grown", config=runs / "model")
    with pytest.raises(ConfigError, match="leave out max_shard_size"):
        growth.grow_training(
            runs / "recipe.yaml", source, tmp_path / "grown", config=runs / "model", max_shard_size="1GB"
        )
    assert not Path(tmp_path / "grown").exists()
