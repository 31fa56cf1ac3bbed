"""New layers of every family: exact if their branches end in zero, whether they are copies or random; from no layers too."""

from dataclasses import replace
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoModelForCausalLM

import growth
from growth import GrowthError, RecipeError
from growth.architectures import architecture
from growth.arrays.torch_interop import as_array
from growth.engine import reference
from growth.operators import chain, deepen, upcycle, widen
from growth.operators.base import Growth
from growth.operators.deepen import LayerInit, Order
from growth.planning.derive import derive_recipe
from growth.planning.prepare import growth_of
from tests.support.families import (
    all_cases,
    kind_of_norms,
    kind_of_weights,
    random_model,
    stated_config,
    steps_of,
    typical,
    with_depth,
)
from tests.support.models import EXACT, grown, random_phi, relative_error, save, tokens
from tests.support.selection import one_of_each

CASES = all_cases()
DRAWN = [case for case in CASES if "fresh layers" not in case.refused]
FIRST = {case.family: case for case in reversed(DRAWN)}.values()
BESIDE = {"residual", "residual, pad", "heads, pad", "first layers"}
USUAL = next(case for case in CASES if case.family == "llama")
IDENTITIES = [case for case in DRAWN if "layers" not in case.refused]


def by_family(cases):
    return one_of_each([(case,) for case in cases], typical, ids=lambda case: case.name)


# ------------------------------------------------- exact


@pytest.mark.parametrize("case", [case for case in CASES if "fresh layers" in case.refused], ids=lambda case: case.name)
@pytest.mark.parametrize("init", ["fresh", "random"])
def test_layers_with_constants_of_the_class_are_not_drawn(case, init):
    for depth in (0, 2):
        with pytest.raises(GrowthError, match=case.refused["fresh layers"]):
            growth_of(deepen(to=4, init=init), stated_config(with_depth(case, depth)))


@pytest.mark.parametrize("case", by_family(DRAWN))
def test_random_layers_that_end_in_zero_are_exact(case):
    model = random_model(case)
    deeper = deepen(to=model.config.get_text_config().num_hidden_layers + 2, init="fresh")
    if "layers" in case.refused:
        with pytest.raises(GrowthError, match=case.refused["layers"]):
            grown(model, deeper)
    else:
        assert relative_error(model, grown(model, deeper)) <= EXACT
    lossy = deepen(to=model.config.get_text_config().num_hidden_layers + 2, init="random")
    if "any layers" in case.refused:
        with pytest.raises(GrowthError, match=case.refused["any layers"]):
            grown(model, lossy)
        return
    assert relative_error(model, grown(model, lossy)) > 1e-5


@pytest.mark.parametrize("case", by_family(DRAWN))
def test_models_without_layers_get_their_first_ones(case):
    try:
        model = random_model(with_depth(case, 0))
        relative_error(model, model)
    except (ZeroDivisionError, StrictDataclassFieldValidationError, IndexError):  # RecurrentGemma, ModernBERT, X-MOD
        pytest.skip("the class has no models without layers")
    if "first layers" in case.refused:
        with pytest.raises(GrowthError, match=case.refused["first layers"]):
            grown(model, deepen(to=4, init="fresh"))
        return
    assert relative_error(model, grown(model, deepen(to=4, init="random"))) > 1e-5
    if "layers" in case.refused and "indexer_types" not in case.config:  # whose first layers share no indexer
        with pytest.raises(GrowthError, match=case.refused["layers"]):
            grown(model, deepen(to=4, init="fresh"))
        return
    larger = grown(model, deepen(to=4, init="fresh"))
    assert relative_error(model, larger) <= EXACT
    expected = AutoConfig.for_model(case.family, **with_depth(case, 4).config)
    for key in ("num_hidden_layers", "layer_types", "no_rope_layers"):
        assert getattr(larger.config, key, None) == getattr(expected, key, None)


@pytest.mark.parametrize(
    ("case", "order", "init"),
    one_of_each(
        product([case for case in FIRST if "layers" not in case.refused], get_args(Order), get_args(LayerInit)),
        lambda case, order, init: typical(case),
        lambda case, order, init: (order, init),
        ids=lambda case, order, init: f"{case.name}-{order}-{init}",
    ),
)
def test_one_layer_is_enough(case, order, init):
    if "one layer" in case.refused:  # also by the stock class
        with pytest.raises((ZeroDivisionError, GrowthError), match=case.refused["one layer"]):
            grown(random_model(with_depth(case, 1)), deepen(to=3, order=order, init=init))
        return
    model = random_model(with_depth(case, 1))
    larger = grown(model, deepen(to=3, order=order, init=init))
    assert larger.config.get_text_config().num_hidden_layers == 3
    assert (relative_error(model, larger) <= EXACT) == (init in ("identity", "fresh"))


@pytest.mark.parametrize(
    "case",
    one_of_each(
        [(case,) for case in IDENTITIES if not BESIDE & case.refused.keys()],
        kind_of_norms,
        kind_of_weights,
        ids=lambda case: case.name,
    ),
)
def test_beside_width(case):
    """In any order, also where the source has no layers of which anything could grow wider."""
    wider = chain(*(widen(name, to=to, init="pad") for name, to in steps_of(case, "residual")))
    for depth in (0, 2):
        model = random_model(with_depth(case, depth))
        for operator in (chain(wider, deepen(to=3, init="fresh")), chain(deepen(to=3, init="fresh"), wider)):
            assert relative_error(model, grown(model, operator)) <= EXACT


def test_first_layers_of_a_mixture():
    case = next(case for case in CASES if case.family == "qwen3")
    model = random_model(with_depth(case, 0))
    larger = grown(model, chain(deepen(to=2, init="fresh"), upcycle(experts=4, top_k=2)))
    assert larger.config.model_type == "qwen3_moe"
    assert relative_error(model, larger) <= EXACT


def test_growths_compose():
    """From nothing to two layers and from there to four, at once or one after the other."""
    case = with_depth(next(case for case in CASES if case.family == "smollm3"), 0)
    source = architecture(stated_config(case))
    first, second = deepen(to=2, init="fresh"), deepen(to=4, order="stack", init="random")
    at_once = chain(first, second)(Growth.start(source))
    between = first(Growth.start(source))
    parts = between.then(second(Growth.start(architecture(between.config))))
    assert (parts.layers, parts.blank, parts.config) == (at_once.layers, at_once.blank, at_once.config)


# ------------------------------------------------- trained


def trained_step(model):
    model.zero_grad()
    ids = tokens(model.config.vocab_size)
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = {name: parameter.grad.abs().amax() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= parameter.grad
    return gradients


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_moe", "stablelm"])
def test_everything_new_is_trained(family, depth):
    """Branch ends have a gradient at the first step, all else in their layers from the second."""
    case = with_depth(next(case for case in CASES if case.family == family), depth)
    model = grown(random_model(case), deepen(to=3, init="fresh"))
    table = architecture(model.config.to_dict())
    ends = {weight.name.split("{layer}.")[-1].replace("{expert}.", "") for weight in table.weights if weight.branch_end}
    layers = [name for name, _ in model.named_parameters() if any(f".{new}." in name for new in range(depth, 3))]
    first, second = trained_step(model), trained_step(model)
    idle = "k_proj.bias"  # softmax does not see what all keys share
    for name in layers:
        is_end = any(name.endswith((end.removesuffix(".weight"), end)) for end in ends)
        assert not is_end or first[name] > 0, name
        assert second[name] > 0 or name.endswith(idle), name


def test_new_layers_differ_from_one_another():
    model = grown(random_phi(), deepen(to=9, init="fresh"))
    interiors = [layer.mlp.fc1.weight for layer in model.model.layers]
    assert all(not torch.equal(a, b) for i, a in enumerate(interiors) for b in interiors[:i])


@pytest.mark.parametrize("depth", [0, 2])
def test_optimizers_train_new_layers(depth):
    """Every parameter is in a group: matrices in that of matrices, vectors in that of vectors."""
    model = random_model(with_depth(next(case for case in CASES if case.family == "llama"), depth))
    groups = [[p for p in model.parameters() if (p.ndim > 1) == matrices] for matrices in (True, False)]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups])
    trained_step(model)
    optimizer.step()
    plan = growth.plan(deepen(to=4, init="fresh"), model)
    larger = growth.grow_model(model, plan)
    for fresh in ("mean", "zero", "reset"):
        big = growth.grow_optimizer(optimizer, model, larger, plan, fresh=fresh)
        assert [{p.ndim for p in group["params"]} for group in big.param_groups] == [{2}, {1}]
        assert sum(len(group["params"]) for group in big.param_groups) == len(list(larger.parameters()))
    new = [
        p
        for group in growth.param_groups(larger, plan, lr=1, new_layers=2)
        if group["lr"] == 2
        for p in group["params"]
    ]
    assert len(new) == (4 - depth) * 9


def test_recipes_are_derived_from_models_without_layers():
    config = stated_config(with_depth(next(case for case in CASES if case.family == "gemma2"), 0))
    deeper = stated_config(with_depth(next(case for case in CASES if case.family == "gemma2"), 4))
    recipe, _ = derive_recipe(config, deeper)
    (step,) = recipe.to_dict()["steps"]
    assert (step["to"], step["init"]) == (4, "fresh")


# ------------------------------------------------- values


def test_values_are_those_of_the_stock_class():
    config = {"initializer_range": 0.07, "hidden_size": 64, "intermediate_size": 512}
    new = grown(random_phi(**config), chain(widen("ffn", factor=4), deepen(to=4, order="append", init="fresh"))).model
    layer, copied = new.layers[3], new.layers[2]
    assert float(layer.mlp.fc1.weight.detach().std()) == pytest.approx(0.07, rel=0.02)
    assert torch.equal(layer.input_layernorm.weight, torch.ones(64, dtype=torch.float64))
    assert not layer.mlp.fc1.bias.any()
    assert not layer.mlp.fc2.weight.any()
    assert copied.mlp.fc1.weight[:512].std() > 0.2  # as the source's


@pytest.mark.parametrize(("std", "inner", "outer"), [("stock", 0.02, 0.02), ("mup", 0.02, 0.01), (0.3, 0.3, 0.3)])
def test_scales(std, inner, outer):
    """With muP, the deviation falls with the root of the fan-in: here that of fc2 alone has grown, by 4."""
    source = random_phi(hidden_size=64, intermediate_size=512)
    steps = chain(widen("ffn", factor=4), deepen(to=4, order="append", init="random", init_std=std))
    new = grown(source, steps).model.layers[3].mlp
    assert float(new.fc1.weight.detach().std()) == pytest.approx(inner, rel=0.02)
    assert float(new.fc2.weight.detach().std()) == pytest.approx(outer, rel=0.02)


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_same_bytes_by_every_route(family, depth, tmp_path):
    case = with_depth(next(case for case in CASES if case.family == family), depth)
    model = random_model(case, torch.float32)
    source = save(model, tmp_path / "source")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("description: deeper\nsteps:\n  - {op: deepen, to: 5, init: fresh}\n")
    plan = growth.grow(recipe, source, tmp_path / "grown", seed=3)
    assert growth.verify_weights(source, tmp_path / "grown", recipe, seed=3).passed
    assert growth.verify(source, tmp_path / "grown", recipe=recipe, seed=3, tokens=32).status == "PASSED"
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "grown").state_dict()
    in_memory = growth.grow_model(model, recipe, seed=3).state_dict()
    old = {name: as_array(value) for name, value in model.state_dict().items()}
    for tensor_map in plan.tensors:
        name = tensor_map.target
        assert torch.equal(stored[name], in_memory[name])
        expected = reference.grow(tensor_map, old.get(tensor_map.source.name, np.zeros(0, np.float32)), 3)
        np.testing.assert_array_equal(as_array(stored[name]), expected)
    other = growth.grow_model(model, recipe, seed=4).state_dict()
    assert any(not torch.equal(other[name], value) for name, value in in_memory.items())


# ------------------------------------------------- places


def sources(depth, **arguments):
    config = {**stated_config(USUAL), "num_hidden_layers": depth}
    return [layer.source for layer in deepen(order="middle", **arguments)(Growth.start(architecture(config))).layers]


def test_middle_stacking_in_blocks():
    """MIDAS: the middle one of the blocks is repeated, the earlier of two; one more in each stage."""
    assert sources(6, to=8, block=2) == [0, 1, 2, 3, 2, 3, 4, 5]
    assert sources(4, to=6, block=2) == [0, 1, 0, 1, 2, 3]
    assert sources(6, to=10, block=2, init="copy") == [0, 1, 2, 3, 2, 3, 2, 3, 4, 5]
    assert sources(4, to=6) == [0, 1, 2, 1, 2, 3]  # the two layers in the middle


def test_stages_of_blocks_compose():
    stages = sources(6, to=8, block=2)
    assert sources(6, to=10, block=2) == [stages[layer] for layer in sources(8, to=10, block=2)]


# ------------------------------------------------- refused

EMPTY = with_depth(USUAL, 0)
REFUSED = [
    (deepen(to=4), "has no layers, and init: identity copies them. Use init: fresh or init: random"),
    (deepen(to=4, init="copy"), "has no layers, and init: copy copies them"),
    (deepen(factor=2, init="fresh"), "2 times no layers are none. State the number of layers with 'to'"),
    (deepen(order=[0, 0], init="fresh"), r"lists layers \[0, 0\] of a source that has none. Use to: 2"),
]


@pytest.mark.parametrize(("operator", "why"), REFUSED)
def test_what_models_without_layers_cannot_do(operator, why):
    with pytest.raises(RecipeError, match=why):
        growth_of(operator, stated_config(EMPTY))


def test_blocks_that_do_not_fit():
    with pytest.raises(RecipeError, match=r"cannot grow 6 layers to 9 in blocks of 2.* Use block: 3"):
        sources(6, to=9, block=2)
    with pytest.raises(RecipeError, match="block: 2 belongs to order: middle"):
        deepen(to=8, block=2)(Growth.start(architecture({**stated_config(USUAL), "num_hidden_layers": 6})))


def test_layers_that_recur_are_copied_by_whole_periods():
    recurring = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 4, "expert_layer_offset": 2}
    case = next(case for case in CASES if case.family == "jamba" and "layers" in case.refused)
    model = random_model(replace(case, config={**case.config, "num_hidden_layers": 4, **recurring}))
    assert relative_error(model, grown(model, deepen(factor=2, order="stack"))) <= EXACT
    for order in ("interleave", [0, 1, 2, 3, 3]):
        with pytest.raises(RecipeError, match=r"lacks what .* could be made from"):
            growth.plan(deepen(to=8 if order == "interleave" else 5, order=order), model)
