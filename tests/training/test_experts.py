"""The training state of mixtures: experts have a tensor each in files, and share a parameter in memory."""

import json

import numpy as np
import pytest
import torch

import growth
from growth.errors import OptimizerError
from growth.operators import chain, deepen, upcycle, widen
from growth.planning.manifest import manifest
from growth.training.moments import grow_gradients
from growth.training.parameter_names import by_file, parameter_names
from growth.training.value_kinds import COPY, FRESH_UNIT, NEW_LAYER, OLD, value_kinds
from growth.verification.float64 import proof_grade
from tests.support.families import all_cases, random_model
from tests.support.optimizers import backward, both, error, trained

MIXTURES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
EXPERTS = chain(widen("experts", factor=2, init="tile"), widen("ffn", factor=2, init="tile", shares="equal"))


def first_case(family):
    return next(case for case in all_cases() if case.family == family)


def gradients(model):
    backward(model)
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    return {file: tensor.clone() for file, tensor in by_file(parameter_names(model), found).items()}


@pytest.mark.parametrize("family", MIXTURES)
def test_copies_of_an_expert_share_its_gradient(family):
    """All tokens of an expert go to each of its copies, which are averaged; so does the router's gradient."""
    model = random_model(first_case(family))
    plan, larger = both(model, EXPERTS)
    predicted, found = grow_gradients(gradients(model), plan), gradients(larger)
    for target, expected in predicted.items():
        assert error(found[target], expected) < 1e-10, target


@pytest.mark.parametrize(
    ("family", "options"),
    [("llama", {}), ("qwen3", {}), ("llama", {"experts": 8, "top_k": 4, "granularity": 2}), ("qwen2", {"shared": 0.5})],
)
def test_the_gradients_of_upcycled_experts_add_up_to_that_of_the_dense_mlp(family, options):
    """The weights of the experts that a token goes to add up to 1: each has 1 / experts of the gradient on average."""
    model = random_model(first_case(family))
    plan, larger = both(model, upcycle(**{"experts": 4, "top_k": 2, **options}))
    dense, found = gradients(model), gradients(larger)
    predicted = grow_gradients(dense, plan)
    sums, expected = {}, {}
    for tensor_map in (tensor_map for tensor_map in plan.tensors if tensor_map.target in predicted):
        key, places = (tensor_map.source.name, tensor_map.weight.name), [d.source.copy() for d in tensor_map.dimensions]
        for total, each in ((sums, found), (expected, predicted)):
            total.setdefault(key, torch.zeros_like(dense[key[0]]))[np.ix_(*places)] += each[tensor_map.target]
    assert sum("expert" in weight for _, weight in sums) >= 3 * model.config.num_hidden_layers
    for key, total in sums.items():
        assert error(total, expected[key]) < 1e-10, key
        assert "expert" in key[1] or error(total, dense[key[0]]) < 1e-10, key


def test_moments_of_a_mixture_grow_as_its_gradients():
    """In the stack that holds all experts of a layer, and wherever a new layer copies one."""
    model = random_model(first_case("mixtral"))
    optimizer = trained(model, lambda parameters: torch.optim.AdamW(parameters, lr=1e-3), steps=1)
    plan, larger = both(model, chain(EXPERTS, deepen(to=4)))
    grown = growth.grow_optimizer(optimizer, model, larger, plan)
    old = by_file(parameter_names(model), {n: optimizer.state[p]["exp_avg"] for n, p in model.named_parameters()})
    new = by_file(parameter_names(larger), {n: grown.state[p]["exp_avg"] for n, p in larger.named_parameters()})
    for target, moment in grow_gradients(old, plan).items():
        assert torch.equal(new[target], moment), target


def test_upcycled_experts_take_over_the_state_of_the_dense_mlp_and_the_router_starts():
    model = random_model(first_case("llama"))
    optimizer = trained(model, lambda parameters: torch.optim.AdamW(parameters, lr=1e-3), steps=1)
    dense = optimizer.state[model.model.layers[0].mlp.down_proj.weight]
    plan, larger = both(model, upcycle(experts=4, top_k=2))
    grown = growth.grow_optimizer(optimizer, model, larger, plan)
    stack = grown.state[larger.model.layers[0].mlp.experts.down_proj]
    for expert in range(4):
        assert torch.equal(stack["exp_avg"][expert], dense["exp_avg"] / 4)
        assert torch.allclose(stack["exp_avg_sq"][expert], dense["exp_avg_sq"] / (4 * 2), rtol=1e-12, atol=0)
    assert stack["step"] == dense["step"]
    (group,) = grown.param_groups
    router = larger.model.layers[0].mlp.gate.weight
    assert [id(p) for p in group["params"]] == [id(p) for p in larger.parameters()]
    assert router not in grown.state
    backward(larger)
    before = router.detach().clone()
    grown.step()
    assert grown.state[router]["step"] == 1
    assert grown.state[larger.model.layers[0].mlp.experts.down_proj]["step"] == dense["step"] + 1
    assert not torch.equal(router, before)


def test_an_upcycled_expert_has_the_mean_square_that_is_stated_or_less_than_its_share_of_it():
    """Tokens that agree have 1 / experts² of the dense mean square, and independent ones 1 / (experts top_k)."""
    model = random_model(first_case("llama"))
    squares = {"dense": 0.0, "experts": 0.0}
    for seed in range(3):
        with proof_grade():
            larger = growth.grow_model(model, upcycle(experts=4, top_k=2), seed=seed)
        for each in (model, larger):
            backward(each, seed=seed)
        squares["dense"] += float(model.model.layers[1].mlp.down_proj.weight.grad.square().mean())
        squares["experts"] += float(larger.model.layers[1].mlp.experts.down_proj.grad.square().mean())
    assert 1 / 4**2 < squares["experts"] / squares["dense"] < 1.5 / (4 * 2)


def test_what_becomes_one_parameter_must_be_in_one_group():
    model = random_model(first_case("llama"))
    optimizer = torch.optim.AdamW(
        [{"params": [p for n, p in model.named_parameters() if ("up_proj" in n) is up]} for up in (False, True)]
    )
    plan, larger = both(model, upcycle(experts=4, top_k=2))
    with pytest.raises(OptimizerError, match=r"gate_up_proj' of the grown model is made from .*in different groups"):
        growth.grow_optimizer(optimizer, model, larger, plan)


def test_muon_cannot_train_a_stack_of_experts():
    model = random_model(first_case("llama"))
    optimizer = torch.optim.Muon([p for p in model.parameters() if p.ndim == 2])
    plan, larger = both(model, upcycle(experts=4, top_k=2))
    with pytest.raises(OptimizerError, match=r"Muon cannot train .*gate_up_proj.*2D parameters.*AdamW"):
        growth.grow_optimizer(optimizer, model, larger, plan)


def test_kinds_of_the_values_of_a_mixture():
    model = random_model(first_case("mixtral"))
    plan, larger = both(model, chain(widen("experts", factor=2, init="tile"), widen("ffn", to=60), deepen(to=4)))
    kinds = {name: values for name, _, values in value_kinds(larger, plan)}
    stack = kinds["model.layers.0.mlp.experts.gate_up_proj"]
    assert (stack[:4, :48] == OLD).all()
    assert (stack[:4, 48:60] == FRESH_UNIT).all()
    assert (stack[4:, :48] == COPY).all()
    assert (kinds["model.layers.0.mlp.gate.weight"][:4] == OLD).all()
    assert (kinds["model.layers.0.mlp.gate.weight"][4:] == COPY).all()
    new = [index for index, layer in enumerate(plan.growth.layers) if layer.silent]
    assert all((kinds[f"model.layers.{index}.mlp.experts.down_proj"] == NEW_LAYER).all() for index in new)
    model = random_model(first_case("llama"))
    plan, larger = both(model, upcycle(experts=4, top_k=2))
    kinds = {name: values for name, _, values in value_kinds(larger, plan)}
    assert [int(values.max()) for values in kinds["model.layers.1.mlp.experts.down_proj"]] == [OLD, COPY, COPY, COPY]
    assert (kinds["model.layers.1.mlp.gate.weight"] == FRESH_UNIT).all()
    plan, larger = both(model, upcycle(experts=4, top_k=2, reinit=0.5))
    kinds = {name: values for name, _, values in value_kinds(larger, plan)}
    told = json.loads(json.dumps(manifest(plan, {}, {})))  # growth.json
    assert all(torch.equal(values, kinds[name]) for name, _, values in value_kinds(larger, told))
    first = kinds["model.layers.1.mlp.experts.down_proj"][0]
    assert [(first == kind).sum().item() for kind in (OLD, FRESH_UNIT)] == [first.numel() // 2] * 2  # of its units


def test_frozen_experts_keep_every_bit_and_new_ones_move():
    model = random_model(first_case("mixtral"))
    plan, larger = both(model, widen("experts", factor=2, init="tile"))
    groups = growth.param_groups(larger, plan, lr=1e-3, weight_decay=0.1, old=0)
    stack = larger.model.layers[0].mlp.experts.down_proj
    before = stack.detach().clone()
    backward(larger)
    torch.optim.AdamW(groups).step()
    assert torch.equal(stack[:4], before[:4])
    assert not torch.equal(stack[4:], before[4:])
