"""Experts: grown, upcycled to, and told apart, the function kept."""

from itertools import product

import pytest
import torch
from transformers import AutoModelForCausalLM

import growth
from growth import RecipeError
from growth.operators import break_symmetry, chain, deepen, upcycle, widen
from growth.verification.float64 import proof_grade
from tests.support.families import all_cases, random_model
from tests.support.models import EXACT, relative_error, save
from tests.support.selection import one_of_each

CASES = {case.name: case for case in all_cases()}
MIXTURES = [case for case in CASES.values() if case.family in ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")]
DENSE = [
    CASES[name]
    for name in ("llama, tied", "llama, rope scaling", "mistral, sliding window", "qwen2, tied", "qwen3, tied")
]


def grown(model, recipe, seed=0):
    # the kernel that runs experts, and rotary frequencies in float64, as in the source
    model.config._experts_implementation = "eager"
    with proof_grade():
        return growth.grow_model(model, recipe, seed=seed)


def experts_of(model):
    """The experts of the first layer that has some."""
    return next(layer.mlp.experts for layer in model.model.layers if hasattr(layer.mlp, "experts"))


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


@pytest.mark.parametrize(("experts", "top_k"), [(4, 2), (3, 2), (2, 2)])
@pytest.mark.parametrize("case", DENSE, ids=lambda case: case.name)
def test_upcycled_models_compute_the_same(case, experts, top_k):
    model = random_model(case)
    mixture = grown(model, upcycle(experts=experts, top_k=top_k))
    assert mixture.config.model_type == {"qwen2": "qwen2_moe", "qwen3": "qwen3_moe"}.get(case.family, "mixtral")
    assert len(experts_of(mixture).down_proj) == experts
    assert mixture.config.num_experts_per_tok == top_k
    routers = mixture.model.layers[0].mlp.gate.weight
    assert routers.abs().max() > 0
    assert relative_error(model, mixture) <= EXACT


@pytest.mark.parametrize("case", DENSE, ids=lambda case: case.name)
def test_upcycling_joins_any_chain_and_any_file(case, tmp_path):
    model = random_model(case)
    operator = chain(
        widen("residual", to=40, init="tile", shares="equal"),
        upcycle(experts=4, top_k=2),
        widen("ffn", to=60, shares="random", init="tile"),
        deepen(to=5),
    )
    source = save(model, tmp_path / "source")
    plan = growth.grow(operator, source, tmp_path / "out")
    assert plan.preserving
    options = {"dtype": "auto", "attn_implementation": "eager", "experts_implementation": "eager"}
    with proof_grade():
        mixture, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True, **options)
    assert not any(info.values())
    assert relative_error(model, mixture) <= EXACT
    assert growth.verify(source, tmp_path / "out").passed


def test_experts_of_an_upcycled_model_get_different_gradients():
    mixture = grown(random_model(CASES["llama, untied"]), upcycle(experts=4, top_k=2, router_std=1.0))
    ids = torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(0))
    mixture(input_ids=ids, labels=ids).loss.backward()
    gradient = experts_of(mixture).down_proj.grad
    for first in range(4):
        for second in range(first):
            assert (gradient[first] - gradient[second]).norm() > 0.1 * gradient.norm() / 4


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_noise_leaves_the_experts_of_an_upcycled_model_alone(first):
    """A token goes to two of four experts, in unequal parts: noise that cancels over all of them would not."""
    model = random_model(CASES["llama, tied"])
    noisy = chain(widen("ffn", factor=2, init="tile", shares="equal"), break_symmetry())
    mixture = upcycle(experts=4, top_k=2)
    larger = grown(model, chain(noisy, mixture) if first else chain(mixture, noisy))
    assert relative_error(model, larger) <= EXACT


REFUSALS = [
    ("llama, biases", upcycle(experts=4, top_k=2), "this config has attention_bias = true, and mixtral has no biases"),
    (
        "gpt2, tied",
        upcycle(experts=4, top_k=2),
        "upcycle: gpt2 has no matching mixture family. Families it can upcycle: llama",
    ),
    ("qwen3, untied, biases, windows", upcycle(experts=4, top_k=2), "a sliding window layer by layer"),
    ("mixtral, top 2 of 4", upcycle(experts=4, top_k=2), "is already a mixture of experts"),
    ("llama, tied", upcycle(experts=4, top_k=5), "top_k = 5 is not between 1 and experts = 4"),
    ("llama, tied", upcycle(experts=4, top_k=2, router="luck"), "no router 'luck'"),
    ("llama, tied", upcycle(experts=4, top_k=1), "a softmax over one, always 1.*Use top_k: 2"),
    ("llama, tied", upcycle(experts=4, top_k=2, router="zero"), "with router: zero.*never have a gradient"),
    ("llama, tied", upcycle(experts=4, top_k=2, router_std=0.0), "with router_std = 0.0.*Use router: random"),
    (
        "llama, tied",
        chain(upcycle(experts=4, top_k=2), break_symmetry()),
        "break_symmetry finds no copies",
    ),
]


@pytest.mark.parametrize(
    ("name", "operator", "message"), REFUSALS, ids=[f"{name}: {message}" for name, _, message in REFUSALS]
)
def test_refusals(name, operator, message):
    with pytest.raises(RecipeError, match=message):
        grown(random_model(CASES[name]), operator)
