"""Shipped recipes on the published geometries of their sources and targets: planned from headers, built on meta."""

import pytest

import growth
from growth.planning.recipe import load_recipe, shipped_recipes
from growth.training.trainer_checkpoint import meta_model
from tests.support.published import published, write_headers

RECIPES = [path.stem for path in shipped_recipes() if load_recipe(path).source in published()]
TARGETS = {
    "llama-3.2-1b-to-3b": "meta-llama/Llama-3.2-3B",
    "phi-1.5-to-phi-2": "microsoft/phi-2",
    "phi-1.5-to-phi-2-rescaled-eps": "microsoft/phi-2",
    "phi-1.5-to-phi-2-reuse": "microsoft/phi-2",
    "phi-1.5-to-phi-2-tile": "microsoft/phi-2",
    "pythia-410m-to-1.4b": "EleutherAI/pythia-1.4b",
    "qwen3-0.6b-to-1.7b": "Qwen/Qwen3-1.7B",
    "smollm2-360m-to-1.7b": "HuggingFaceTB/SmolLM2-1.7B",
}
GEOMETRY = {
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
}
OTHER = {  # what a recipe leaves different from its target, as its description says
    "llama-3.2-1b-to-3b": {"num_attention_heads", "num_key_value_heads"},
    "smollm2-360m-to-1.7b": {"num_hidden_layers"},
}


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """The plan of each recipe on the headers of its source."""
    root = tmp_path_factory.mktemp("published")

    def plan(name):
        source = load_recipe(name).source
        folder = root / source.replace("/", "--")
        return growth.plan(name, folder if folder.is_dir() else write_headers(published()[source], folder))

    return plan


def test_recipes_with_a_published_source_are_tested():
    assert len(RECIPES) >= 10
    assert TARGETS.keys() == {name for name in RECIPES if "-to-" in name and not name.endswith("-to-moe")}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_for_a_hub_model_arrive(name, plans):
    plan = plans(name)
    assert load_recipe(name).expect
    assert plan.preserving == ("lossy" not in load_recipe(name).description)


@pytest.mark.parametrize("name", RECIPES)
def test_the_stock_classes_of_source_and_result_have_as_many_parameters_as_the_plan(name, plans):
    plan = plans(name)
    source = published()[load_recipe(name).source]
    assert meta_model(source.config).num_parameters() == source.parameters
    assert meta_model(plan.config).num_parameters() == plan.parameters


@pytest.mark.parametrize("name", TARGETS)
def test_recipes_for_a_hub_model_have_the_geometry_of_their_target(name, plans):
    plan, target = plans(name), published()[TARGETS[name]]
    different = {key for key in GEOMETRY & target.config.keys() if plan.config.get(key) != target.config[key]}
    assert different == OTHER.get(name, set())
    assert different or plan.parameters == target.parameters
