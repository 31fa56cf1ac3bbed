"""A grown vision-language model computes the same on an image, and what is in front of the projector is copied."""

from itertools import product

import pytest
import torch

import growth
from growth.architectures import FAMILIES
from growth.architectures.wrapper import Wrapper
from growth.operators import break_symmetry, chain, deepen, widen
from growth.verification.float64 import proof_grade
from growth.verification.images import IMAGES, image_inputs
from tests.support.families import SIZES, all_cases, random_model, steps_of
from tests.support.models import EXACT, grown, save, tokens
from tests.support.selection import one_of_each

CASES = [case for case in all_cases() if isinstance(FAMILIES[case.family], Wrapper)]
ORDERS = ("interleave", "stack", "append", "prepend", "middle")


@torch.no_grad()
def seen(model, inputs):
    """The logits, in proof-grade float64."""
    with proof_grade():
        return model(**inputs).logits


def inputs_of(model):
    with proof_grade():
        return image_inputs(model, tokens(40))


def error(source, larger):
    inputs = inputs_of(source)
    expected = seen(source, inputs)
    found = seen(larger, inputs)[..., : expected.shape[-1]]
    return float((found - expected).norm() / expected.norm())


def test_every_such_family_is_shown_an_image():
    assert {case.family for case in CASES} == IMAGES.keys()


def input_names(case):
    """The names of what the image is given as."""
    return IMAGES[case.family].__name__


def of_each(*kinds):
    return one_of_each([(case,) for case in CASES], *kinds, ids=lambda case: case.name)


@pytest.mark.parametrize("case", of_each(input_names))
def test_the_logits_depend_on_the_image(case):
    model = random_model(case)
    inputs = inputs_of(model)
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}
    assert (seen(model, inputs) - seen(model, other)).norm() > 1e-3 * seen(model, inputs).norm()


@pytest.mark.parametrize(
    ("case", "axis", "init"),
    one_of_each(
        product(CASES, SIZES, ("tile", "pad")),
        lambda case, axis, init: input_names(case),
        lambda case, axis, init: (axis, init),
        ids=lambda case, axis, init: f"{case.name}-{axis}-{init}",
    ),
)
def test_width(case, axis, init):
    if f"{axis}, {init}" in case.refused:
        pytest.skip("refused in tests/laws/test_families.py")
    model = random_model(case)
    apart = [break_symmetry()] if init == "tile" and axis in ("residual", "ffn") else []
    steps = [widen(name, to=to, init="pad" if name == "head_dim" else init) for name, to in steps_of(case, axis)]
    operator = chain(*steps, *apart)
    assert error(model, grown(model, operator)) <= EXACT


@pytest.mark.parametrize(
    ("case", "order"),
    one_of_each(
        product(CASES, ORDERS),
        lambda case, order: input_names(case),
        lambda case, order: order,
        ids=lambda case, order: f"{case.name}-{order}",
    ),
)
def test_depth(case, order):
    model = random_model(case)
    assert error(model, grown(model, deepen(to=5, order=order))) <= EXACT


def test_layers_in_front_of_which_image_features_are_added_stay_in_front():
    case = next(case for case in CASES if case.family == "qwen3_vl")
    model = random_model(case)
    with pytest.raises(growth.RecipeError, match=r"the first 2 layers .* must stay the first ones"):
        grown(model, deepen(order=[0, 0, 1, 2]))
    assert error(model, grown(model, deepen(order=[0, 1, 1, 2, 2]))) <= EXACT


def everything(case):
    steps = [step for axis in ("residual", "ffn") for step in steps_of(case, axis)]
    return chain(*(widen(name, to=to, init="tile") for name, to in dict(steps).items()), deepen(to=5))


@pytest.mark.parametrize("case", of_each(lambda case: case.family in ("gemma3", "qwen2_vl")))
def test_by_file(case, tmp_path):
    """The same from files, whose plan counts what passes through; `verify` runs on an image and compares every bit."""
    model = random_model(case)
    source, out = save(model, tmp_path / "source"), tmp_path / "out"
    plan = growth.grow(everything(case), source, out)
    tower = next(iter(plan.passing))
    assert tower.split(".")[-1] in (
        "vision_tower",
        "vision_model",
        "visual",
        "connector",
        "multi_modal_projector",
        "vision_embed_tokens",
    )
    assert sum(plan.passing.values()) + sum(not t.weight.passes for t in plan.tensors) == len(plan.tensors)
    assert all(t.is_copy for t in plan.tensors if t.weight.passes)
    with proof_grade():
        larger, info = type(model).from_pretrained(
            out,
            dtype="auto",
            attn_implementation="eager",
            experts_implementation="eager",
            output_loading_info=True,
        )
    assert not any(info.values())
    assert error(model, larger) <= EXACT
    report = growth.verify(source, out, everything(case), tokens=16)
    assert report.status == "PASSED", report.verdict()
