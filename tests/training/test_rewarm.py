"""A second warm-up scales the updates of what is new, and nothing else."""

import pytest
import torch

import growth
from growth.errors import OptimizerError
from growth.operators import chain, deepen, widen
from tests.support.models import random_phi
from tests.support.optimizers import backward, both, trained

OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-3),
    "Muon": lambda parameters: torch.optim.Muon([p for p in parameters if p.ndim == 2], lr=1e-3),
}
PADDED = chain(widen("ffn", to=96, init="pad"), widen("heads", to=6, init="pad"), deepen(to=4))
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


def test_a_resumed_warm_up_equals_one_that_never_stopped():
    models = []
    for stops in (False, True):
        plan, model = both(random_phi(), TILED)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        warmup = growth.Rewarm(optimizer, model, plan, steps=6)
        for step in range(5):
            if stops and step == 2:
                warmup.remove()
                state, done = optimizer.state_dict(), warmup.done
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
                optimizer.load_state_dict(state)
                warmup = growth.Rewarm(optimizer, model, plan, steps=6, done=done)
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


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 1.5}, {"steps": 3, "done": -1}])
def test_numbers_of_steps_that_make_no_sense_are_refused(options):
    plan, model = both(random_phi(), PADDED)
    with pytest.raises(OptimizerError, match=r"steps=.*done="):
        growth.Rewarm(torch.optim.SGD(model.parameters(), lr=1e-3), model, plan, **options)


def test_other_models_and_optimizers_are_refused():
    small = random_phi()
    plan, model = both(small, PADDED)
    with pytest.raises(OptimizerError, match=r"not the plan's.*should have shape"):
        growth.Rewarm(torch.optim.SGD(small.parameters(), lr=1e-3), small, plan, steps=2)
    with pytest.raises(OptimizerError, match="no parameter of the model"):
        growth.Rewarm(torch.optim.SGD(small.parameters(), lr=1e-3), model, plan, steps=2)
