"""diagnose reports how different copies are, how many directions an axis uses, and which copies stayed identical."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import growth
from growth.operators import widen
from growth.training import checkpoint_pair
from tests.support.models import random_phi, save, tokens

STATE = "model.safetensors"
FC1, BIAS, EMBEDDING = "model.layers.1.mlp.fc1.weight", "model.layers.1.mlp.fc1.bias", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save(random_phi(), tmp_path_factory.mktemp("source") / "model")


def trained_a_little(source, folder, operator, steps=4):
    growth.grow(operator, source, folder / "init")
    model = AutoModelForCausalLM.from_pretrained(folder / "init", attn_implementation="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        ids = tokens(seed=step)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return growth.diagnose(folder / "init", save(model, folder / "trained"))


def changed(source, folder, operator, change):
    """A growth, and its diagnosis after `change` of its tensors."""
    growth.grow(operator, source, folder / "init")
    shutil.copytree(folder / "init", folder / "trained")
    state = load_file(folder / "init" / STATE)
    change(state)
    save_file(state, folder / "trained" / STATE)
    return growth.diagnose(folder / "init", folder / "trained")


def rank_of(matrix):
    energy = np.linalg.svd(matrix.reshape(len(matrix), -1), compute_uv=False) ** 2
    part = energy / energy.sum()
    return np.exp(-(part * np.log(part, where=part > 1e-12, out=np.zeros_like(part))).sum())


def text_of(found):
    console = Console(width=200, file=io.StringIO())
    console.print(found.table())
    return console.file.getvalue()


def test_copies_that_weights_are_divided_between_become_different_and_use_more_directions(source, tmp_path):
    ranks, distances = {}, {}
    for shares in ("equal", "mask"):
        operator = widen("residual", factor=2, init="tile", shares=shares)
        found = trained_a_little(source, tmp_path / shares, operator)
        (distance,), (rank,) = found.distances, found.ranks
        assert (rank.axis, rank.tensor, rank.units) == ("residual", EMBEDDING, 64)
        assert rank.before == pytest.approx(rank_of(load_file(source / STATE)[EMBEDDING].numpy().T), rel=1e-4)
        assert distance.before == pytest.approx(0, abs=1e-6)
        ranks[shares], distances[shares] = rank.after, distance
        assert f"{rank.before:.1f} → {rank.after:.1f}" in text_of(found)
    assert distances["equal"].after == pytest.approx(0, abs=1e-6)
    assert distances["mask"].after > 1e-2
    assert min(distances["mask"].layers.values()) > 1e-3
    assert ranks["equal"] <= 32
    assert ranks["mask"] > ranks["equal"]


@pytest.mark.parametrize("copies", [2, 3])
def test_independent_weights_are_at_a_distance_of_the_root_of_two(source, tmp_path, copies):
    def replace(state):
        for name in (FC1, BIAS):
            state[name].normal_(generator=torch.Generator().manual_seed(0))

    found = changed(source, tmp_path, widen("ffn", factor=copies, init="tile"), replace)
    assert found.distances[0].layers[1] == pytest.approx(2**0.5, abs=0.05)
    assert found.distances[0].layers[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("block", [1 << 22, 1000])
@pytest.mark.parametrize(
    ("axis", "tensor", "matrix"),
    [
        ("residual", EMBEDDING, lambda weight: weight.T),
        ("ffn", FC1, lambda weight: weight),
        ("heads", "model.layers.1.self_attn.q_proj.weight", lambda weight: weight.reshape(8, 8, 32)),
    ],
)
def test_the_rank_is_that_of_the_units_of_the_middle_layer(source, tmp_path, monkeypatch, block, axis, tensor, matrix):
    monkeypatch.setattr(checkpoint_pair, "BLOCK_BYTES", block)
    found = changed(source, tmp_path, widen(axis, factor=2, init="pad"), lambda state: state[tensor].mul_(2))
    weights = matrix(load_file(tmp_path / "init" / STATE)[tensor].numpy())
    (rank,) = found.ranks
    assert (rank.tensor, rank.units) == (tensor, len(weights))
    assert rank.before == rank.after == pytest.approx(rank_of(weights), rel=1e-4)


def test_fresh_units_have_a_rank_and_no_copies(source, tmp_path):
    found = changed(source, tmp_path, widen("ffn", factor=2, init="pad"), lambda state: None)
    assert not found.distances
    assert [rank.axis for rank in found.ranks] == ["ffn"]
    assert "no copies" in text_of(found)


def test_a_few_identical_copies_are_named(source, tmp_path):
    """Five of the units of one layer move as their copies do; all others do not."""
    generator = torch.Generator().manual_seed(0)

    def train(state):
        for name in [name for name in state if ".fc1." in name]:
            moved = 1e-2 * torch.randn(state[name].shape, generator=generator, dtype=torch.float64)
            if "layers.1." in name:
                moved[48:53] = moved[:5]
            state[name] += moved.to(state[name].dtype)

    found = changed(source, tmp_path, widen("ffn", factor=2, init="tile"), train)
    (written,) = (copies for copies in found.copies if copies.side == "written")
    assert written.state == "independent"
    assert written.identical_groups == {1: 5}
    assert written.identical == 5 / (3 * 48)
    assert (found.verdict, found.identical) == ("identical", {"ffn": (1,)})
    assert "copies along ffn moved as one in layer 1 (5 of 48 units)" in text_of(found)
    (ffn,) = (copies for copies in json.loads(json.dumps(found.to_dict()))["copies"] if copies["side"] == "written")
    assert ffn["identical_groups"] == {"1": 5}


def test_copies_that_hardly_differ_are_named_though_none_is_identical(source, tmp_path):
    def changed_a_little(state):
        second = slice(state[FC1].shape[0] // 2, None)
        for name in (name for name in state if ".mlp.fc1." in name):
            state[name] += 0.1
            state[name][second] += 1e-4 * torch.rand(
                state[name][second].shape, generator=torch.Generator().manual_seed(0)
            )

    found = changed(source, tmp_path, widen("ffn", factor=2, init="tile", shares="equal"), changed_a_little)
    assert found.verdict == "not identical"
    assert 0 < found.alike["ffn"] < 0.01
    assert "copies along ffn hardly differ" in text_of(found)
