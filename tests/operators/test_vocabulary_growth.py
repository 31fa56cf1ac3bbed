"""Added tokens: what they cost the source's tokens is measured, and the plan promises no more than that."""

import json
from math import log

import pytest
import torch

import growth
from growth.errors import RecipeError
from growth.operators import widen
from tests.cases.llama import SMALL
from tests.support.families import Case, random_model
from tests.support.models import random_phi, tokens

INITS = ("mean", "random", "pad", "tile", "sample")


@torch.no_grad()
def lost_to_added(model, larger):
    """Nats that added tokens cost the others, mean over positions, by the definition."""
    old = model.config.vocab_size
    probability = larger(input_ids=tokens(old)).logits.softmax(-1)
    return float(-probability[..., :old].sum(-1).log().mean())


@pytest.mark.parametrize(
    "model", [random_phi(), random_model(Case("llama", "", SMALL | {"tie_word_embeddings": True}))]
)
def test_mean_is_the_default_and_moves_the_loss_least(model):
    old = model.config.vocab_size
    larger = {init: growth.grow_model(model, widen("vocab", to=old + 24, init=init)) for init in INITS}
    lost = {init: lost_to_added(model, grown) for init, grown in larger.items()}
    assert min(lost, key=lost.get) == "mean"
    assert 0 < lost["mean"] <= log(1 + 24 / old)
    default = growth.grow_model(model, widen("vocab", to=old + 24)).state_dict()
    assert all(torch.equal(tensor, default[name]) for name, tensor in larger["mean"].state_dict().items())


def test_mean_is_the_default_of_recipes_and_trained_weights_agree(phi_mini, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "description: d\nsteps: [{op: widen, axis: vocab, multiple: 2112}, {op: widen, axis: ffn, to: 600}]"
    )
    plan = growth.plan(path, phi_mini)
    assert [step.operator for step in plan.growth.steps] == [
        "widen vocab 2048 → 2112, mean",
        "widen ffn 512 → 600, pad",
    ]
    model = growth_model(phi_mini)
    lost = {init: lost_to_added(model, growth.grow_model(model, widen("vocab", to=2112, init=init))) for init in INITS}
    assert min(lost, key=lost.get) == "mean"
    assert 20 * lost["mean"] < min(cost for init, cost in lost.items() if init != "mean")


def growth_model(folder):
    from growth.verification.streaming import load_stock

    return load_stock(folder, torch.float64)


@pytest.mark.parametrize("init", INITS)
def test_a_plan_does_not_promise_the_function_where_added_tokens_take_probability(init, phi_folder):
    plan = growth.plan(widen("vocab", to=70, init=init), phi_folder)
    assert not plan.preserving
    assert plan.keeps_logits
    assert "take probability" in plan.growth.steps[0].why
    assert plan.to_dict()["preserving"] is False


def test_a_mean_row_whose_bias_is_low_is_harmless_and_promised(phi_folder):
    quiet = widen("vocab", to=70, init="mean", logit_bias=-30)
    assert growth.plan(quiet, phi_folder).preserving
    model = random_phi()
    assert lost_to_added(model, growth.grow_model(model, quiet)) < 1e-12
    assert not growth.plan(widen("vocab", to=70, init="mean", logit_bias=-5), phi_folder).preserving


def test_a_bias_that_copies_would_not_have_is_refused(phi_folder):
    with pytest.raises(RecipeError, match="have the biases of the tokens that they copy"):
        growth.plan(widen("vocab", to=70, init="tile", logit_bias=-30), phi_folder)


def test_other_steps_are_held_to_the_laws_beside_a_larger_vocabulary(phi_folder, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("description: d\nsteps: [{op: widen, axis: vocab, to: 70}, {op: deepen, to: 5, init: copy}]")
    plan = growth.plan(path, phi_folder)
    assert not plan.keeps_logits
    growth.grow(path, phi_folder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "growth.json").read_text())["steps"][0]["adds_tokens"] is True
