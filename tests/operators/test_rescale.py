"""rescale: another eps of the norms, the function kept by the scale of the residual stream."""

import pytest
import torch

import growth
from growth import RecipeError
from growth.operators import chain, deepen, rescale, widen
from growth.planning.derive import derive_recipe
from growth.planning.recipe import parse_recipe
from growth.planning.stored_error import better_init, stored_errors
from growth.training.parameter_names import parameters_by_file_name
from tests.support.configs import PHI_1_5
from tests.support.families import all_cases, random_model
from tests.support.laws import exact_or_refused
from tests.support.models import EXACT, grown, relative_error
from tests.support.optimizers import backward, both

NO_EPS = "has no other eps"
CASES = {case.name: case for case in all_cases()}

test_a_larger_eps_keeps_the_logits = exact_or_refused(rescale(norm_eps=3e-4), refused=NO_EPS)
test_a_smaller_eps_keeps_the_logits = exact_or_refused(rescale(norm_eps=1e-9), refused=NO_EPS)


def eps(model):
    return model.config.rms_norm_eps


@pytest.mark.parametrize("norm_eps", ["stock", "rescale"])
@pytest.mark.parametrize("first", [True, False])
def test_the_eps_is_the_stated_one_before_and_after_a_wider_stream(norm_eps, first):
    model = random_model(CASES["gemma, tied"])
    steps = [widen("residual", to=40, norm_eps=norm_eps), deepen(to=4)]
    larger = grown(model, chain(rescale(norm_eps=1e-3), *steps) if first else chain(*steps, rescale(norm_eps=1e-3)))
    assert relative_error(model, larger) <= EXACT
    factor = model.config.hidden_size / 40 if first and norm_eps == "rescale" else 1
    assert eps(larger) == pytest.approx(1e-3 * factor, rel=1e-12)


def test_the_own_eps_changes_nothing():
    model = random_model(CASES["gemma, tied"])
    assert growth.plan(rescale(norm_eps=eps(model)), model).growth.expansions["residual"].is_identity


def test_there_and_back_changes_nothing():
    model = random_model(CASES["gemma, tied"])
    plan = growth.plan(chain(rescale(norm_eps=1e-3), rescale(norm_eps=eps(model))), model)
    assert plan.growth.expansions["residual"].write == pytest.approx(1, rel=1e-12)


def test_no_width_is_proposed_that_would_leave_the_eps():
    plan = growth.plan(chain(widen("residual", to=40), rescale(norm_eps=1e-3)), random_model(CASES["gemma, tied"]))
    assert better_init(plan, "residual") == ""
    assert stored_errors(plan)["residual"] > 0


@pytest.mark.parametrize("value", [0.0, -1e-5, 1.0, 2.0])
def test_an_eps_outside_of_0_and_1_is_refused(value):
    with pytest.raises(RecipeError, match="norm_eps"):
        grown(random_model(CASES["gemma, tied"]), rescale(norm_eps=value))
    with pytest.raises(RecipeError, match="norm_eps"):
        parse_recipe(f"description: d\nsteps: [{{op: rescale, norm_eps: {value}}}]", "recipe.yaml")


def test_a_recipe_states_it_with_or_without_a_point():
    for text in ("1e-6", "1.0e-06", "0.000001"):
        recipe = parse_recipe(f"description: d\nsteps: [{{op: rescale, norm_eps: {text}}}]", "recipe.yaml")
        assert recipe.steps[0].norm_eps == 1e-6


def test_it_is_derived_for_a_target_of_another_eps():
    recipe, remarks = derive_recipe(PHI_1_5, PHI_1_5 | {"layer_norm_eps": 1e-3})
    assert ([step.op for step in recipe.steps], remarks) == (["rescale"], [])


@pytest.mark.parametrize("name", ["gemma, tied", "gpt2, tied", "olmo2, untied"])
def test_the_momentum_of_an_optimizer_is_that_of_the_gradients_afterwards(name):
    model = random_model(CASES[name]).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    backward(model, seed=7)
    optimizer.step()
    plan, larger = both(model, rescale(norm_eps=1e-3))
    state = growth.grow_optimizer(optimizer, model, larger, plan).state
    larger.zero_grad()
    backward(larger, seed=7)
    for parameter in parameters_by_file_name(larger).values():
        momentum = state[parameter]["momentum_buffer"]
        assert (momentum - parameter.grad).norm() <= EXACT * parameter.grad.norm()
