"""growth recipe: from a checkpoint and a target config to the recipe that leads there."""

import json

import pytest

import growth
from growth import RecipeError
from growth.architectures import architecture
from growth.planning.derive import derive_recipe, recipe_text
from growth.planning.plan import make_plan
from growth.planning.recipe import load_recipe, parse_recipe
from tests.support.configs import PHI_1_5
from tests.support.models import EXACT, random_phi, relative_error

PHI_2 = PHI_1_5 | {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "partial_rotary_factor": 0.4,
    "resid_pdrop": 0.1,
}
GEOMETRY = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "layer_norm_eps",
)


def result_of(recipe, source):
    from growth.arrays.tensor_info import TensorInfo

    built = architecture(source)
    headers = {name: TensorInfo(name, "F16", shape) for name, shape in built.shapes().items()}
    return make_plan(built, recipe.grow(built, 0), headers)


def test_phi_2_is_reached_from_phi_1_5_as_the_shipped_recipe_does():
    recipe, remarks = derive_recipe(PHI_1_5, PHI_2)
    assert remarks == ["the result keeps resid_pdrop: 0.0; the target has 0.1"]
    again = parse_recipe(recipe_text(recipe, remarks), "derived.yaml")
    plan, shipped = result_of(again, PHI_1_5), result_of(load_recipe("phi-1.5-to-phi-2"), PHI_1_5)
    again.check(plan.config)
    assert plan.preserving
    assert plan.config == shipped.config
    assert {key: plan.config[key] for key in GEOMETRY} == {key: PHI_2[key] for key in GEOMETRY}
    assert plan.target.rotary == 32
    assert [(r.target, r.shape) for r in plan.tensors] == [(r.target, r.shape) for r in shipped.tensors]


SMALL = architecture(random_phi(num_key_value_heads=2).config.to_dict()).config
TARGETS = [
    {"hidden_size": 40, "head_dim": 8},
    {"hidden_size": 40, "head_dim": 8, "layer_norm_eps": 1e-5 * 32 / 40},
    {"num_attention_heads": 6, "head_dim": 8},
    {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8},
    {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 8},
    {"head_dim": 16, "partial_rotary_factor": 0.25, "rope_parameters": None},
    {"num_hidden_layers": 5, "intermediate_size": 49, "vocab_size": 64},
]


@pytest.mark.parametrize("change", TARGETS, ids=str)
def test_derived_recipes_preserve_and_arrive(change):
    target = {**SMALL, **change}
    recipe, _ = derive_recipe(SMALL, target)
    model = random_phi(num_key_value_heads=2)
    larger = growth.grow_model(model, recipe)
    config = larger.config.to_dict()
    for key, value in change.items():
        if key not in ("rope_parameters", "partial_rotary_factor"):
            assert config[key] == pytest.approx(value)
    assert architecture(config).rotary == architecture(target).rotary == 4
    assert relative_error(model, larger) <= 1e-6  # rotary frequencies in float32; exactness has its own suite
    assert EXACT < 1e-6


REFUSALS = [
    (
        {"partial_rotary_factor": 0.5, "hidden_size": 2560},
        "rotary channels per head: 32 in the source, 40 in the target. .*number of heads",
    ),
    ({"num_hidden_layers": 12}, "layers: 24 in the source, 12 in the target"),
    ({"intermediate_size": 4096}, "ffn: 8192 in the source, 4096 in the target"),
    ({"hidden_act": "relu"}, "hidden_act: 'gelu_new' in the source, 'relu' in the target"),
    ({"rope_theta": 1e6}, "rope_theta: 10000.0 in the source, 1000000.0 in the target"),
    ({"layer_norm_eps": 2.0}, "layer_norm_eps: 1e-05 in the source, 2.0 in the target"),
    (
        {"qk_layernorm": True},
        "qk_layernorm: False in the source, True in the target. It decides .* self_attn.k_layernorm.bias",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS, ids=lambda value: str(value)[:40])
def test_where_no_recipe_preserves_the_reason_is_said(change, message):
    with pytest.raises(RecipeError, match=message):
        derive_recipe(PHI_1_5, {**PHI_1_5, **change})


def test_the_same_geometry_needs_a_recipe_that_changes_nothing():
    recipe, _ = derive_recipe(PHI_1_5, PHI_1_5)
    assert result_of(recipe, PHI_1_5).preserving


def test_descriptions_survive_yaml():
    recipe, remarks = derive_recipe(PHI_1_5, PHI_2, name="a: b # c")
    assert json.dumps(parse_recipe(recipe_text(recipe, remarks), "r").description)
