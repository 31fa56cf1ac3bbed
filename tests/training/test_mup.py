"""Rates that follow from the growth of fan-in and fan-out: they are those under which a step on copies is the source's."""

import pytest
import torch

import growth
from benchmarks.coordinate_check import moved, source
from growth.errors import ConfigError
from growth.operators import chain, deepen, widen
from growth.training.moments import step_scales
from growth.training.parameter_names import parameter_names
from tests.support.families import all_cases, random_model, tied_and_untied
from tests.support.models import random_phi

WIDER = chain(*(widen(axis, factor=2, init="tile", shares="equal") for axis in ("residual", "ffn", "heads")))


def rates(model, plan, **options):
    """The rate of each parameter by its name, and its weight decay."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = growth.param_groups(model, plan, lr=1.0, weight_decay=0.5, **options)
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize("family", ["llama", "phi", "qwen3"])
def test_rates_for_adam_are_those_of_the_exact_step_on_copies(family):
    model = random_model(tied_and_untied()[family, "untied"], torch.float32)
    plan = growth.plan(WIDER, model)
    larger = growth.grow_model(model, plan)
    found, scales = rates(larger, plan, mup="adam"), step_scales(plan)
    compared = 0
    for name, stored in parameter_names(larger, scales).items():
        exact = {scales[file] for file in stored.files}
        if exact != {None}:
            assert {found[name][0]} == exact, name
            assert found[name][0] * found[name][1] in (0, 0.5)  # lr * weight_decay stays
            compared += 1
    assert compared > 0.7 * len(found)


def test_a_step_moves_activations_as_far_at_each_width():
    """With Adam and copies exactly so; at one rate for all, ever further with the width."""
    small = source()
    (base,) = moved(small, 1, "tile", "adam", False, steps=1)
    for width in (2, 4):
        (right,) = moved(small, width, "tile", "adam", True, steps=1)
        assert right == pytest.approx(base, rel=1e-3)
        (one,) = moved(small, width, "tile", "adam", False, steps=1)
        assert min(a / b for a, b in zip(one, base, strict=True)) > 1 + 0.4 * (width - 1)
    (padded,), (one,) = (moved(small, 4, "pad", "adam", mup, steps=1) for mup in (True, False))
    assert all(a < b < c for a, b, c in zip(padded, base, one, strict=True))


def test_rates_by_hand():
    """Residual × 2, ffn × 4/3, depth × 2: of Phi, whose key and query write head_dim as it was."""
    model = random_phi(torch.float32)
    plan = growth.plan(chain(widen("residual", to=64), widen("ffn", to=64), deepen(to=6)), model)
    larger = growth.grow_model(model, plan)
    layer = "model.layers.0."
    named = ("model.embed_tokens.weight", "lm_head.weight", layer + "mlp.fc1.weight", layer + "mlp.fc2.weight")
    named += (layer + "self_attn.dense.weight", layer + "mlp.fc1.bias", layer + "input_layernorm.weight")
    expected = {
        "adam": (1, 1 / 2, 1 / 2, 3 / 4, 1, 1, 1),
        "sgd": (2, 1 / 2, 2 / 3, 3 / 2, 2, 4 / 3, 2),
        # fc1 was 48 × 32 and is 64 × 64: torch's own factor falls from sqrt(3/2) to 1
        "muon": (1, 1 / 2, (2 / 3 * 3 / 2) ** 0.5, (3 / 2) ** 0.5, 1, 1, 1),
        "muon_match_rms_adamw": (1, 1 / 2, (2 / 3 * 48 / 64) ** 0.5, (3 / 2 * 48 / 64) ** 0.5, 1, 1, 1),
    }
    for rule, values in expected.items():
        found = rates(larger, plan, mup=rule)
        assert [found[name][0] for name in named] == pytest.approx(values), rule
    deep = rates(larger, plan, mup="adam", depth_mup=True)
    assert deep[layer + "mlp.fc1.weight"][0] == pytest.approx(1 / 2 / 2**0.5)
    assert deep["lm_head.weight"][0] == 1 / 2
    groups = growth.param_groups(larger, plan, lr=1.0, mup="muon")
    torch.optim.Muon([group for group in groups if group["optimizer"] == "muon"])
    others = [p for group in groups if group["optimizer"] == "adamw" for p in group["params"]]
    assert {id(p) for p in others if p.ndim == 2} == {id(larger.lm_head.weight), id(larger.model.embed_tokens.weight)}


def test_channels_of_heads():
    """Keys read the channels that queries write; scores are divided by the root of their number."""
    model = random_phi(torch.float32)
    plan = growth.plan(widen("head_dim", factor=2), model)
    larger = growth.grow_model(model, plan)
    found = rates(larger, plan, mup="adam")
    of = {name: found[f"model.layers.0.self_attn.{name}_proj.weight"][0] for name in "qkv"}
    assert of == pytest.approx({"q": 2**-0.5, "k": 1 / 2, "v": 1})


def test_a_tied_head_has_the_smaller_rate():
    case = next(case for case in all_cases() if case.family == "gemma2")
    model = random_model(case, torch.float32)
    plan = growth.plan(widen("residual", factor=2, init="tile", shares="equal"), model)
    larger = growth.grow_model(model, plan)
    assert rates(larger, plan, mup="adam")["model.embed_tokens.weight"][0] == 1 / 2


def test_refusals():
    model = random_phi(torch.float32)
    plan = growth.plan(widen("ffn", factor=2), model)
    larger = growth.grow_model(model, plan)
    with pytest.raises(ConfigError, match="mup='lion' is unknown: use one of adam, sgd"):
        growth.param_groups(larger, plan, lr=1.0, mup="lion")
    with pytest.raises(ConfigError, match="depth_mup=True needs mup"):
        growth.param_groups(larger, plan, lr=1.0, depth_mup=True)


@pytest.mark.parametrize("rule", ["muon", "muon_match_rms_adamw"])
@pytest.mark.parametrize("family", ["mixtral", "gpt2", "llama"])
def test_what_adamw_trains_beside_muon_has_the_rates_and_the_decay_of_adam(family, rule):
    """Stacks of experts are hidden, but not matrices: one rule says which optimizer trains a tensor, and its factor."""
    model = random_model(next(case for case in all_cases() if case.family == family), torch.float32)
    plan = growth.plan(widen("ffn", factor=2), model)
    larger = growth.grow_model(model, plan)
    names = {id(p): name for name, p in larger.named_parameters()}
    adam, compared = rates(larger, plan, mup="adam"), set()
    for group in growth.param_groups(larger, plan, lr=1.0, weight_decay=0.5, mup=rule):
        for parameter in group["params"] if group["optimizer"] == "adamw" else ():
            assert adam[names[id(parameter)]] == (group["lr"], group["weight_decay"])
            compared.add(adam[names[id(parameter)]][0])
    assert len(compared) > (family == "mixtral")


def test_growth_from_no_layers_has_no_rates_in_depth():
    model = random_phi(torch.float32, num_hidden_layers=0)
    plan = growth.plan(deepen(to=2, init="fresh"), model)
    with pytest.raises(ConfigError, match="the source has no layers"):
        growth.param_groups(growth.grow_model(model, plan), plan, lr=1.0, mup="adam", depth_mup=True)
