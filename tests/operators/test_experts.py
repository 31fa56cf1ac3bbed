"""Experts: copied and told apart, the function kept."""

import json
from itertools import product

import pytest
import torch
from transformers import AutoModelForCausalLM

import growth
from growth import RecipeError
from growth.operators import break_symmetry, chain, configure, widen
from growth.planning.recipe import recipe_of
from tests.support.experts import CASES, experts_of, grown, last_of_experts
from tests.support.families import random_model, special, table, typical
from tests.support.models import EXACT, relative_error, save
from tests.support.selection import one_of_each

ALL = [case for case in CASES.values() if "experts" in table(case).axes]
MIXTURES = [case for case in ALL if "experts" not in case.refused]


@pytest.mark.parametrize(
    ("case", "factor"),
    one_of_each(
        product(ALL, [2, 3]),
        lambda case, factor: special(case),
        lambda case, factor: (factor, "experts" in case.refused),
        ids=lambda case, factor: f"{case.name}-{factor}",
    ),
)
def test_copies_of_experts_are_chosen_together(case, factor, saw):
    model = random_model(case)
    if "experts" in case.refused:
        with pytest.raises(RecipeError, match=case.refused["experts"]) as refused:
            grown(model, widen("experts", factor=factor))
        saw(case, "experts", str(refused.value).split(": ", 1)[-1])
        return
    larger = grown(model, widen("experts", factor=factor))
    configs = [one.config.get_text_config() for one in (larger, model)]  # files may have other names of keys
    for key, axis in table(case).ratios.items():
        assert axis != "experts" or getattr(configs[0], key) == factor * getattr(configs[1], key)
    assert relative_error(model, larger) <= EXACT
    saw(case, "experts", "exact")


@pytest.mark.parametrize("case", one_of_each(((case,) for case in MIXTURES), typical, ids=lambda case: case.name))
def test_copies_of_experts_can_be_told_apart(case):
    model = random_model(case)
    twins = widen("experts", factor=2)
    apart = grown(model, chain(twins, break_symmetry()))
    assert relative_error(model, apart) <= EXACT
    before = last_of_experts(grown(model, twins))
    after = last_of_experts(apart)
    count = len(after) // 2
    assert torch.equal(before[:count], before[count:])
    assert (after[:count] - after[count:]).norm() > 0.1 * after.norm()


@pytest.mark.parametrize("operator", [widen("experts", to=6), widen("experts", factor=2, init="pad")])
def test_unequal_copies_are_refused(operator):
    with pytest.raises(RecipeError, match=r"copies of an expert have its score.* init: tile and to: 8"):
        grown(random_model(CASES["mixtral, top 2 of 4"]), operator)


# ------------------------------------------------- copies by scores


def batches(count=2):
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(0, 61, (2, 20), generator=generator)} for _ in range(count)]


@pytest.mark.parametrize(
    "case", [CASES["mixtral, top 2 of 4"], CASES["granitemoe, multipliers"]], ids=lambda case: case.name
)
def test_equal_scores_copy_every_expert_exactly(case):
    model = random_model(case)
    plain, scored = (grown(model, widen("experts", factor=2, **more)) for more in ({}, {"scores": [0.5] * 4}))
    for one, other in zip(plain.parameters(), scored.parameters(), strict=True):
        assert torch.equal(one, other)
    assert relative_error(model, scored) <= EXACT


def test_the_highest_score_per_copy_is_copied_next(tmp_path):
    source = save(random_model(CASES["mixtral, top 2 of 4"]), tmp_path / "source")
    plan = growth.plan(widen("experts", to=8, scores=[8.0, 1.0, 0.0, 3.9]), source)
    assert plan.growth.expansions["experts"].source.tolist() == [0, 1, 2, 3, 0, 0, 3, 0]
    assert not plan.preserving
    assert plan.config["num_experts_per_tok"] == 4


def test_measured_scores_decide_the_copies_from_a_file(tmp_path):
    """The stock class alone says how often each expert is chosen, and what gradient it has."""
    model = random_model(CASES["mixtral, top 2 of 4"])
    utility = growth.expert_utility(model, batches())
    logits = torch.cat([torch.stack(model(**each, output_router_logits=True).router_logits) for each in batches()], 1)
    chosen = torch.nn.functional.one_hot(logits.topk(2).indices, 4).sum(2).double().mean(1)
    torch.testing.assert_close(torch.tensor(utility.tokens).double(), chosen, rtol=1e-5, atol=0)
    for each in batches(1):
        model(**each, labels=each["input_ids"]).loss.backward()
    experts = [layer.mlp.experts for layer in model.model.layers]
    squares = [sum(p.grad.flatten(1).square().sum(1) for p in each.parameters()) for each in experts]
    one = growth.expert_utility(model, batches(1))
    torch.testing.assert_close(torch.tensor(one.gradients).double(), torch.stack(squares), rtol=1e-5, atol=0)

    source = save(model, tmp_path / "source")
    utility.save(tmp_path / "scores.json", "tokens")
    step = {"op": "widen", "axis": "experts", "to": 6, "scores": str(tmp_path / "scores.json")}
    keep = {"op": "configure", "keys": {"num_experts_per_tok": 2}}
    growth.grow(recipe_of({"description": "", "steps": [step, keep]}, "scored"), source, tmp_path / "out")
    (tmp_path / "scores.json").unlink()
    assert growth.verify(source, tmp_path / "out").status == "LOSSY"
    assert growth.verify_weights(source, tmp_path / "out").passed
    live = grown(model, chain(widen("experts", to=6, scores=utility.scores("tokens")), configure(keys=keep["keys"])))
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert all(map(torch.equal, live.parameters(), stored.parameters()))
    assert live.config.num_experts_per_tok == stored.config.num_experts_per_tok == 2


def test_measuring_leaves_the_model_as_it_was():
    model = random_model(CASES["olmoe, one query a head"])
    experts_of(model).down_proj.requires_grad_(False)
    growth.expert_utility(model, batches(1))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not experts_of(model).down_proj.requires_grad
    assert not experts_of(model)._forward_pre_hooks


REFUSALS = [
    (widen("experts", to=6, scores=[1.0, 2.0]), "2 scores for 4 experts"),
    (widen("ffn", factor=2, init="tile", scores=[1.0]), "scores say which experts are copied. Leave them out"),
    (widen("experts", to=6, scores=[1.0] * 4, init="pad"), "by pad with scores.* Use init: tile"),
    (widen("experts", to=6, scores=[True, False, True, True]), "scores are numbers from 0"),
]


@pytest.mark.parametrize(("operator", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_scores_that_do_not_fit_are_refused(operator, message):
    with pytest.raises(RecipeError, match=message):
        grown(random_model(CASES["mixtral, top 2 of 4"]), operator)


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "[1, 2]", "[[1, 2], [1]]", "[[1, -2]]", "[[NaN]]", "[[true]]", "[" * 99999]
)
def test_files_without_scores_are_refused(content, tmp_path):
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(RecipeError, match="scores"):
        grown(random_model(CASES["mixtral, top 2 of 4"]), widen("experts", to=6, scores=str(tmp_path / "scores.json")))


@pytest.mark.parametrize("more", [-1, 1])
def test_files_have_a_list_of_scores_for_each_layer_with_experts(more, tmp_path):
    model = random_model(CASES["mixtral, top 2 of 4"])
    path, layers = tmp_path / "scores.json", model.config.num_hidden_layers
    step = {"op": "widen", "axis": "experts", "to": 6, "scores": str(path)}
    path.write_text(json.dumps([[1, 2, 3, 4]] * layers))
    assert grown(model, widen("experts", to=6, scores=str(path)))
    path.write_text(json.dumps([[1, 2, 3, 4]] * (layers + more)))
    for recipe in (widen("experts", to=6, scores=str(path)), recipe_of({"description": "", "steps": [step]}, "scored")):
        with pytest.raises(
            RecipeError, match=rf"scores\.json has one list .* each of {layers + more} .* has {layers} such"
        ):
            grown(model, recipe)


def test_a_recipe_names_the_step_whose_scores_are_missing(tmp_path):
    step = {"op": "widen", "axis": "experts", "to": 6, "scores": str(tmp_path / "absent.json")}
    with pytest.raises(RecipeError, match=r"step 1 \(widen\): scores: .*absent.json is not a file"):
        recipe_of({"description": "", "steps": [step]}, "scored")


def test_a_model_without_experts_has_no_utility():
    with pytest.raises(growth.ConfigError, match="has no experts"):
        growth.expert_utility(random_model(CASES["llama, tied"]), batches(1))
