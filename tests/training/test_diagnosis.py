"""A diagnosis of really trained models says what is known of them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import growth
from growth.cli.app import app
from growth.errors import CheckpointError
from growth.operators import break_symmetry, chain, deepen, widen
from growth.planning.manifest import expansion_from
from growth.training import checkpoint_pair
from tests.support.families import all_cases, random_model
from tests.support.models import random_phi, save, tokens

FAMILIES = ("phi", "llama", "gpt2")
DOUBLE = {
    "ffn": widen("ffn", factor=2, init="tile", shares="equal"),
    "residual": widen("residual", factor=2, init="tile", shares="equal"),
    "heads": widen("heads", factor=2, init="tile", shares="equal"),
}
JOINED = {
    "residual": chain(
        widen("residual", factor=2, init="tile", shares="equal"), widen("heads", factor=2, init="tile", shares="equal")
    )
}  # GPT-2's geometry ties the two


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    models = {"phi": random_phi()}
    for family in FAMILIES[1:]:
        models[family] = random_model(next(case for case in all_cases() if case.family == family))
    return {name: save(model, folder / name) for name, model in models.items()}


@pytest.fixture
def after_training(sources, tmp_path):
    """Grows a source, trains it a little, and returns the two folders."""

    def trained(operator, family="phi", steps=8, dtype="float64", optimizer=torch.optim.AdamW):
        torch.manual_seed(0)
        growth.grow(operator, sources[family], tmp_path / "init", dtype=dtype)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "init", attn_implementation="eager")
        optimizer = optimizer(model.parameters(), lr=1e-3)
        for step in range(steps):
            ids = tokens(seed=step)
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        return tmp_path / "init", save(model, tmp_path / "trained")

    return trained


def sides(found, axis):
    return {copies.side: copies for copies in found.copies if copies.axis == axis}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("axis", list(DOUBLE))
def test_copies_with_equal_shares_stay_identical(after_training, family, axis):
    operator = JOINED["residual"] if family == "gpt2" and axis != "ffn" else DOUBLE[axis]
    found = growth.diagnose(*after_training(operator, family))
    for copies in sides(found, axis).values():
        assert copies.state == "identical"
        assert copies.apart < 1e-9
        assert copies.identical == 1
    assert len(found.identical[axis]) == len(sides(found, axis)["written"].layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_between_which_weights_are_divided_diverge(after_training, family, tmp_path):
    random = growth.diagnose(*after_training(widen("ffn", factor=2, shares="random", init="tile"), family))
    shutil.rmtree(tmp_path / "init")
    mask = growth.diagnose(*after_training(widen("ffn", factor=2, shares="mask", init="tile"), family))
    first, second = sides(random, "ffn")["written"], sides(mask, "ffn")["written"]
    assert 0.1 < first.apart < second.apart
    assert not random.identical
    assert not mask.identical


def test_copies_stay_identical_under_sgd_too(after_training):
    """The measure does not hang on the optimizer's way to scale a step."""
    found = growth.diagnose(
        *after_training(widen("ffn", factor=2, init="tile", shares="equal"), optimizer=torch.optim.SGD)
    )
    assert {copies.state for copies in found.copies} == {"identical"}


def test_identical_copies_are_found_in_bfloat16(after_training):
    found = growth.diagnose(*after_training(widen("ffn", factor=2, init="tile", shares="equal"), dtype="bfloat16"))
    assert list(found.identical) == ["ffn"]
    assert found.copies[0].grain > 1e-3


@pytest.mark.parametrize(
    "operator",
    [
        chain(widen("ffn", factor=2, shares="random", init="tile"), deepen(to=4)),
        chain(widen("ffn", factor=2, init="tile", shares="equal"), deepen(to=4), break_symmetry()),
    ],
    ids=["shares", "break_symmetry"],
)
def test_identity_layers_have_no_twins(after_training, operator):
    """The readers of identity layers start as zero: divided weights would not reach copies there."""
    init, trained = after_training(operator)
    silent = [n for n, layer in enumerate(json.loads((init / "growth.json").read_text())["layers"]) if layer["silent"]]
    assert silent
    before, after = (load_file(folder / "model.safetensors") for folder in (init, trained))
    for layer in silent:
        name = f"model.layers.{layer}.mlp.fc1.weight"
        for state in (before, after):
            first, second = state[name].chunk(2)
            assert (first - second).norm() > first.norm() / 2
    assert not growth.diagnose(init, trained).identical


def test_independent_movement_measures_one(sources, tmp_path):
    growth.grow(DOUBLE["ffn"], sources["phi"], tmp_path / "init")
    shutil.copytree(tmp_path / "init", tmp_path / "trained")
    state = load_file(tmp_path / "init" / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    stirred = {name: w + 1e-3 * torch.randn(w.shape, generator=generator, dtype=w.dtype) for name, w in state.items()}
    save_file(stirred, tmp_path / "trained" / "model.safetensors")
    for copies in growth.diagnose(tmp_path / "init", tmp_path / "trained").copies:
        assert copies.apart == pytest.approx(1, abs=0.05)
        assert copies.state == "independent"


def test_the_coefficients_of_copies_are_undone(sources, tmp_path):
    """Units that move by the same signal move by `write` times it: three unequal LayerNorm copies are one."""
    growth.grow(widen("residual", to=40, init="tile", shares="equal"), sources["phi"], tmp_path / "init")
    entry = json.loads((tmp_path / "init" / "growth.json").read_text())["axes"]["residual"]
    expansion = expansion_from(entry)
    assert expansion.write.min() < 0
    shutil.copytree(tmp_path / "init", tmp_path / "trained")
    state = load_file(tmp_path / "init" / "model.safetensors")
    signal = torch.randn(expansion.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = signal[torch.tensor(expansion.source)] * torch.tensor(expansion.write)
    for name in state:
        if name.endswith(("fc2.weight", "dense.weight")):
            state[name] += 1e-2 * moved[:, None]
    save_file(state, tmp_path / "trained" / "model.safetensors")
    found = sides(growth.diagnose(tmp_path / "init", tmp_path / "trained"), "residual")
    assert found["written"].apart < 1e-10
    assert found["read"].state == "cannot tell"
    assert found["read"].why == "no weight of them has changed"


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_layers_gain_function(after_training, family, tmp_path):
    gains = []
    for steps in (0, 2, 8):
        init, trained = after_training(deepen(to=5), family, steps)
        found = growth.diagnose(init, trained)
        assert len(found.new_layers) == 2
        assert all(len(layer.gained) == 2 for layer in found.new_layers)
        gains.append(min(layer.mean for layer in found.new_layers))
        shutil.rmtree(init)
    assert 0 == gains[0] < gains[1] < gains[2] < 1


def test_the_gain_of_a_layer_is_the_norm_of_its_branch_ends(after_training):
    init, trained = after_training(deepen(to=4))
    found = growth.diagnose(init, trained).new_layers[0]
    state = load_file(trained / "model.safetensors")
    norms = [float(state[f"model.layers.{n}.mlp.fc2.weight"].norm()) for n in range(4)]
    old = [norm**2 for n, norm in enumerate(norms) if n != found.layer]
    assert found.gained["mlp.fc2.weight"] == pytest.approx(norms[found.layer] / (sum(old) / 3) ** 0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_units_grow_on_their_silent_side(after_training, family):
    init, trained = after_training(widen("ffn", to=64, init="pad"), family)
    by_side = {fresh.side: fresh for fresh in growth.diagnose(init, trained).fresh}
    assert by_side["read"].before == 0
    assert 0 < by_side["read"].after < 1
    assert by_side["written"].before == pytest.approx(1, abs=0.2)


def test_fresh_rows_of_a_fused_weight_are_found(after_training):
    """GPT-2's c_attn: fresh heads stand in each third."""
    operator = chain(widen("residual", to=40, init="pad"), widen("heads", to=5, init="pad"))
    init, trained = after_training(operator, "gpt2")
    heads = {fresh.side: fresh for fresh in growth.diagnose(init, trained).fresh if fresh.axis == "heads"}
    weights = load_file(init / "model.safetensors")["transformer.h.0.attn.c_attn.weight"].unflatten(1, (3, 5, 8))
    old, new = (float(part.square().mean().sqrt()) for part in (weights[:, :, :4], weights[:, :, 4:]))
    assert heads["written"].before == pytest.approx(new / old, rel=0.15)
    assert heads["read"].before == 0 < heads["read"].after


def test_blocks_do_not_change_the_result(after_training, monkeypatch):
    operator = chain(
        widen("residual", to=40, init="tile", shares="equal"),
        widen("ffn", to=70, shares="random", init="tile"),
        deepen(to=4),
    )
    folders = after_training(operator)
    whole = growth.diagnose(*folders).to_dict()
    monkeypatch.setattr(checkpoint_pair, "BLOCK_BYTES", 1000)
    found = growth.diagnose(*folders).to_dict()
    assert len(found["copies"]) == 4
    for part, other in zip(found["copies"], whole["copies"], strict=True):
        assert part["apart"] == pytest.approx(other["apart"], rel=1e-9)
        assert part["identical"] == other["identical"]
    assert found["new_layers"][0]["mean"] == pytest.approx(whole["new_layers"][0]["mean"])


# ------------------------------------------------- refusals


def test_what_is_no_growth_is_refused(sources):
    with pytest.raises(CheckpointError, match=r"no growth\.json"):
        growth.diagnose(sources["phi"], sources["phi"])


def test_another_geometry_is_refused(sources, tmp_path):
    growth.grow(DOUBLE["ffn"], sources["phi"], tmp_path / "init")
    with pytest.raises(CheckpointError, match="different geometry"):
        growth.diagnose(tmp_path / "init", sources["phi"])


def test_other_names_are_refused(sources, tmp_path):
    growth.grow(DOUBLE["ffn"], sources["phi"], tmp_path / "init")
    with pytest.raises(CheckpointError, match="saved under other names"):
        growth.diagnose(tmp_path / "init", sources["llama"])


def test_a_foreign_manifest_is_refused(sources, tmp_path):
    growth.grow(DOUBLE["ffn"], sources["phi"], tmp_path / "init")
    growth.grow(DOUBLE["heads"], sources["phi"], tmp_path / "other")
    shutil.copy(tmp_path / "other" / "growth.json", tmp_path / "init" / "growth.json")
    with pytest.raises(CheckpointError, match="belongs to another checkpoint"):
        growth.diagnose(tmp_path / "init", tmp_path / "init")


# ------------------------------------------------- what people see


def test_the_command(after_training, tmp_path):
    operator = chain(
        widen("ffn", factor=2, init="tile", shares="equal"), widen("vocab", to=64, init="random"), deepen(to=4)
    )
    init, trained = after_training(operator)
    result = CliRunner().invoke(app, ["diagnose", str(init), str(trained), "--plot", str(tmp_path / "plot.png")])
    assert result.exit_code == 1, result.output
    assert "IDENTICAL" in result.output
    assert "moved as one" in result.output
    assert "nan" not in result.output
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    as_json = CliRunner().invoke(app, ["diagnose", str(init), str(trained), "--json"])
    assert json.loads(as_json.output)["copies"][0]["state"] == "identical"
    refused = CliRunner().invoke(app, ["diagnose", str(trained), str(init)])
    assert refused.exit_code == 2
