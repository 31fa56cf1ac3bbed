"""Experts: copied and told apart, the function kept."""

from itertools import product

import pytest
import torch

from growth import RecipeError
from growth.operators import break_symmetry, chain, widen
from tests.support.experts import CASES, experts_of, grown
from tests.support.families import random_model
from tests.support.models import EXACT, relative_error
from tests.support.selection import one_of_each

MIXTURES = [case for case in CASES.values() if case.family in ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")]


@pytest.mark.parametrize(
    ("case", "factor"),
    one_of_each(
        product(MIXTURES, [2, 3]),
        lambda case, factor: case.name,
        lambda case, factor: factor,
        ids=lambda case, factor: f"{case.name}-{factor}",
    ),
)
def test_copies_of_experts_are_chosen_together(case, factor, saw):
    model = random_model(case)
    larger = grown(model, widen("experts", factor=factor))
    assert larger.config.num_experts_per_tok == factor * model.config.num_experts_per_tok
    assert relative_error(model, larger) <= EXACT
    saw(case, "experts", "exact")


@pytest.mark.parametrize("case", MIXTURES, ids=lambda case: case.name)
def test_copies_of_experts_can_be_told_apart(case):
    model = random_model(case)
    twins = widen("experts", factor=2)
    apart = grown(model, chain(twins, break_symmetry()))
    assert relative_error(model, apart) <= EXACT
    before = experts_of(grown(model, twins)).down_proj
    after = experts_of(apart).down_proj
    count = len(after) // 2
    assert torch.equal(before[:count], before[count:])
    assert (after[:count] - after[count:]).norm() > 0.1 * after.norm()


@pytest.mark.parametrize("operator", [widen("experts", to=6), widen("experts", factor=2, init="pad")])
def test_unequal_copies_are_refused(operator):
    with pytest.raises(RecipeError, match=r"the router's softmax runs over all experts.* init: tile and to: 8"):
        grown(random_model(CASES["mixtral, top 2 of 4"]), operator)
