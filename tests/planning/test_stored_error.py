"""What a plan expects that storing its weights changes."""

import math

import pytest
import torch

import growth
from growth.operators import chain, widen
from growth.planning.stored_error import better_init, rounding, stored_errors, stream_factor
from tests.support.models import random_phi, save


@pytest.mark.parametrize("shares", ["equal", "random", "mask", "first"])
@pytest.mark.parametrize("axis", ["residual", "ffn", "heads"])
def test_copies_at_integer_ratios_are_expected_to_be_exact(axis, shares):
    source = random_phi(torch.bfloat16)
    assert stored_errors(growth.plan(widen(axis, factor=2, init="tile", shares=shares), source)) == {axis: 0.0}


def test_fresh_units_round_only_what_a_norm_asks_for():
    source = random_phi(torch.bfloat16)
    errors = stored_errors(growth.plan(chain(*(widen(a, factor=2) for a in ("residual", "ffn", "heads"))), source))
    assert errors["ffn"] == errors["heads"] == 0
    assert rounding("BF16") / 2 < errors["residual"] < 4 * rounding("BF16")


def test_the_exact_alternative_is_named_and_is_exact():
    source = random_phi(torch.bfloat16)
    assert better_init(growth.plan(widen("residual", factor=2), source), "residual").startswith(
        "init: tile, shares: first"
    )
    assert better_init(growth.plan(widen("residual", factor=2, shares="first"), source), "residual") == ""
    assert better_init(growth.plan(widen("residual", factor=1.25), source), "residual").startswith("norm_eps: rescale")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_expected_error_is_that_of_a_random_model_within_a_factor_of_three(dtype, tmp_path):
    source = random_phi(getattr(torch, dtype), hidden_size=64, intermediate_size=256, num_hidden_layers=6)
    folder = save(source, tmp_path / "source")
    made = growth.grow(widen("residual", factor=2), folder, tmp_path / "out")
    report = growth.verify(folder, tmp_path / "out", dtype="float32", tokens=64)
    expected = math.hypot(*stored_errors(made).values())
    assert expected / 3 < report.logits.relative_error < expected * 3


def test_a_larger_stream_is_a_warning_for_fp16_only():
    half, wide = random_phi(torch.float16), random_phi(torch.bfloat16)
    step = widen("residual", factor=2)
    assert stream_factor(growth.plan(step, half)) == pytest.approx(math.sqrt(2))
    assert stream_factor(growth.plan(step, wide)) == 1
    assert stream_factor(growth.plan(widen("residual", factor=2, norm_eps="rescale"), half)) == 1
