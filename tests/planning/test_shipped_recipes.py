"""Shipped recipes on the configs they are meant for, as the hub has them: planned whole, from headers alone."""

import pytest

from growth.architectures import architecture
from growth.arrays.tensor_info import TensorInfo
from growth.planning.plan import make_plan
from growth.planning.recipe import load_recipe, shipped_recipes
from tests.support.configs import SOURCES

RECIPES = [path.stem for path in shipped_recipes() if load_recipe(path).source in SOURCES]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_for_a_hub_model_arrive(name):
    recipe = load_recipe(name)
    built = architecture(SOURCES[recipe.source])
    headers = {tensor: TensorInfo(tensor, "BF16", shape) for tensor, shape in built.shapes().items()}
    plan = make_plan(built, recipe.grow(built, 0), headers)
    recipe.check(plan.config)
    assert recipe.expect
    assert plan.preserving == ("reuse" not in name)
