"""The rates of a stage scale updates by kind of value, from the step after its growth until the next growth."""

import pytest
import torch

import growth
from growth.operators import widen
from growth.training.in_place import grow_in_place
from growth.training.schedule import SecondWarmup, Stage, StageRates
from growth.training.stage_rates import set_rates
from tests.support.models import random_phi
from tests.support.optimizers import backward, both

WIDER = widen("ffn", to=96, init="pad")
OLD, FRESH = slice(0, 48), slice(48, None)  # inputs of fc2


def begun(done=0, optimizer=None, **stated):
    """The plan, the grown model and its optimizer, whose updates are scaled."""
    plan, model = both(random_phi(), WIDER)
    optimizer = (optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=1e-2)))(model.parameters())
    set_rates(Stage(at=growth.Moment(steps=1), recipe=WIDER, **stated), optimizer, model, plan, done)
    return model, optimizer


def factors(model, optimizer, steps):
    """The factors on the updates of old and of fresh inputs, step by step."""
    weight, found = model.model.layers[0].mlp.fc2.weight, []
    for _ in range(steps):
        backward(model)
        start, gradient = weight.detach().clone(), weight.grad.clone()
        optimizer.step()
        sizes = ((start - weight.detach())[:, part].norm() / gradient[:, part].norm() / 1e-2 for part in (OLD, FRESH))
        found.append(pytest.approx(tuple(map(float, sizes)), rel=1e-3, abs=1e-6))
    return found


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"rates": StageRates(old=0.5, fresh=2)}, [(0.5, 2)] * 3),
        ({"rewarm": SecondWarmup(steps=2)}, [(1, 0.5), (1, 1), (1, 1)]),
        ({"rewarm": SecondWarmup(steps=2, start=1), "rates": StageRates(fresh=1.5)}, [(1, 1.25), (1, 1.5), (1, 1.5)]),
        ({"rewarm": SecondWarmup(steps=2), "rates": StageRates(old=0, fresh=2)}, [(0, 1), (0, 2), (0, 2)]),
        ({"rewarm": SecondWarmup(steps=2, of="all"), "rates": StageRates(fresh=2)}, [(0.5, 1), (1, 2), (1, 2)]),
        ({"rewarm": SecondWarmup(steps=2, of="all", start=0.5)}, [(0.75, 0.75), (1, 1), (1, 1)]),
        ({}, [(1, 1)] * 3),
    ],
)
def test_factors_change_from_the_start_of_the_warm_up_to_the_rates(stated, expected):
    assert factors(*begun(**stated), 3) == expected
    assert factors(*begun(done=1, **stated), 2) == expected[1:]


def test_a_rate_of_0_keeps_every_bit():
    model, optimizer = begun(rates=StageRates(old=0))
    weight = model.model.layers[0].mlp.fc2.weight
    with torch.no_grad():
        weight[:, OLD] = -0.0
    weight.grad = -torch.ones_like(weight)
    optimizer.step()
    assert weight[:, OLD].signbit().all()


def test_a_step_that_a_grad_scaler_skips_is_none_of_the_stage():
    model, optimizer = begun(
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-2, fused=True), rewarm=SecondWarmup(steps=2)
    )
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.tensor(1.0))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    scaler.step(optimizer)
    assert all(map(torch.equal, before, model.parameters()))
    optimizer.found_inf = None
    assert factors(model, optimizer, 2) == [(1, 0.5), (1, 1)]


@pytest.mark.parametrize("stated", [{"rates": StageRates(old=0.5)}, {"rewarm": SecondWarmup(steps=9)}])
def test_a_further_growth_ends_the_rates_of_a_stage(stated):
    model, optimizer = begun(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-2), **stated)
    assert factors(model, optimizer, 1) != [(1, 1)]
    grow_in_place(model, optimizer, widen("ffn", to=120, init="pad"))
    assert factors(model, optimizer, 2) == [(1, 1)] * 2
