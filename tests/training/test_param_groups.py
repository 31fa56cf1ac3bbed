"""Parameter groups: each value is of one kind, and what is frozen keeps every bit."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Trainer

import growth
from growth.errors import CheckpointError, ConfigError
from growth.operators import chain, deepen, widen
from growth.planning.manifest import manifest
from growth.training.value_kinds import COPY, FRESH_UNIT, KINDS, NEW_LAYER, OLD, tensor_kinds
from tests.support.families import all_cases, random_model
from tests.support.models import random_phi, tokens

DEPTH = deepen(to=5, order="interleave", init="identity")
PAD = chain(widen("residual", to=40, init="pad"), widen("ffn", to=60, init="pad"))
COPIES = chain(
    widen("ffn", factor=2, init="tile", shares="equal"), widen("residual", factor=2, init="tile", shares="equal")
)
EVERYTHING = chain(widen("ffn", to=60, init="pad"), widen("residual", factor=2, init="tile", shares="equal"), DEPTH)
GROWTHS = {"depth": DEPTH, "pad": PAD, "copies": COPIES, "everything": EVERYTHING}

OPTIMIZERS = {
    "AdamW": lambda groups: torch.optim.AdamW(groups),
    "Adam": lambda groups: torch.optim.Adam(groups),
    "SGD": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "RMSprop": lambda groups: torch.optim.RMSprop(groups),
}


def grown(operator):
    model = random_phi()
    plan = growth.plan(operator, model)
    return growth.grow_model(model, plan), plan


def values(plan):
    """For each tensor the kind of every value."""
    kinds = tensor_kinds(manifest(plan, {}, {}))
    return {
        name: torch.from_numpy(np.maximum.outer(*k) if len(k) == 2 else k[0].copy()).long() for name, k in kinds.items()
    }


def train(model, optimizer, steps=3):
    for seed in range(steps):
        ids = tokens(seed=seed)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


# ------------------------------------------------- kinds


@pytest.mark.parametrize("operator", GROWTHS.values(), ids=GROWTHS)
def test_old_values_are_the_source_once(operator):
    """Each old value of the source is one old value of the grown model: kinds are a partition."""
    model = random_phi()
    plan = growth.plan(operator, model)
    old = sum(int((kinds == OLD).sum()) for kinds in values(plan).values())
    assert old == sum(parameter.numel() for parameter in model.parameters())


def test_kinds_of_a_tensor():
    _, plan = grown(chain(widen("ffn", to=60, init="pad"), widen("residual", factor=2, init="tile", shares="equal")))
    found = values(plan)["model.layers.0.mlp.fc1.weight"]
    assert found.shape == (60, 64)
    assert (found[:48, :32] == OLD).all()
    assert (found[:48, 32:] == COPY).all()
    assert (found[48:] == FRESH_UNIT).all()


def test_new_layers_are_new_as_a_whole():
    _, plan = grown(EVERYTHING)
    new = [index for index, layer in enumerate(plan.growth.layers) if layer.silent]
    assert len(new) == 2
    for name, kinds in values(plan).items():
        is_new = any(name.startswith(f"model.layers.{index}.") for index in new)
        assert bool((kinds == NEW_LAYER).all()) == is_new


FUSED = ("gpt2", "gpt_neox", "phi3")


@pytest.mark.parametrize("family", [*FUSED, "llama", "falcon"])
def test_the_kinds_that_growth_json_says_are_those_of_the_plan(family):
    model = random_model(next(case for case in all_cases() if case.family == family), torch.float32)
    axes = ("ffn",) if family == "falcon" else ("residual", "heads", "ffn")
    plan = growth.plan(chain(*(widen(axis, factor=2, init="tile") for axis in axes)), model)
    content = json.loads(json.dumps(manifest(plan, {}, {})))
    kinds = tensor_kinds(content)
    assert any("fused" in entry for entry in content["tensors"].values()) or family not in FUSED
    for tensor_map in plan.tensors:
        for dimension, found in zip(tensor_map.dimensions, kinds[tensor_map.target], strict=True):
            assert ((found == FRESH_UNIT) == dimension.fresh).all(), tensor_map.target
            firsts = np.zeros(len(dimension), bool)
            firsts[np.unique(dimension.source, return_index=True)[1]] = True
            assert ((found == OLD) == (firsts & ~dimension.fresh)).all(), tensor_map.target


# ------------------------------------------------- groups


@pytest.mark.parametrize("operator", GROWTHS.values(), ids=GROWTHS)
def test_every_parameter_is_in_one_group_and_decays_as_in_a_trainer(operator):
    model, plan = grown(operator)
    groups = growth.param_groups(model, plan, lr=1e-3, weight_decay=0.1, old=0.5, copies=1, fresh=2, new_layers=3)
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(map(id, model.parameters()))
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = Trainer.get_decay_parameter_names(None, model)
    assert decayed == {id(p) for name, p in model.named_parameters() if name in names}
    rates = dict(zip(KINDS, (0.5, 1, 2, 3), strict=True))
    newest = {id(p): KINDS[int(values(plan)[name].max())] for name, p in model.named_parameters()}
    for group in groups:
        assert group["lr"] == 1e-3 * rates[group["kind"]]
        assert {newest[id(p)] for p in group["params"]} == {group["kind"]}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("operator", GROWTHS.values(), ids=GROWTHS)
def test_old_values_at_rest_keep_every_bit_and_the_rest_moves(operator, make):
    model, plan = grown(operator)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, make(growth.param_groups(model, plan, lr=1e-3, weight_decay=0.5, old=0)))
    moved = 0
    for name, kinds in values(plan).items():
        now = model.get_parameter(name).detach()
        assert torch.equal(now[kinds == OLD], before[name][kinds == OLD]), name
        moved += int((now != before[name])[kinds != OLD].any())
        # softmax does not see what a key's bias adds to every score alike
        assert (now != before[name])[kinds != OLD].any() or (kinds == OLD).all() or "k_proj.bias" in name, name
    assert moved


@pytest.mark.parametrize(
    "resting", [k for n in (1, 2, 3) for k in itertools.combinations(KINDS, n)], ids=lambda kinds: "+".join(kinds)
)
def test_any_kinds_can_rest(resting):
    operator = chain(widen("ffn", factor=2, init="tile", shares="equal"), widen("residual", to=40, init="pad"), DEPTH)
    model, plan = grown(operator)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    groups = growth.param_groups(model, plan, lr=1e-3, weight_decay=0.5, **dict.fromkeys(resting, 0))
    train(model, torch.optim.AdamW(groups), steps=2)
    moved = set()
    for name, kinds in values(plan).items():
        changed = model.get_parameter(name).detach() != before[name]
        moved |= {kind for index, kind in enumerate(KINDS) if changed[kinds == index].any()}
    assert moved == set(KINDS) - set(resting)


def test_gradients_of_what_rests_are_zero_or_none():
    """So that clipping by the norm sees only what trains."""
    model, plan = grown(EVERYTHING)
    growth.param_groups(model, plan, lr=1e-3, old=0)
    ids = tokens()
    model(input_ids=ids, labels=ids).loss.backward()
    for name, kinds in values(plan).items():
        gradient = model.get_parameter(name).grad
        assert gradient is None if (kinds == OLD).all() else not gradient[kinds == OLD].any()


def test_a_further_call_lets_go():
    model, plan = grown(EVERYTHING)
    growth.param_groups(model, plan, lr=1e-3, old=0)
    growth.param_groups(model, plan, lr=1e-3, old=0, fresh=0)
    groups = growth.param_groups(model, plan, lr=1e-3)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    ids = tokens()
    model(input_ids=ids, labels=ids).loss.backward()
    kinds = values(plan)["model.layers.0.mlp.fc1.weight"]
    assert model.get_parameter("model.layers.0.mlp.fc1.weight").grad[kinds == OLD].any()


def test_a_parameter_that_the_user_froze_stays_frozen():
    model, plan = grown(DEPTH)
    model.model.embed_tokens.requires_grad_(False)
    for old in (0, 1):
        groups = growth.param_groups(model, plan, lr=1e-3, old=old)
        assert not any(p is model.model.embed_tokens.weight for group in groups for p in group["params"])
    assert not model.model.embed_tokens.weight.requires_grad


def test_a_folder_a_manifest_and_a_plan_are_the_same(phi_mini, tmp_path):
    from transformers import AutoModelForCausalLM

    plan = growth.grow("phi-mini", phi_mini, tmp_path / "grown")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "grown")
    content = json.loads((tmp_path / "grown" / "growth.json").read_text())
    made = [growth.param_groups(model, origin, lr=1e-3, old=0.1) for origin in (plan, content, str(tmp_path / "grown"))]
    shown = [[(g["kind"], g["lr"], [id(p) for p in g["params"]]) for g in groups] for groups in made]
    assert shown[0] == shown[1] == shown[2]


# ------------------------------------------------- refusals


def test_refusals(tmp_path):
    model, plan = grown(DEPTH)
    with pytest.raises(ConfigError, match=r"rates are old=-1.*use 0 \(frozen\) or more"):
        growth.param_groups(model, plan, lr=1e-3, old=-1)
    with pytest.raises(ConfigError, match="more than 0 for at least one"):
        growth.param_groups(model, plan, lr=1e-3, old=0, copies=0, fresh=0, new_layers=0)
    with pytest.raises(CheckpointError, match=r"has no growth\.json"):
        growth.param_groups(model, tmp_path, lr=1e-3)
    with pytest.raises(CheckpointError, match="The model has 'model"):
        growth.param_groups(model, growth.plan(PAD, random_phi()), lr=1e-3)
    with pytest.raises(CheckpointError, match="should have shape"):
        growth.param_groups(random_phi(), growth.plan(PAD, random_phi()), lr=1e-3)
    with pytest.raises(ConfigError, match="Nothing is left to train"):
        growth.param_groups(
            random_phi(), growth.plan(widen("ffn", factor=1, init="tile", shares="equal"), random_phi()), lr=1e-3, old=0
        )


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "opt"])
def test_groups_of_a_tied_model_are_in_the_models_order_and_decay_as_in_a_trainer(family):
    case = next(case for case in all_cases() if case.family == family and "untied" not in case.variant)
    model = random_model(replace(case, config={**case.config, "tie_word_embeddings": True}), torch.float32)
    plan = growth.plan(widen("ffn", factor=2, init="tile", shares="equal"), model)
    larger = growth.grow_model(model, plan)
    place = {id(p): index for index, p in enumerate(larger.parameters())}
    groups = growth.param_groups(larger, plan, lr=1e-3, weight_decay=0.1)
    for group in groups:
        places = [place[id(p)] for p in group["params"]]
        assert places == sorted(places)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = Trainer.get_decay_parameter_names(None, larger)
    assert decayed == {id(p) for name, p in larger.named_parameters() if name in names}
