"""What a plan expects that storing its weights changes."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import growth
from growth.arrays.casting import cast
from growth.arrays.tensor_info import TensorInfo
from growth.engine import reference
from growth.errors import GrowthError
from growth.operators import chain, deepen, regroup, widen
from growth.operators.base import Growth
from growth.planning.plan import make_plan
from growth.planning.prepare import plan_next
from growth.planning.stored_error import (
    better_init,
    cast_error,
    expected_error,
    rounding,
    stored_errors,
    stored_exactly,
    stream_factor,
    warnings,
)
from tests.support.families import all_cases, random_model, table, typical
from tests.support.models import random_phi, save
from tests.support.selection import one_of_each
from tests.support.values import random_values


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
    assert better_init(growth.plan(widen("residual", factor=1.25), source), "residual").startswith(
        "init: pad, norm_eps: rescale"
    )


@pytest.mark.parametrize(
    ("family", "axis", "factor"),
    one_of_each(
        itertools.product(
            ["phi", "llama", "gemma", "gemma3_text", "qwen3", "olmo", "cohere"],
            ["residual", "ffn", "heads", "head_dim"],
            [1.5, 2, 4],
        ),
        lambda family, axis, factor: (family, axis),
        lambda family, axis, factor: (axis, factor),
    ),
)
def test_alternatives_can_be_planned_and_have_the_error_that_is_stated(family, axis, factor):
    source = random_model(next(case for case in all_cases() if case.family == family)).to(torch.bfloat16)
    for arguments in ({"init": "pad"}, {"init": "tile", "shares": "equal"}):
        try:
            plan = growth.plan(widen(axis, factor=factor, **arguments), source)
        except GrowthError:
            continue
        better = better_init(plan, axis)
        if not better:
            continue
        words, stated = better.rsplit(" (", 1)
        chosen = dict(word.split(": ") for word in words.split(", "))
        found = stored_errors(growth.plan(widen(axis, factor=factor, **chosen), source))[axis]
        assert stated == ("exact)" if found == 0 else f"{found:.1e})")
        assert found < stored_errors(plan)[axis]


def test_an_offset_that_the_model_adds_makes_powers_of_two_round():
    """Gemma stores g - 1: half of g is not half of that."""
    source = random_model(next(case for case in all_cases() if case.family == "gemma")).to(torch.bfloat16)
    assert stored_errors(growth.plan(widen("residual", factor=4), source))["residual"] > 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_expected_error_is_that_of_a_random_model_within_a_factor_of_three(dtype, tmp_path):
    source = random_phi(getattr(torch, dtype), hidden_size=64, intermediate_size=256, num_hidden_layers=6)
    folder = save(source, tmp_path / "source")
    made = growth.grow(widen("residual", factor=2), folder, tmp_path / "out")
    report = growth.verify(folder, tmp_path / "out", dtype="float32", tokens=64)
    expected = math.hypot(*stored_errors(made).values())
    assert expected / 3 < report.logits.relative_error < expected * 3


@pytest.mark.parametrize("recipe", ["double-depth", "double-width"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cast_to_fewer_bits_is_expected_to_cost_what_it_does(dtype, recipe, tmp_path):
    source = random_phi(torch.float32, hidden_size=64, intermediate_size=256, num_hidden_layers=6)
    folder = save(source, tmp_path / "source")
    made = growth.grow(recipe, folder, tmp_path / "out", dtype=dtype)
    report = growth.verify(folder, tmp_path / "out", recipe, tokens=64)
    assert not any(stored_errors(made).values())
    assert expected_error(made) == cast_error(made)
    assert expected_error(made) / 3 < report.logits.relative_error < expected_error(made) * 3
    assert cast_error(growth.plan(recipe, folder, dtype="float64")) == 0


def test_a_larger_stream_is_a_warning_for_fp16_only():
    half, wide = random_phi(torch.float16), random_phi(torch.bfloat16)
    step = widen("residual", factor=2)
    assert stream_factor(growth.plan(step, half)) == pytest.approx(math.sqrt(2))
    assert stream_factor(growth.plan(step, wide)) == 1
    assert stream_factor(growth.plan(widen("residual", factor=2, norm_eps="rescale"), half)) == 1


@pytest.mark.parametrize(
    "step",
    [widen("ffn", factor=1), deepen(factor=1), regroup(factor=1), chain()],
    ids=["widen", "deepen", "regroup", "chain"],
)
def test_a_growth_of_nothing_is_a_warning(step):
    model = random_phi()
    assert "grows nothing" in " ".join(warnings(growth.plan(step, model)))
    assert "grows nothing" not in " ".join(warnings(growth.plan(chain(step, widen("ffn", factor=2)), model)))


# ------------------------------------------------- tensors that are stored without rounding

WAYS = [{"init": "pad"}, {"init": "tile", "shares": "equal"}, {"init": "tile", "shares": "first"}]


@pytest.mark.parametrize(
    ("case", "arguments", "dtype"),
    one_of_each(
        itertools.product(all_cases(), WAYS, ["BF16", "F16", "F32"]),
        lambda case, arguments, dtype: typical(case),
        lambda case, arguments, dtype: (*arguments.values(), dtype),
        ids=lambda case, arguments, dtype: "-".join([case.name, *arguments.values(), dtype]),
    ),
)
def test_what_is_said_to_be_stored_exactly_is_what_float64_would_hold(case, arguments, dtype):
    built = table(case)
    headers = {name: TensorInfo(name, dtype, shape) for name, shape in built.shapes().items()}
    for axis in ("residual", "ffn", "heads", "head_dim"):
        for factor in (1.5, 2):
            try:
                plan = make_plan(built, widen(axis, factor=factor, **arguments)(Growth.start(built)), headers)
            except GrowthError:
                continue
            exact = stored_exactly([plan])
            if not any(stored_errors(plan).values()) and dtype != "F16":
                assert exact == plan.sources.keys() - {each.source.name for each in plan.tensors if each.offset}
            for tensor in plan.tensors:
                if tensor.source.name in exact and tensor.shape:
                    old = random_values(tensor.source, 0)
                    stored, wide = (reference.grow(each, old, 0) for each in (tensor, replace(tensor, dtype="F64")))
                    kept = np.ix_(*(~one.fresh for one in tensor.dimensions))
                    np.testing.assert_array_equal(cast(stored, np.empty(stored.shape))[kept], wide[kept])


def test_a_tensor_is_exact_only_if_no_growth_of_several_rounds_it():
    source = random_phi(torch.bfloat16)
    first = growth.plan(widen("ffn", factor=2), source)
    second = plan_next(widen("residual", factor=1.25), first, 0)
    assert stored_exactly([first]) == first.sources.keys()
    assert stored_exactly([first, second]) == stored_exactly([growth.plan(widen("residual", factor=1.25), source)])
    assert stored_exactly([]) == frozenset()


@pytest.mark.parametrize(
    ("given", "dtype"), [("float16", "bfloat16"), ("bfloat16", "float16"), ("float32", "bfloat16")]
)
def test_a_type_that_does_not_hold_another_rounds_every_tensor(given, dtype, tmp_path):
    folder = save(random_phi(getattr(torch, given)), tmp_path / "source")
    assert stored_exactly([growth.plan("double-depth", folder, dtype=dtype)]) == frozenset()
    assert stored_exactly([growth.plan("double-depth", folder, dtype="float32")])
