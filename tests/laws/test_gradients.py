"""Training can go on: whatever is new gets a gradient, and copies part ways where the recipe lets them."""

import pytest
import torch

import growth
from growth.architectures import architecture
from growth.operators import break_symmetry, chain, deepen, widen
from tests.support.models import random_phi, tokens


def gradients(model):
    ids = tokens()
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("qk_layernorm", [False, True])
def test_every_fresh_unit_gets_a_gradient_on_one_side(qk_layernorm):
    model = random_phi(qk_layernorm=qk_layernorm)
    pads = [widen(axis, to=to, init="pad") for axis, to in (("residual", 40), ("head_dim", 10), ("ffn", 60))]
    if not qk_layernorm:
        pads.append(widen("heads", to=5, init="pad"))
    grads = gradients(growth.grow_model(model, chain(*pads)))
    layer = "model.layers.1"
    heads = 4 if qk_layernorm else 5

    def alive(name, *index):
        assert grads[name][index].abs().min() > 0, (name, index)

    alive("model.embed_tokens.weight", tokens()[:, :-1].unique(), slice(32, None))
    alive(f"{layer}.mlp.fc2.weight", slice(32, None))  # residual, silent where it is written
    alive(f"{layer}.mlp.fc2.weight", slice(None), slice(48, None))  # ffn, silent where it is read
    # head_dim: one of queries and keys, one of values and output
    q, k, v = (grads[f"{layer}.self_attn.{name}_proj.weight"].view(heads, 10, 40)[:4, 8:] for name in "qkv")
    dense = grads[f"{layer}.self_attn.dense.weight"].view(40, heads, 10)
    assert max(q.abs().min(), k.abs().min()) > 0
    assert max(v.abs().min(), dense[:, :4, 8:].abs().min()) > 0
    if not qk_layernorm:
        assert dense[:, 4].abs().min() > 0


@pytest.mark.parametrize("order", ["interleave", "stack", "prepend"])
def test_identity_layers_learn_from_the_first_step(order):
    model = random_phi()
    operator = deepen(to=6, order=order)
    larger = growth.grow_model(model, operator)
    grads = gradients(larger)
    plan = operator(growth.Growth.start(architecture(model.config.to_dict())))
    assert any(layer.silent for layer in plan.layers)
    for index, layer in enumerate(plan.layers):
        for name in ("self_attn.dense.weight", "self_attn.dense.bias", "mlp.fc2.weight", "mlp.fc2.bias"):
            parameter = larger.get_parameter(f"model.layers.{index}.{name}")
            assert bool((parameter == 0).all()) == layer.silent
            assert grads[f"model.layers.{index}.{name}"].abs().max() > 0


def asymmetry(model):
    """How far the two copies of the ffn units have moved apart, in what writes them."""
    weight = model.model.layers[1].mlp.fc1.weight.detach()
    first, second = weight.chunk(2)
    return float((first - second).norm() / first.norm())


@pytest.mark.parametrize(
    ("operator", "parts"),
    [
        (widen("ffn", factor=2, init="tile", shares="equal"), False),
        (widen("ffn", factor=2, shares="random", init="tile"), True),
        (chain(widen("ffn", factor=2, init="tile", shares="equal"), break_symmetry()), True),
    ],
    ids=["equal shares", "random shares", "broken by shares"],
)
def test_copies_part_ways_only_where_the_symmetry_is_broken(operator, parts):
    torch.manual_seed(0)
    model = growth.grow_model(random_phi(), operator)
    assert asymmetry(model) == 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(8):
        ids = tokens(seed=step)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    if parts:
        assert asymmetry(model) > 1e-5
    else:
        assert asymmetry(model) < 1e-12


@pytest.mark.parametrize(
    "operator", [deepen(to=6), widen("ffn", factor=2, init="tile", shares="equal")], ids=["deeper", "wider"]
)
def test_parameters_share_no_memory_with_one_another_or_with_the_source(operator):
    """A step on the grown model must not move a layer twice, nor the source."""
    model = random_phi()
    larger = growth.grow_model(model, operator)
    places = [parameter.data_ptr() for parameter in (*model.parameters(), *larger.parameters())]
    assert len(places) == len(set(places))
