"""A mixture whose router turns on a rounding is proved right by its bits and in float64; any other difference fails."""

import json

import pytest
from safetensors.torch import load_file, save_file

import growth
from benchmarks.trust_models import make_source, recipe
from tests.support.families import all_cases

NAME, SEED = "qwen3_moe, weights not normalised", 137  # found by search: a router turns, and no draw of the floor does


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("routing")
    case = next(case for case in all_cases() if case.name == NAME)
    make_source(case, "bfloat16", "none", SEED, home / "source")
    config = json.loads((home / "source" / "config.json").read_text())
    operator = recipe("residual, copies", case, config)
    growth.grow(operator, home / "source", home / "grown", seed=SEED)
    return home, operator


def verify(made, **options):
    home, operator = made
    return growth.verify(home / "source", home / "grown", operator, growth_seed=SEED, seed=SEED, **options)


def test_a_router_that_turns_on_a_rounding_is_no_failure(made):
    report = verify(made)
    assert not report.agrees
    assert report.routed
    assert report.status == "PASSED"
    assert "Rounding alone explains it" in report.verdict()


def test_without_a_recipe_nothing_is_proved(made):
    home, _ = made
    assert growth.verify(home / "source", home / "grown", seed=SEED).status == "FAILED"


def test_one_bit_within_an_expert_is_no_rounding(made):
    home, _ = made
    path = home / "grown" / "model.safetensors"
    before, weights = path.read_bytes(), load_file(path)
    name = next(name for name in weights if ".experts." in name and weights[name].any())
    weights[name].view(-1)[:1] *= 1.0078125
    save_file(weights, path, {"format": "pt"})
    try:
        report = verify(made)
    finally:
        path.write_bytes(before)
    assert not report.routed
    assert report.status == "FAILED"
