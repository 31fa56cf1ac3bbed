"""Upcycling: the experts of a mixture made from a dense MLP, whole, divided, shared or partly random."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import growth
from growth import RecipeError
from growth.operators import break_symmetry, chain, deepen, upcycle, widen
from growth.operators.dense_to_moe import MIXTURES
from growth.verification.float64 import proof_grade
from tests.support.experts import CASES, experts_of, grown
from tests.support.families import random_model
from tests.support.models import EXACT, relative_error, save

DENSE = [
    CASES[name]
    for name in (
        "llama, tied",
        "llama, rope scaling",
        "mistral, sliding window",
        "qwen2, tied",
        "qwen3, tied",
        "youtu, tied",
        "youtu, untied, queries of full rank, biases",
        "ernie4_5, tied",
        "olmo2, untied",
        "hunyuan_v1_dense, untied",
        "cohere2, tied",
        "cohere2, untied, biases",
    )
]
TEXT = torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("experts", "top_k"), [(4, 2), (3, 2), (2, 2)])
@pytest.mark.parametrize("case", DENSE, ids=lambda case: case.name)
def test_upcycled_models_compute_the_same(case, experts, top_k):
    model = random_model(case)
    mixture = grown(model, upcycle(experts=experts, top_k=top_k))
    assert mixture.config.model_type == MIXTURES[case.family].model_type
    assert len(experts_of(mixture).down_proj) == experts
    assert mixture.config.num_experts_per_tok == top_k
    routers = [one for name, one in mixture.named_parameters() if "mlp.gate." in name and len(one) == experts]
    assert len(routers) == len(mixture.model.layers)
    assert all(one.abs().max() > 0 for one in routers)
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


@pytest.mark.parametrize(
    ("name", "experts", "top_k", "granularity"),
    [
        ("llama, tied", 4, 2, 2),
        ("mistral, sliding window", 8, 4, 2),
        ("qwen2, tied", 6, 3, 3),
        ("qwen3, tied", 8, 8, 4),
        ("youtu, tied", 8, 4, 2),
        ("ernie4_5, tied", 8, 4, 2),
        ("olmo2, untied", 4, 2, 2),
        ("hunyuan_v1_dense, untied", 6, 3, 3),
        ("cohere2, tied", 4, 2, 2),
    ],
)
def test_fine_grained_experts_compute_the_same(name, experts, top_k, granularity):
    model = random_model(CASES[name])
    mixture = grown(model, upcycle(experts=experts, top_k=top_k, granularity=granularity))
    assert experts_of(mixture).down_proj.shape == (experts, 32, 48 // granularity)
    assert mixture.config.num_experts_per_tok == top_k
    assert relative_error(model, mixture) <= EXACT


@torch.no_grad()
@pytest.mark.parametrize(("shared", "granularity"), [(0, 1), (0.25, 1), (0.5, 2), (1, 1)])
def test_experts_that_are_counted_share_the_output(shared, granularity):
    """DeepSeek-V3's shared experts are as large as one routed expert each; its router's bias starts at zero."""
    model = random_model(CASES["youtu, tied"])
    mixture = grown(model, upcycle(experts=4, top_k=2, shared=shared, granularity=granularity))
    assert mixture.config.n_shared_experts == granularity
    assert mixture.model.layers[0].mlp.gate.e_score_correction_bias.abs().max() == 0
    assert relative_error(model, mixture) <= EXACT


@pytest.mark.parametrize(
    ("name", "shared", "granularity"),
    [("ernie4_5, tied", 0.25, 2), ("ernie4_5, tied", 1, 1), ("hunyuan_v1_dense, untied", 0.25, 1)],
)
def test_shared_experts_of_other_families_compute_their_part(name, shared, granularity):
    model = random_model(CASES[name])
    mixture = grown(model, upcycle(experts=4, top_k=2, shared=shared, granularity=granularity))
    assert relative_error(model, mixture) <= EXACT


@pytest.mark.parametrize(("shared", "granularity"), [(0.25, 1), (0.5, 2), (1, 1)])
def test_a_shared_expert_computes_its_part_of_the_output(shared, granularity):
    model = random_model(CASES["qwen2, tied"])
    mixture = grown(model, upcycle(experts=4, top_k=2, shared=shared, granularity=granularity))
    dense, block = model.model.layers[0].mlp, mixture.model.layers[0].mlp
    assert torch.equal(block.shared_expert.gate_proj.weight, dense.gate_proj.weight)
    torch.testing.assert_close(block.shared_expert.down_proj.weight, 2 * shared * dense.down_proj.weight)
    assert not block.shared_expert_gate.weight.any()
    assert relative_error(model, mixture) <= EXACT


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama, tied", {}),
        ("llama, tied", {"granularity": 2}),
        ("qwen2, tied", {"shared": 0.5}),
        ("qwen2, tied", {"shared": 1}),
        ("qwen3, tied", {"reinit": 0.5}),
    ],
)
def test_the_router_has_a_gradient_from_the_second_step_on(name, options):
    mixture = grown(random_model(CASES[name]), upcycle(experts=4, top_k=2, **options))
    router = mixture.model.layers[0].mlp.gate.weight
    optimizer = torch.optim.AdamW(mixture.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        mixture(input_ids=TEXT, labels=TEXT).loss.backward()
        optimizer.step()
    assert (router.grad.norm(dim=1) > 0).all()


def test_redrawn_units_differ_in_each_expert_and_layer_and_the_others_are_copies():
    model = random_model(CASES["qwen3, tied"])
    mixture = grown(model, upcycle(experts=4, top_k=2, reinit=0.25))
    kept = []
    for dense, sparse in zip(model.model.layers, mixture.model.layers, strict=True):
        gates, ups = sparse.mlp.experts.gate_up_proj.chunk(2, dim=1)
        for gate, up, down in zip(gates, ups, sparse.mlp.experts.down_proj, strict=True):
            same = [(gate == dense.mlp.gate_proj.weight).all(1), (up == dense.mlp.up_proj.weight).all(1)]
            same += [(down == dense.mlp.down_proj.weight).all(0)]
            assert torch.equal(same[0], same[1])
            assert torch.equal(same[0], same[2])
            kept.append(same[0])
            assert abs(gate[~same[0]].std() / dense.mlp.gate_proj.weight.std() - 1) < 0.1
    assert [int(units.sum()) for units in kept] == [36] * len(kept)
    assert len({tuple(units.tolist()) for units in kept}) == len(kept)


def test_redrawn_units_make_a_growth_lossy(tmp_path):
    source = save(random_model(CASES["qwen3, tied"]), tmp_path / "source")
    operator = upcycle(experts=4, top_k=2, reinit=0.5)
    assert not growth.grow(operator, source, tmp_path / "out").preserving
    assert growth.verify(source, tmp_path / "out", recipe=operator).status == "LOSSY"
    assert growth.verify_weights(source, tmp_path / "out", recipe=operator).passed


@pytest.mark.parametrize("options", [{"shared": 0.5}, {"reinit": 0.5}], ids=str)
def test_divided_experts_join_any_chain_and_are_the_same_in_memory(options, tmp_path):
    model = random_model(CASES["qwen2, tied"])
    operator = chain(
        widen("residual", to=40),
        upcycle(experts=4, top_k=2, granularity=2, **options),
        widen("ffn", to=36, shares="random", init="tile"),
        widen("experts", factor=2),
        deepen(to=5),
    )
    source = save(model, tmp_path / "source")
    plan = growth.grow(operator, source, tmp_path / "out")
    assert plan.preserving == ("reinit" not in options)
    assert growth.verify_weights(source, tmp_path / "out", recipe=operator).passed
    with proof_grade():
        stored = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", dtype="auto", attn_implementation="eager", experts_implementation="eager"
        )
    live = grown(model, operator)
    for (name, one), other in zip(stored.named_parameters(), live.parameters(), strict=True):
        assert torch.equal(one, other), name
    if plan.preserving:
        assert relative_error(model, stored) <= EXACT
        assert growth.verify(source, tmp_path / "out").passed


@pytest.mark.parametrize("top_k", [2, 4])
def test_the_plan_counts_active_parameters(top_k, tmp_path):
    """With as many experts for each token as an MLP is divided into, only the routers are active in addition."""
    source = save(random_model(CASES["qwen3, tied"]), tmp_path / "source")
    plan = growth.plan(upcycle(experts=8, top_k=top_k, granularity=2), source).to_dict()
    layers, hidden, ffn = plan["after"]["layers"], plan["after"]["residual"], plan["after"]["ffn"]
    assert plan["source_parameters"] == plan["source_active_parameters"]
    assert plan["active_parameters"] - plan["source_parameters"] == layers * hidden * (8 + (top_k - 2) * 3 * ffn)
    assert plan["parameters"] - plan["active_parameters"] == layers * hidden * (8 - top_k) * 3 * ffn


def test_experts_of_an_upcycled_model_get_different_gradients():
    mixture = grown(random_model(CASES["llama, untied"]), upcycle(experts=4, top_k=2, router_std=1.0))
    mixture(input_ids=TEXT, labels=TEXT).loss.backward()
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
    ("granite, tied", upcycle(experts=4, top_k=2), "matching mixture family: granitemoe keeps the gate and up"),
    ("ernie4_5, untied, biases", upcycle(experts=4, top_k=2), "use_bias = true, and ernie4_5_moe has no biases there"),
    (
        "hunyuan_v1_dense, untied",
        upcycle(experts=4, top_k=2, granularity=2, shared=0.5),
        "is as large as every other, so it cannot hold the MLP",
    ),
    ("qwen3, untied, biases, windows", upcycle(experts=4, top_k=2), "a sliding window layer by layer"),
    ("mixtral, top 2 of 4", upcycle(experts=4, top_k=2), "is already a mixture of experts"),
    ("llama, tied", upcycle(experts=4, top_k=5), "top_k = 5 is not between 1 and experts = 4"),
    ("llama, tied", upcycle(experts=4, top_k=2, router="luck"), "no router 'luck'"),
    ("llama, tied", upcycle(experts=4, top_k=1), "a softmax over one, always 1.*Use top_k: 2"),
    ("llama, tied", upcycle(experts=4, top_k=2, router="zero"), "with router: zero.*never have a gradient"),
    ("llama, tied", upcycle(experts=4, top_k=2, router_std=0.0), "with router_std = 0.0.*Use router: random"),
    ("llama, tied", upcycle(experts=8, top_k=4, granularity=3), "experts = 8 and top_k = 4. Use granularity: 2"),
    ("llama, tied", upcycle(experts=4, top_k=2, shared=0.5), "mixtral has none. Leave out shared"),
    (
        "llama, tied",
        chain(widen("ffn", to=64), upcycle(experts=4, top_k=2, granularity=2)),
        "a step before it widens ffn. Place upcycle before that step",
    ),
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
