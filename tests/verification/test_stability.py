"""Stability: differences between copies do not grow, unless the parts of divided weights are far beyond the weights."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

import growth
from growth.cli.app import app
from growth.operators import chain, widen
from growth.verification.float64 import proof_grade
from tests.support.reports import shown, words
from tests.support.selection import one_of_each

SIZES = {"residual": 32, "ffn": 48, "heads": 4}
FAMILIES = {
    "llama": {"num_key_value_heads": 2},
    "phi": {"partial_rotary_factor": 0.5},
    "gpt_neox": {"rotary_pct": 0.5},
    "olmo2": {},
}
RECIPE = "description: copies\nsteps:\n  - {{op: widen, axis: residual, {}}}\n"
AXES = [("residual",), ("residual", "ffn", "heads")]


def trained_like(family):
    """A stock model of 6 layers whose values have the sizes that training gives them."""
    config = AutoConfig.for_model(
        family,
        hidden_size=SIZES["residual"],
        intermediate_size=SIZES["ffn"],
        num_attention_heads=SIZES["heads"],
        num_hidden_layers=6,
        vocab_size=97,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=False,
        **FAMILIES[family],
    )
    with proof_grade(), torch.no_grad():
        model = AutoModelForCausalLM.from_config(config)
        generator = torch.Generator().manual_seed(0)
        for name, values in model.named_parameters():
            std = 1.0 if "embed" in name else 0.2 if values.ndim == 1 else 1 / math.sqrt(values.shape[-1])
            values.normal_(std=std, generator=generator)
            if "norm" in name and name.endswith("weight"):
                values += 1
    return model.double()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a source of each family that was asked for."""
    return tmp_path_factory.mktemp("stability")


def saved(home, family):
    folder = home / family
    if not folder.exists():
        trained_like(family).save_pretrained(folder)
    return folder


def copies(axes, factor=2, **options):
    return chain(*(widen(axis, to=int(factor * SIZES[axis]), init="tile", **options) for axis in axes))


def check(source, grown, recipe, **options):
    return growth.verify(source, grown, recipe, tokens=32, stability=True, **options)


def verified(source, grown, recipe, **options):
    growth.grow(recipe, source, grown)
    return check(source, grown, recipe, **options)


def divide(folder, low, high):
    """Divide each layer's weights that read two copies anew: r w and (1 - r) w, with r from `low` to `high`."""
    path, generator, divided = folder / "model.safetensors", torch.Generator().manual_seed(0), 0
    weights = load_file(path)
    for name, values in weights.items():
        half, other = values.chunk(2, -1)
        if ".layers." in name and values.ndim == 2 and torch.equal(half, other):
            part = torch.rand(half.shape, generator=generator, dtype=half.dtype) * (high - low) + low
            weights[name] = torch.cat([2 * half * part, 2 * half * (1 - part)], -1)
            divided += 1
    save_file(weights, path, {"format": "pt"})
    return divided


def ratios(report):
    """How much more the grown model amplifies than its source, in the layers and in the logits."""
    return [grown / source for grown, source in report.stability.pairs.values()]


# ------------------------------------------------- the law


SHARES = ("equal", "random", "mask", "first")
GROWTHS = [(family, axes) for family in FAMILIES for axes in AXES if (family, axes) != ("gpt_neox", AXES[0])]
CASES = [(*grown, shares) for grown in GROWTHS for shares in SHARES]
KINDS = (lambda family, axes, shares: (family, axes), lambda family, axes, shares: shares)


@pytest.mark.parametrize(("family", "axes", "shares"), one_of_each(CASES, *KINDS))
def test_no_share_that_is_offered_lets_differences_grow(home, tmp_path, family, axes, shares):
    report = verified(saved(home, family), tmp_path / "grown", copies(axes, shares=shares))
    assert report.status == "PASSED", report.verdict()
    assert report.stability.stable
    assert set(report.stability.pairs) == {"layers", "logits"}
    assert max(ratios(report)) < 1.5
    assert report.stability.channels == 2 * SIZES["residual"]


FAR = [(*grown, (-3, 4)) for grown in GROWTHS] + [(family, AXES[1], (-1, 2)) for family in FAMILIES]


@pytest.mark.parametrize(("family", "axes", "shares"), one_of_each(FAR, lambda family, axes, parts: (axes, parts)))
def test_parts_far_beyond_the_weight_are_unstable_though_the_logits_agree(home, tmp_path, family, axes, shares):
    source, recipe = saved(home, family), copies(axes, shares="equal")
    growth.grow(recipe, source, tmp_path / "grown")
    assert divide(tmp_path / "grown", *shares) >= 6 * len(axes)
    report = check(source, tmp_path / "grown", recipe)
    assert not report.stability.stable
    assert max(ratios(report)) > (100 if shares == (-3, 4) and len(axes) > 1 else 3)
    assert report.logits.relative_error < 1e-4
    assert report.status == "FAILED"
    assert "UNSTABLE: the network amplifies a difference between copies" in report.verdict()


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_growths_of_growths_by_fractional_ratios_are_stable(home, tmp_path, family):
    source = saved(home, family)
    (tmp_path / "once.yaml").write_text(RECIPE.format("to: 48, init: tile"))
    (tmp_path / "again.yaml").write_text(
        RECIPE.format("to: 96, init: tile, shares: mask") + "  - {op: deepen, to: 8}\n"
    )
    growth.grow(tmp_path / "once.yaml", source, tmp_path / "wide")
    growth.grow(tmp_path / "again.yaml", tmp_path / "wide", tmp_path / "grown")
    report = check(source, tmp_path / "grown", None)
    assert report.stability.channels == 96
    assert max(ratios(report)) < 1.5


@pytest.mark.parametrize("dtype", ["float32", "stored"])
def test_divided_weights_are_stable_in_the_type_in_which_the_model_runs(home, tmp_path, dtype):
    source = tmp_path / "bfloat16"
    trained_like("llama").bfloat16().save_pretrained(source)
    report = verified(source, tmp_path / "grown", copies(AXES[1], shares="random"), dtype=dtype)
    assert report.stability.pairs
    assert report.stability.stable


# ------------------------------------------------- what is said


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (widen("residual", to=64, init="pad"), "the recipe makes no copies in the residual stream"),
        (copies(["ffn", "heads"]), "pass from layer to layer; copies along ffn, heads have no deviations"),
        (copies(AXES[1]), "64 channels of the residual stream that have copies; copies along ffn, heads have no"),
    ],
    ids=["pad", "inside", "all"],
)
def test_what_was_measured_is_said(home, tmp_path, recipe, said):
    report = verified(saved(home, "llama"), tmp_path / "grown", recipe)
    assert report.status == "PASSED"
    assert said in " ".join(report.coverage()["stability"])
    assert bool(report.stability.pairs) == said.startswith("64")
    assert ("amplification, layers" in words(shown(report))) == said.startswith("64")


def test_it_is_not_measured_unless_asked_for(home, tmp_path):
    source, recipe = saved(home, "llama"), copies(["residual"])
    growth.grow(recipe, source, tmp_path / "grown")
    report = growth.verify(source, tmp_path / "grown", recipe, tokens=16)
    assert report.stability is None
    assert "--stability" in " ".join(report.coverage()["not checked"])


def test_an_unstable_model_fails_the_command(home, tmp_path):
    source = saved(home, "llama")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format("factor: 2, init: tile, shares: equal"))
    arguments = ["verify", source, tmp_path / "grown", "--recipe", tmp_path / "recipe.yaml", "--stability", "--json"]
    growth.grow(tmp_path / "recipe.yaml", source, tmp_path / "grown")
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == 0
    measured = json.loads(found.stdout)["stability"]
    assert measured["channels"] == 64
    assert len(measured["grown"]["layers"]) == 6
    divide(tmp_path / "grown", -3, 4)
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == 1
    assert json.loads(found.stdout)["status"] == "FAILED"
