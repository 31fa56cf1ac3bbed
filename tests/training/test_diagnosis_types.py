"""diagnose judges against the values that training began from, whatever either checkpoint is stored in.

Truth is known by construction: copies with equal shares move as one for ever, those between which weights are divided do
not, and after one step of Adam nobody can know.
"""

import json
import shutil
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import growth
from growth.cli.app import app
from growth.operators import deepen, widen
from tests.support.models import random_phi, save, tokens

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# the type that a training computes in, and the type that its checkpoint is saved in
TRAININGS = [("float32", "float32"), ("float32", "float16"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")]
GROWTHS = {
    "equal shares": widen("ffn", factor=2, init="tile", shares="equal"),
    "random shares": widen("ffn", factor=2, shares="random", init="tile"),
    "mask": widen("ffn", factor=2, shares="mask", init="tile"),
}
STEPS = 8


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of growths and of their trainings, each made once."""
    root = tmp_path_factory.mktemp("types")
    source = save(random_phi(), root / "source")

    @cache
    def init(kind, stored):
        growth.grow(GROWTHS[kind], source, root / f"{kind}-{stored}", dtype=stored)
        return root / f"{kind}-{stored}"

    @cache
    def states(kind, stored, computed):
        """The weights after each number of steps that a test looks at."""
        folder = init(kind, stored)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=TYPES[computed], attn_implementation="eager")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        found = {}
        for step in range(STEPS + 1):
            found[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            ids = tokens(seed=step)
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        return model, found

    def diagnosed(kind, stored, computed, saved, steps):
        model, found = states(kind, stored, computed)
        folder = root / "trained"
        shutil.rmtree(folder, ignore_errors=True)
        state = {name: tensor.to(TYPES[saved]) for name, tensor in found[steps].items()}
        model.save_pretrained(folder, state_dict=state)
        return init(kind, stored), folder, growth.diagnose(init(kind, stored), folder)

    return diagnosed


def written(found):
    return next(copies for copies in found.copies if copies.side == "written")


@pytest.mark.parametrize(("computed", "saved"), TRAININGS)
@pytest.mark.parametrize("stored", TYPES)
def test_identical_copies_are_reported_as_identical(place, stored, computed, saved):
    found = place("equal shares", stored, computed, saved, STEPS)[2]
    assert found.verdict == "identical"
    assert found.identical == {"ffn": (0, 1, 2)}


@pytest.mark.parametrize("kind", ["random shares", "mask"])
@pytest.mark.parametrize(("computed", "saved"), TRAININGS)
@pytest.mark.parametrize("stored", TYPES)
def test_diverged_copies_are_never_reported_as_identical(place, stored, computed, saved, kind):
    found = place(kind, stored, computed, saved, STEPS)[2]
    assert found.verdict == "not identical"
    assert written(found).state in ("diverging", "independent")


@pytest.mark.parametrize("kind", GROWTHS)
@pytest.mark.parametrize(("computed", "saved"), TRAININGS)
@pytest.mark.parametrize("stored", TYPES)
def test_what_was_not_trained_cannot_be_told(place, stored, computed, saved, kind):
    """Casting to a coarser type is not training."""
    found = place(kind, stored, computed, saved, 0)[2]
    assert found.verdict == "cannot tell"
    assert set(found.unclear.values()) == {"no weight of them has changed"}


@pytest.mark.parametrize("kind", GROWTHS)
@pytest.mark.parametrize(("computed", "saved"), TRAININGS)
@pytest.mark.parametrize("stored", TYPES)
def test_one_step_of_adam_proves_no_lock(place, stored, computed, saved, kind):
    """It moves every weight by the learning rate, whatever its gradient is."""
    found = place(kind, stored, computed, saved, 1)[2]
    assert found.verdict != "identical"
    if kind == "equal shares":
        assert found.verdict == "cannot tell"
        assert "train longer" in found.unclear["ffn"]


def test_what_rounding_can_have_parted_is_not_judged(place):
    """Readers start from shares of their own, which bfloat16 rounds each in its way."""
    found = place("random shares", "float32", "float32", "bfloat16", STEPS)[2]
    read = next(copies for copies in found.copies if copies.side == "read")
    assert read.state == "cannot tell"
    assert "started from different values" in read.why
    assert 0 < read.apart <= 2 * read.floor
    exact = place("random shares", "float32", "float32", "float32", STEPS)[2]
    assert next(copies for copies in exact.copies if copies.side == "read").state == "diverging"


@pytest.mark.parametrize(
    ("kind", "steps", "verdict", "status"),
    [
        ("equal shares", STEPS, "identical", 1),
        ("mask", STEPS, "not identical", 0),
        ("mask", 0, "cannot tell", 3),
    ],
)
def test_the_command_says_which_and_exits_accordingly(place, kind, steps, verdict, status):
    init, trained, found = place(kind, "float16", "float32", "float32", steps)
    result = CliRunner().invoke(app, ["diagnose", str(init), str(trained), "--json"])
    assert result.exit_code == status
    told = json.loads(result.output)
    assert told["verdict"] == found.verdict == verdict
    assert bool(told["cannot_tell"]) == (verdict == "cannot tell")
    text = CliRunner().invoke(app, ["diagnose", str(init), str(trained)])
    assert text.exit_code == status
    assert {"identical": "IDENTICAL", "not identical": "No identical copies", "cannot tell": "Cannot tell"}[
        verdict
    ] in text.output


def test_a_growth_without_copies_has_no_lock(tmp_path):
    growth.grow(deepen(to=4), save(random_phi(), tmp_path / "source"), tmp_path / "init")
    result = CliRunner().invoke(app, ["diagnose", str(tmp_path / "init"), str(tmp_path / "init"), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.output)["verdict"] == "no copies"


def test_without_a_manifest_it_cannot_tell(tmp_path):
    source = save(random_phi(), tmp_path / "source")
    result = CliRunner().invoke(app, ["diagnose", str(source), str(source)])
    assert result.exit_code == 2
    assert "nothing tells its copies from its fresh units" in result.output


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_of_a_training_that_broke_it_cannot_tell(tmp_path, value):
    model = random_phi()
    growth.grow(GROWTHS["mask"], save(model, tmp_path / "source"), tmp_path / "init")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "init")
    with torch.no_grad():
        trained.get_parameter("model.layers.1.mlp.fc1.weight")[3, 5] = value
    result = CliRunner().invoke(app, ["diagnose", str(tmp_path / "init"), str(save(trained, tmp_path / "trained"))])
    assert result.exit_code == 2
    assert "'model.layers.1.mlp.fc1.weight'" in result.output
    assert "holds NaN or Inf" in " ".join(result.output.split())
