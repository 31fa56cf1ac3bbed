"""regroup: more KV heads with fewer query heads each, exact in every family whose config can say so."""

import json

import pytest
import torch
from transformers import AutoConfig

import growth
from growth import GrowthError, RecipeError
from growth.operators import break_symmetry, chain, deepen, regroup, widen
from growth.operators.base import Growth
from growth.planning.derive import derive_recipe
from growth.training.moments import grow_gradients
from growth.verification.float64 import proof_grade
from tests.support.configs import SOURCES
from tests.support.families import all_cases, random_model, stated_config, table
from tests.support.laws import exact_or_refused
from tests.support.models import EXACT, grown, relative_error, save
from tests.support.optimizers import backward, both, trained
from tests.support.plans import plan_of

CASES = {case.name: case for case in all_cases()}
REFUSED = (
    "stored together with its query heads|slopes of their own|one norm runs over|has its own KV head|keys and values of its own|"
    "all query heads share one KV head|Grow residual together with|would have other slopes|the slope of a query head|would scale the logits|"
    "must read them in equal shares|to be a multiple of|is not a multiple of|cannot express|they agree|Untie the head first|"
    "sines of other frequencies|those of the experts that a token goes to"
)

test_a_factor_of_the_query_heads = exact_or_refused(regroup(factor=2), REFUSED)
test_a_factor_that_leaves_fresh_query_heads = exact_or_refused(regroup(factor=3), REFUSED)
test_among_other_steps = exact_or_refused(
    chain(
        widen("residual", factor=3, init="tile"),
        deepen(factor=2),
        widen("queries", factor=2, init="tile"),
        regroup(factor=2),
        widen("heads", factor=2, init="tile"),
        break_symmetry(),
    ),
    f"{REFUSED}|Cannot add identity layers",
)

LLAMA = CASES["llama, untied"]


def test_query_heads_keep_their_places_and_their_weights():
    config = stated_config(LLAMA)
    heads, queries = (table(LLAMA).axes[name].size for name in ("heads", "queries"))
    assert queries == 2
    model = random_model(LLAMA)
    larger = grown(model, regroup(factor=2))
    assert larger.config.num_key_value_heads == 2 * heads
    assert larger.config.num_attention_heads == config["num_attention_heads"]
    before, after = (one.model.layers[0].self_attn for one in (model, larger))
    assert torch.equal(after.q_proj.weight, before.q_proj.weight)
    assert torch.equal(after.o_proj.weight, before.o_proj.weight)
    of_heads = before.v_proj.weight.unflatten(0, (heads, -1))
    assert torch.equal(after.v_proj.weight, of_heads.repeat_interleave(2, 0).flatten(0, 1))


def test_the_order_of_steps_does_not_matter_where_the_sizes_agree():
    first = chain(regroup(factor=2), widen("ffn", to=60), deepen(to=5))
    last = chain(widen("ffn", to=60), deepen(to=5), regroup(factor=2))
    model = random_model(LLAMA)
    one, other = (grown(model, steps).state_dict() for steps in (first, last))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_growths_compose():
    built = table(LLAMA)
    first, then = chain(widen("queries", to=4), regroup(factor=2)), chain(regroup(factor=2), widen("heads", to=12))
    whole = chain(first, then)(Growth.start(built))
    after = plan_of(stated_config(LLAMA), first).target
    parts = first(Growth.start(built)).then(then(Growth.start(after)))
    assert parts.sizes == whole.sizes
    for name in ("source", "write", "read"):
        assert (getattr(parts.query_heads, name) == getattr(whole.query_heads, name)).all()
        assert (getattr(parts.expansions["heads"], name) == getattr(whole.expansions["heads"], name)).all()


def test_gradients_of_copies_add_up_to_the_old_one_and_are_grown_in_equal_parts():
    model = random_model(LLAMA)
    plan, larger = both(model, regroup(factor=2))
    backward(model)
    backward(larger)
    made = grow_gradients({name: parameter.grad for name, parameter in model.named_parameters()}, plan)
    heads = table(LLAMA).axes["heads"].size
    for name, parameter in model.named_parameters():
        true, expected = larger.get_parameter(name).grad, parameter.grad
        if "k_proj" in name or "v_proj" in name:
            true, assumed = (each.unflatten(0, (heads, 2, -1)) for each in (true, made[name]))
            assert torch.allclose(true.sum(1).flatten(0, 1), expected, rtol=1e-9, atol=1e-12)
            assert torch.equal(assumed.sum(1).flatten(0, 1), expected)
            assert not torch.allclose(true[:, 0], true[:, 1])  # the copies diverge
        else:
            assert torch.allclose(true, expected, rtol=1e-9, atol=1e-12)
            assert torch.equal(made[name], expected)


def test_a_grown_optimizer_goes_on():
    model = random_model(LLAMA)
    optimizer = trained(model, torch.optim.AdamW)
    plan, larger = both(model, chain(regroup(factor=2), widen("queries", to=2)))
    grown_optimizer = growth.grow_optimizer(optimizer, model, larger, plan)
    for parameter in larger.parameters():
        assert grown_optimizer.state[parameter]["exp_avg"].shape == parameter.shape
    backward(larger)
    grown_optimizer.step()
    assert all(torch.isfinite(parameter).all() for parameter in larger.parameters())


def test_a_checkpoint_passes_verification(tmp_path):
    source = save(random_model(LLAMA).float(), tmp_path / "source")
    target = growth.plan(chain(regroup(factor=2), deepen(to=4)), source).config
    recipe, _ = derive_recipe(stated_config(LLAMA), target)
    growth.grow(recipe, source, tmp_path / "grown")
    assert growth.verify(source, tmp_path / "grown", recipe, tokens=16).status == "PASSED"
    assert growth.verify_weights(source, tmp_path / "grown").passed


def test_a_diagnosis_compares_the_copies_of_keys_and_values_alone(tmp_path):
    source = save(random_model(LLAMA).float(), tmp_path / "source")
    growth.grow(regroup(factor=2), source, tmp_path / "grown")
    found = growth.diagnose(tmp_path / "grown", tmp_path / "grown")
    assert [(each.axis, each.before) for each in found.distances] == [("heads", 0.0)]
    assert not found.fresh
    path = tmp_path / "grown" / "growth.json"
    told = json.loads(path.read_text())
    told["sizes"]["before"]["queries"] = 5
    del told["axes"]["queries"]
    path.write_text(json.dumps(told))
    with pytest.raises(GrowthError, match="the query heads have another number"):
        growth.diagnose(tmp_path / "grown", tmp_path / "grown")


def test_a_factor_of_one_changes_nothing():
    model = random_model(LLAMA)
    assert relative_error(model, grown(model, regroup(factor=1))) == 0


# ------------------------------------------------- derived from target configs


def test_nine_query_heads_in_three_groups_become_nine_groups():
    config = SOURCES["HuggingFaceTB/SmolLM2-360M"] | {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "num_hidden_layers": 30,
    }
    target = config | {"num_attention_heads": 9, "num_key_value_heads": 9}
    recipe, _ = derive_recipe(config, target)
    assert [step.op for step in recipe.steps] == ["regroup"]
    plan = plan_of(config, recipe)
    assert plan.preserving
    assert plan.config == target


@pytest.mark.parametrize(
    ("heads", "steps"),
    [
        ((24, 2, 36, 4), ["regroup", "widen"]),  # StarCoder2-3B to 7B
        ((28, 4, 40, 8), ["regroup", "widen"]),  # Qwen2.5-7B to 14B
        ((9, 3, 32, 32), ["regroup", "widen"]),  # SmolLM2-135M to 1.7B
        ((14, 2, 40, 8), ["regroup", "widen", "widen"]),
        ((12, 2, 28, 4), ["widen", "widen"]),  # more KV heads, and more query heads of each
    ],
)
def test_published_numbers_of_heads_are_reached(heads, steps):
    query, kv, new_query, new_kv = heads
    case = CASES["llama, untied"]
    tied_sizes = {"hidden_size": 16 * query, "head_dim": 16}
    source = case.config | tied_sizes | {"num_attention_heads": query, "num_key_value_heads": kv}
    source = AutoConfig.for_model("llama", **source).to_dict()
    target = source | {"num_attention_heads": new_query, "num_key_value_heads": new_kv, "hidden_size": 16 * new_query}
    recipe, _ = derive_recipe(source, target)
    assert [step.op for step in recipe.steps if getattr(step, "axis", "") != "residual"] == steps
    plan = plan_of(source, recipe)
    assert plan.preserving
    assert {key: plan.config[key] for key in target} == target


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ((32, 8, 24, 8), "query heads: 32 in the source, 24 in the target. Growth only"),
        ((16, 16, 8, 8), "  - heads: 16 in the source, 8 in the target. Growth only"),
        ((32, 32, 64, 8), "KV heads: 32 in the source, 8 in the target. Growth only"),
        ((12, 2, 12, 3), "query heads per KV head: 6 in the source, 4 in the target. .* need 2 KV heads .* 4 in all"),
    ],
)
def test_heads_that_cannot_be_reached_are_named(heads, message):
    query, kv, new_query, new_kv = heads
    source = {**LLAMA.config, "num_attention_heads": query, "num_key_value_heads": kv, "hidden_size": 96 * 8}
    source = AutoConfig.for_model("llama", **source).to_dict()
    with pytest.raises(RecipeError, match=message):
        derive_recipe(source, source | {"num_attention_heads": new_query, "num_key_value_heads": new_kv})


def test_a_derived_regrouping_is_exact():
    case = CASES["qwen3, tied"]
    source = stated_config(case)
    queries = table(case).axes["queries"].size
    assert queries > 1
    target = source | {"num_key_value_heads": source["num_attention_heads"], "hidden_size": 48}
    recipe, _ = derive_recipe(source, target)
    assert "regroup" in {step.op for step in recipe.steps}
    model = random_model(case)
    with proof_grade():
        assert relative_error(model, growth.grow_model(model, recipe)) <= EXACT
