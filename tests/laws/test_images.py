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


def error(source, larger, inputs=None):
    inputs = inputs or inputs_of(source)
    expected = seen(source, inputs)
    found = seen(larger, inputs)[..., : expected.shape[-1]]
    return float((found - expected).norm() / expected.norm())


def test_every_such_family_is_shown_an_image():
    assert {case.family for case in CASES} == IMAGES.keys()


def is_refused(case, axis, init):
    return not {axis, f"{axis}, {init}"}.isdisjoint(case.refused)


def input_names(case):
    """The names of what the image is given as."""
    return IMAGES[case.family].__name__


def of_each(*kinds):
    return one_of_each([(case,) for case in CASES], *kinds, ids=lambda case: case.name)


@pytest.mark.parametrize("case", of_each(input_names))
def test_the_logits_depend_on_the_image(case):
    model = random_model(case)
    inputs = inputs_of(model)
    pixels = next(name for name in inputs if name.endswith("pixel_values"))
    other = {**inputs, pixels: -inputs[pixels]}
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
    if is_refused(case, axis, init):
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
    if "layers" in case.refused:
        pytest.skip("refused in tests/laws/test_families.py")
    model = random_model(case)
    assert error(model, grown(model, deepen(to=5, order=order))) <= EXACT


def with_sound(inputs, config):
    """The inputs with two tokens of audio in front of each row."""
    audio = config.audio_config
    sound = torch.full((len(inputs["input_ids"]), 2), audio.audio_token_id)
    frames = (len(sound), 2 * audio.time_reduction, audio.input_size)
    return inputs | {
        "input_ids": torch.cat([sound, inputs["input_ids"]], dim=1),
        "audio_input_features": torch.randn(frames, generator=torch.Generator().manual_seed(2), dtype=torch.float64),
        "audio_embed_sizes": torch.full((len(sound),), 2),
    }


@pytest.mark.parametrize("case", of_each(lambda case: "audio_config" in case.config))
@pytest.mark.parametrize("beside_an_image", [False, True])
def test_audio(case, beside_an_image):
    """A class may have other projectors for audio beside an image."""
    if "audio_config" not in case.config:
        pytest.skip("takes no audio")
    model = random_model(case)
    inputs = with_sound(inputs_of(model) if beside_an_image else {"input_ids": tokens(40)}, model.config)
    other = {**inputs, "audio_input_features": inputs["audio_input_features"].flip(1)}
    assert (seen(model, inputs) - seen(model, other)).norm() > 1e-3 * seen(model, inputs).norm()
    assert error(model, grown(model, everything(case)), inputs) <= EXACT


def test_layers_in_front_of_which_image_features_are_added_stay_in_front():
    case = next(case for case in CASES if case.family == "qwen3_vl")
    model = random_model(case)
    with pytest.raises(growth.RecipeError, match=r"the first 2 layers .* must stay the first ones"):
        grown(model, deepen(order=[0, 0, 1, 2]))
    assert error(model, grown(model, deepen(order=[0, 1, 1, 2, 2]))) <= EXACT


def everything(case):
    """What widens the stream and the MLP, and deepens, as far as the case is not refused."""
    axes = [axis for axis in ("residual", "ffn") if not is_refused(case, axis, "tile")]
    steps = [step for axis in axes for step in steps_of(case, axis)]
    deeper = () if "layers" in case.refused else (deepen(to=5),)
    return chain(*(widen(name, to=to, init="tile") for name, to in dict(steps).items()), *deeper)


@pytest.mark.parametrize("case", of_each(lambda case: case.family in ("gemma3", "qwen2_vl")))
def test_by_file(case, tmp_path):
    """The same from files, whose plan counts what passes through; `verify` runs on an image and compares every bit."""
    model = random_model(case)
    source, out = save(model, tmp_path / "source"), tmp_path / "out"
    plan = growth.grow(everything(case), source, out)
    towers = {prefix.split(".")[-1] for prefix in plan.passing}
    assert towers <= {
        "vision_tower",
        "image_encoder",
        "img_temporal_embedding",
        "vision_model",
        "visual",
        "connector",
        "multi_modal_projector",
        "embed_tokens_extend",
    }
    assert towers or case.family == "fuyu"  # whose patches one matrix embeds
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
