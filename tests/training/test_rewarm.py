"""A second warm-up scales the updates of what is new, and nothing else."""

import pytest
import torch
from transformers.optimization import Adafactor

import growth
from growth.errors import CheckpointError, OptimizerError
from growth.operators import chain, deepen, widen
from growth.training.in_place import grow_in_place
from tests.support.models import random_phi
from tests.support.optimizers import backward, both, trained

OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1),
    "AdamW fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1, fused=True),
    "AdamW foreach": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1, foreach=True),
    "AdamW with the rate as a tensor": lambda parameters: torch.optim.AdamW(
        parameters, lr=torch.tensor(1e-3), foreach=False
    ),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=0.1),
    "Nesterov": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, nesterov=True),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-3),
    "Muon": lambda parameters: torch.optim.Muon([p for p in parameters if p.ndim == 2], lr=1e-3, weight_decay=0.1),
}
PADDED = chain(widen("ffn", to=96, init="pad"), widen("heads", to=6, init="pad"), deepen(to=4))
PARTS = (slice(0, 48), slice(48, None))  # old and fresh inputs of fc2 under PADDED
TILED = chain(widen("residual", factor=2, init="tile"), widen("ffn", to=60, init="tile"))


def entries(model, plan):
    """Which entries the source did not have, by parameter: written down for these recipes, not taken from the code."""
    old = {row.target: row.source.shape for row in plan.tensors if not row.new_layer}
    for name, parameter in model.named_parameters():
        new = torch.ones_like(parameter, dtype=torch.bool)
        if name in old:
            new[tuple(slice(0, size) for size in old[name])] = False
        yield name, new


def moved(model, optimizer, before):
    optimizer.step()
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("recipe", [PADDED, TILED], ids=["padded", "tiled"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_old_entries_move_in_full_and_new_ones_by_the_factor(name, recipe):
    """The entries of these recipes that the source had are the leading ones along every dimension."""
    plan, model = both(random_phi(), recipe)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    backward(model)
    full = moved(model, OPTIMIZERS[name](model.parameters()), before)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(before[key])
    optimizer = OPTIMIZERS[name](model.parameters())
    growth.Rewarm(optimizer, model, plan, steps=4)
    part = moved(model, optimizer, before)
    assert any(full[key][new].any() for key, new in entries(model, plan))
    for key, new in entries(model, plan):
        assert torch.equal(part[key][~new], full[key][~new]), key
        torch.testing.assert_close(part[key][new], full[key][new] / 4, atol=1e-7, rtol=1e-3, msg=key)


@pytest.mark.parametrize("name", ["AdamW fused", "AdamW with the rate as a tensor", "SGD", "Muon"])
def test_everything_moves_by_the_factor_and_schedulers_see_the_full_rate(name):
    plan, model = both(random_phi(), PADDED)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    backward(model)
    full = moved(model, OPTIMIZERS[name](model.parameters()), before)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(before[key])
    optimizer = OPTIMIZERS[name](model.parameters())
    growth.Rewarm(optimizer, model, plan, steps=4, of="all")
    part = moved(model, optimizer, before)
    for key in part:
        torch.testing.assert_close(part[key], full[key] / 4, atol=1e-7, rtol=1e-3, msg=key)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(1e-3)


def test_new_entries_take_the_steps_of_an_optimizer_with_rising_rates_and_old_ones_those_of_one_without():
    """Over several steps, with momentum and weight decay, and gradients that are the same for both."""
    for make in ("AdamW", "SGD"):
        plan, model = both(random_phi(), PADDED)
        optimizer = OPTIMIZERS[make](model.parameters())
        growth.Rewarm(optimizer, model, plan, steps=2)
        twins = [both(random_phi(), PADDED)[1] for _ in range(2)]
        others = [OPTIMIZERS[make](twin.parameters()) for twin in twins]
        for step in range(3):
            others[1].param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 2)
            for index, parameters in enumerate(zip(*(m.parameters() for m in (model, *twins)), strict=True)):
                gradient = torch.randn(parameters[0].shape, generator=torch.Generator().manual_seed(index + 99 * step))
                for parameter in parameters:
                    parameter.grad = gradient.to(parameter)
            for each in (optimizer, *others):
                each.step()
        for key, new in entries(model, plan):
            found, constant, rising = (each.get_parameter(key) for each in (model, *twins))
            assert torch.equal(found[~new], constant[~new]), key
            torch.testing.assert_close(found[new], rising[new], atol=1e-9, rtol=1e-6, msg=key)


@pytest.mark.parametrize("of", ["new", "all"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_grad_scaler_skips_does_not_count(of, fused):
    plan, model = both(random_phi(), PADDED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    warmup, scaler, done = growth.Rewarm(optimizer, model, plan, steps=9, of=of), torch.amp.GradScaler("cpu"), []
    for overflows in (False, True, True, False):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) * (float("inf") if overflows else 1.0)
        scaler.scale(torch.tensor(1.0))
        scaler.step(optimizer)
        scaler.update()
        done.append(warmup.done)
        same = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        assert all(same) if overflows else not any(same)
    assert done == [1, 1, 1, 2]
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_warm_ups_of_what_is_new_and_of_all_multiply_and_end_apart():
    plan, model = both(random_phi(), PADDED)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    growth.Rewarm(optimizer, model, plan, steps=2)
    growth.Rewarm(optimizer, model, plan, steps=3, of="all")
    fresh, found = model.model.layers[0].mlp.fc2.weight, []
    for _ in range(4):
        backward(model)
        start, gradient = fresh.detach().clone(), fresh.grad.clone()
        optimizer.step()
        sizes = ((start - fresh.detach())[:, part].norm() / gradient[:, part].norm() / 1e-2 for part in PARTS)
        found.append(tuple(map(float, sizes)))
    assert found == [pytest.approx(pair, rel=1e-3) for pair in ((1 / 3, 1 / 6), (2 / 3, 2 / 3), (1, 1), (1, 1))]


def test_a_further_growth_ends_the_warm_up():
    plan, model = both(random_phi(), PADDED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    warmup = growth.Rewarm(optimizer, model, plan, steps=9)
    for recipe in (None, widen("ffn", to=120, init="pad")):
        if recipe is not None:
            grow_in_place(model, optimizer, recipe)
        backward(model)
        optimizer.step()
    assert warmup.done == 1


def test_the_factor_rises_to_1_and_the_hooks_go():
    plan, model = both(random_phi(), PADDED)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    warmup, found = growth.Rewarm(optimizer, model, plan, steps=4), []
    fresh = model.model.layers[0].mlp.fc2.weight
    for _ in range(6):
        backward(model)
        start, gradient = fresh.detach().clone(), fresh.grad[:, 48:].clone()
        optimizer.step()
        found.append(float((start - fresh.detach())[:, 48:].norm() / gradient.norm() / 1e-2))
    assert found == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1], rel=1e-3)
    assert (warmup.done, warmup.factor) == (4, 1.0)


@pytest.mark.parametrize("of", ["new", "all"])
def test_a_resumed_warm_up_equals_one_that_never_stopped(of):
    models = []
    for stops in (False, True):
        plan, model = both(random_phi(), TILED)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        warmup = growth.Rewarm(optimizer, model, plan, steps=6, of=of)
        for step in range(5):
            if stops and step == 2:
                warmup.remove()
                state, done = optimizer.state_dict(), warmup.state_dict()
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
                optimizer.load_state_dict(state)
                warmup = growth.Rewarm(optimizer, model, plan, steps=6, of=of)
                warmup.load_state_dict(done)
            backward(model, seed=step)
            optimizer.step()
        models.append(model)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


def test_reset_leaves_moments_of_what_the_source_had_and_no_others():
    small = random_phi()
    optimizer = trained(small, OPTIMIZERS["AdamW"])
    plan, model = both(small, TILED)
    grown = growth.grow_optimizer(optimizer, small, model, plan, fresh="reset")
    kept = growth.grow_optimizer(optimizer, small, model, plan)
    for name, new in entries(model, plan):
        parameter = model.get_parameter(name)
        for key in ("exp_avg", "exp_avg_sq"):
            state = grown.state[parameter][key]
            assert not state[new].any(), (name, key)
            assert torch.equal(state[~new], kept.state[parameter][key][~new]), (name, key)


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"steps": 1.5}, {"steps": 3, "done": -1}, {"steps": 3, "of": "fresh"}]
)
def test_numbers_of_steps_that_make_no_sense_are_refused(options):
    plan, model = both(random_phi(), PADDED)
    with pytest.raises(OptimizerError, match=r"steps=.*done=|of='fresh': use one of new, all"):
        growth.Rewarm(torch.optim.SGD(model.parameters(), lr=1e-3), model, plan, **options)


def test_other_models_and_optimizers_are_refused():
    small = random_phi()
    plan, model = both(small, PADDED)
    with pytest.raises(CheckpointError, match=r"not the grown one.*should have shape"):
        growth.Rewarm(torch.optim.SGD(small.parameters(), lr=1e-3), small, plan, steps=2)
    with pytest.raises(OptimizerError, match="no parameter of the model"):
        growth.Rewarm(torch.optim.SGD(small.parameters(), lr=1e-3), model, plan, steps=2)
    without = Adafactor(model.parameters())
    with pytest.raises(OptimizerError, match=r"no learning rate \(lr=None\).*of='new'"):
        growth.Rewarm(without, model, plan, steps=2, of="all")
    warmup = growth.Rewarm(without, model, plan, steps=2)
    with pytest.raises(OptimizerError, match="state of a warm-up is"):
        warmup.load_state_dict({"steps": 2, "of": "all", "done": 1})
