"""The first step after a growth is the growth of the step that the source would have taken, in every family.

With learning rates times `step_scales`, and weight decay divided by them, where docs/training.md says that gradients map
exactly: a wider MLP and new identity layers. Tied and untied models take turns, and so do the ways to run Adam.
"""

import pytest
import torch

import growth
from growth.operators import chain, deepen, widen
from growth.training.moments import step_scales
from growth.training.parameter_names import parameter_names
from growth.verification.float64 import proof_grade
from tests.support.families import random_model, table, tied_and_untied, twice, typical
from tests.support.optimizers import backward, both, error, trained
from tests.support.selection import one_of_each

MODELS = tied_and_untied()

EXPERTS = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
OPTIONS = {
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "fused AdamW": (torch.optim.AdamW, {"weight_decay": 0.1, "fused": True}),
    "foreach AdamW": (torch.optim.AdamW, {"weight_decay": 0.1, "foreach": True, "amsgrad": True}),
    "Adam": (torch.optim.Adam, {"weight_decay": 0.0}),
}
FAMILIES = sorted({family for family, _ in MODELS})


def chosen():
    """One model of each family, tied and untied in turn, and an optimizer."""
    for number, family in enumerate(FAMILIES):
        keys = [key for key in sorted(MODELS) if key[0] == family]
        yield keys[number % len(keys)], tuple(OPTIONS)[number // 2 % len(OPTIONS)]


@pytest.mark.parametrize(
    ("key", "optimizer"),
    one_of_each(chosen(), lambda key, _: typical(MODELS[key]), lambda _, optimizer: optimizer, ids="{}-{}".format),
)
def test_one_step_after_growth_is_the_growth_of_one_step_before(key, optimizer):
    kind, options = OPTIONS[optimizer]
    options = {"lr": 1e-3, "eps": 1e-30, **options}
    model = random_model(MODELS[key])
    made = trained(model, lambda parameters: kind(parameters, **options), steps=2)
    deeper = [] if table(MODELS[key]).no_identity else [deepen(to=4)]
    operator = chain(twice(MODELS[key]), *deeper)
    operator = chain(operator, widen("experts", factor=2, init="tile")) if key[0] in EXPERTS else operator
    plan, larger = both(model, operator)
    grown = growth.grow_optimizer(made, model, larger, plan)
    by_tensor = step_scales(plan)
    names, parameters = parameter_names(larger, by_tensor), dict(larger.named_parameters())
    scales = {name: by_tensor[next(iter(stored.files))] for name, stored in names.items()}
    for name, stored in names.items():  # what is one parameter has one scale
        assert all(by_tensor[file] == scales[name] for file in stored.files)
    scales = {name: scale for name, scale in scales.items() if scale is not None and grown.state.get(parameters[name])}
    reached = len(made.state) / len(list(model.parameters()))  # by text and images, as what takes audio is not
    old = sum(not tensor_map.new_layer for tensor_map in plan.tensors)
    assert len(scales) > 0.6 * reached * old * len(names) / len(by_tensor)
    decay = options.pop("weight_decay")
    scaled = kind(
        [{"params": [parameters[n]], "lr": 1e-3 * b, "weight_decay": decay / b} for n, b in scales.items()], **options
    )
    scaled.state.update({parameters[name]: grown.state[parameters[name]] for name in scales})
    before = {name: parameters[name].detach().clone() for name in scales}
    for each in (model, larger):
        backward(each, seed=7)
    made.step()
    scaled.step()
    with proof_grade():
        expected = dict(growth.grow_model(model, plan).named_parameters())
    compared = 0
    for name in scales:
        moved = expected[name].detach() - before[name]
        # without a gradient but rounding noise (a key's bias without RoPE), Adam without eps steps along the noise
        live = (moved.abs() > 1e-3 * moved.abs().max()) & (grown.state[parameters[name]]["exp_avg_sq"].sqrt() > 1e-10)
        assert error(parameters[name].detach()[live], expected[name].detach()[live]) < 1e-9, name
        compared += bool(live.any())
    assert compared > 0.9 * len(scales)
