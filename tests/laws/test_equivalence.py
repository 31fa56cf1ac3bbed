"""The grown model computes what its source computes: stock PhiForCausalLM, float64, relative error 1e-12."""

from itertools import product

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

import growth
from growth.architectures import architecture
from growth.errors import RecipeError
from growth.operators import break_symmetry, chain, deepen, reuse, widen
from growth.planning.recipe import load_recipe, shipped_recipes
from tests.support.models import EXACT, VOCAB, grown, logits, random_phi, relative_error, tokens
from tests.support.selection import examples, one_of_each

INITS = ("tile", "sample", "pad")
ORDERS = ("interleave", "stack", "append", "prepend", "middle", "gopher")
AXES = {"residual": (33, 40, 41, 64, 70, 99), "ffn": (49, 61, 96), "heads": (5, 7, 8), "head_dim": (9, 10, 17, 20)}


RESIDUAL = one_of_each(
    product(AXES["residual"], INITS, ["stock", "rescale"]),
    lambda to, init, norm_eps: to,
    lambda to, init, norm_eps: (init, norm_eps),
)


@pytest.mark.parametrize(("to", "init", "norm_eps"), RESIDUAL)
def test_residual(to, init, norm_eps):
    model = random_phi()
    assert relative_error(model, grown(model, widen("residual", to=to, init=init, norm_eps=norm_eps))) <= EXACT


@pytest.mark.parametrize(
    ("axis", "to", "init"),
    one_of_each(
        [(axis, to, init) for axis in ("ffn", "heads", "head_dim") for to in AXES[axis] for init in INITS],
        lambda axis, to, init: (axis, to),
        lambda axis, to, init: (axis, init),
    ),
)
def test_other_axes(axis, to, init):
    model = random_phi()
    assert relative_error(model, grown(model, widen(axis, to=to, init=init))) <= EXACT


@pytest.mark.parametrize("init", INITS)
def test_query_heads_of_a_group(init):
    model = random_phi(num_key_value_heads=2)
    larger = grown(model, widen("queries", to=3, init=init))
    assert larger.config.num_attention_heads == 6
    assert relative_error(model, larger) <= EXACT


@pytest.mark.parametrize("init", INITS)
def test_vocab_keeps_the_old_logits(init):
    model = random_phi()
    larger = grown(model, widen("vocab", to=VOCAB + 9, init=init))
    assert larger.config.vocab_size == VOCAB + 9
    assert larger.lm_head.weight[VOCAB:].abs().min(dim=1).values.max() > 0
    assert relative_error(model, larger) <= EXACT


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_new_tokens_start_as_the_mean_with_a_bias_that_keeps_them_quiet(tied):
    model = random_phi(tie_word_embeddings=tied)
    larger = grown(
        model,
        chain(
            widen("residual", to=40, init="tile", shares="equal"),
            widen("vocab", multiple=32, init="mean", logit_bias=-30.0),
        ),
    )
    assert larger.config.vocab_size == 64
    assert relative_error(model, larger) <= EXACT
    assert (larger.lm_head.bias[VOCAB:] == -30).all()
    found = logits(larger, tokens())
    assert (found.argmax(-1) < VOCAB).all()
    # the mean token's logit is the mean of all logits, their biases apart
    expected = (found[..., :VOCAB] - larger.lm_head.bias[:VOCAB]).mean(-1) - 30
    assert (found[..., VOCAB] - expected).abs().max() < 1e-9


def test_random_tokens_have_the_size_of_the_old_ones():
    model = random_phi()
    larger = grown(model, widen("vocab", to=2 * VOCAB, init="random"))
    old, new = larger.model.embed_tokens.weight.detach().chunk(2)
    assert 0.8 < float(new.std() / old.std()) < 1.25


@pytest.mark.parametrize("order", [*ORDERS, [0, 0, 1, 0, 2], [0, 1, 2, 2, 1]])
def test_identity_layers(order):
    model = random_phi()
    operator = deepen(to=5, order=order) if isinstance(order, str) else deepen(order=order)
    larger = grown(model, operator)
    assert larger.config.num_hidden_layers == 5
    assert relative_error(model, larger) <= EXACT


@pytest.mark.parametrize("order", ORDERS)
def test_copied_layers_are_lossy(order):
    model = random_phi()
    assert relative_error(model, grown(model, deepen(to=5, order=order, init="copy"))) > 1e-3


@pytest.mark.parametrize(
    "width",
    [
        widen("residual", to=40, init="tile", shares="equal"),
        widen("residual", to=40, init="pad"),
        widen("ffn", to=60, init="tile", shares="equal"),
    ],
)
def test_a_lossy_step_leaves_the_exact_ones_exact(width):
    """What copied layers compute is not what the source does, and widening them changes nothing more."""
    model = random_phi()
    lossy = deepen(to=5, init="copy")
    assert relative_error(grown(model, lossy), grown(model, chain(lossy, width))) <= EXACT


@pytest.mark.parametrize("fan_in", [False, True])
@pytest.mark.parametrize("at", ["edge", "middle"])
@pytest.mark.parametrize("method", ["submatrix", "tile"])
def test_reuse_is_lossy(method, at, fan_in):
    model = random_phi()
    sizes = {"residual": 40, "ffn": 60, "head_dim": 10}
    larger = grown(model, reuse(to=sizes, layers=4, method=method, at=at, fan_in=fan_in))
    assert larger.config.hidden_size == 40
    assert relative_error(model, larger) > 1e-2


@pytest.mark.parametrize("method", ["random", "mask"])
@pytest.mark.parametrize("qk_layernorm", [False, True])
def test_breaking_symmetry_keeps_the_function(qk_layernorm, method):
    model = random_phi(qk_layernorm=qk_layernorm)
    residual = widen("residual", to=40, init="tile", shares="equal")
    head_dim = widen("head_dim", to=10, init="tile", shares="equal")
    twins = chain(residual, head_dim, widen("ffn", to=70, init="tile", shares="equal"))
    apart = chain(twins, break_symmetry(method=method))
    larger = grown(model, apart)
    assert relative_error(model, larger) <= EXACT
    same, other = grown(model, twins).model.layers[0], larger.model.layers[0]
    for name in ("mlp.fc1", "mlp.fc2", "self_attn.q_proj", "self_attn.dense", "self_attn.v_proj"):
        before, after = same.get_submodule(name).weight, other.get_submodule(name).weight
        assert (before - after).norm() > 0.01 * before.norm(), name


@pytest.mark.parametrize(("to", "init", "norm_eps"), RESIDUAL)
def test_a_tied_head_reads_what_the_embedding_writes(to, init, norm_eps):
    model = random_phi(tie_word_embeddings=True)
    operator = chain(widen("residual", to=to, init=init, norm_eps=norm_eps), deepen(to=4))
    larger = grown(model, operator)
    assert larger.lm_head.weight is larger.model.embed_tokens.weight
    assert relative_error(model, larger) <= EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_keep_their_dtype_and_mode(dtype):
    model = random_phi(dtype).train()
    larger = growth.grow_model(model, widen("ffn", to=50, init="tile", shares="equal"))
    assert {p.dtype for p in larger.parameters()} == {dtype}
    assert larger.training


@st.composite
def geometries(draw):
    """A Phi and an operator chain, of sizes that nobody would choose."""
    heads = draw(st.integers(1, 3))
    queries = draw(st.integers(1, 3))
    qk_layernorm = draw(st.booleans())
    head_dim = draw(st.integers(3, 11))
    rotary = 2 * draw(st.integers(1, head_dim // 2))
    hidden = heads * queries * head_dim
    if not qk_layernorm:
        hidden += draw(st.integers(0, 5))
    config = {
        "hidden_size": hidden,
        "intermediate_size": draw(st.integers(2, 30)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads * queries,
        "num_key_value_heads": heads,
        "partial_rotary_factor": min(1.0, (rotary + 0.5) / head_dim),
        "qk_layernorm": qk_layernorm,
        "tie_word_embeddings": draw(st.booleans()),
    }
    if hidden // (heads * queries) != head_dim or draw(st.booleans()):
        config["head_dim"] = head_dim
    return config, draw(operators(config, head_dim, rotary))


@st.composite
def operators(draw, config, head_dim, rotary):
    def init(axis):
        return draw(st.sampled_from(INITS if axis != "head_dim" or rotary < head_dim else ("pad",)))

    def grow(axis, to):
        chosen = init(axis)
        options = {"init": chosen, "seed": draw(st.integers(0, 99))}
        if chosen != "pad":
            options["shares"] = draw(st.sampled_from(["equal", "random", "mask", "first"]))
        if axis == "residual":
            options["norm_eps"] = draw(st.sampled_from(["stock", "rescale"]))
        return widen(axis, to=to, **options)

    new_head_dim = head_dim + draw(st.integers(0, 6))
    heads = config["num_key_value_heads"] + draw(st.integers(0, 2))
    queries = config["num_attention_heads"] // config["num_key_value_heads"]
    residual = config["hidden_size"] + draw(st.integers(0, 2 * config["hidden_size"]))
    if config["qk_layernorm"]:  # the class ties the three
        residual = heads * queries * new_head_dim
    chain_ = [
        grow("residual", residual),
        grow("head_dim", new_head_dim),
        grow("heads", heads * queries),
        grow("ffn", config["intermediate_size"] + draw(st.integers(0, 40))),
        deepen(to=config["num_hidden_layers"] + draw(st.integers(0, 3)), order=draw(st.sampled_from(ORDERS))),
    ]
    chain_ = draw(st.permutations(chain_))
    if draw(st.booleans()):
        chain_ = (
            [
                *chain_,
                widen("residual", factor=2, init="tile", shares="equal"),
                widen("heads", factor=2, init="tile", shares="equal"),
            ]
            if not config["qk_layernorm"]
            else chain_
        )
    return chain(*chain_)


@examples(30, 220)
@given(geometries(), st.integers(0, 2**31))
def test_any_geometry_any_order_any_init(geometry, seed):
    config, operator = geometry
    model = random_phi(seed=seed, **config)
    try:
        larger = grown(model, operator, seed=seed)
    except RecipeError as error:
        if "would not be read" not in str(error):  # of the copies of a unit, at most one may be unread
            raise
        reject()
    assert relative_error(model, larger) <= EXACT


MEANT_FOR_PHI = (None, "microsoft/phi-1_5", "examples/phi-mini")


@pytest.mark.parametrize(
    "path", [p for p in shipped_recipes() if load_recipe(p).source in MEANT_FOR_PHI], ids=lambda path: path.stem
)
def test_every_shipped_recipe_keeps_its_promise(path):
    """On a model of an eighth of Phi-1.5's ratios: the recipe's sizes scaled down, nothing else changed."""
    recipe = load_recipe(path)
    if "phi-1.5" in path.stem:
        recipe = scaled_down(recipe, 16)
    model = random_phi(
        hidden_size=128, num_attention_heads=2, intermediate_size=512, num_hidden_layers=6, partial_rotary_factor=0.5
    )
    larger = grown(model, recipe)
    plan_is_preserving = recipe.grow(architecture(model.config.to_dict()), 0).preserving
    assert plan_is_preserving == ("reuse" not in path.stem)
    error = relative_error(model, larger)
    assert error <= EXACT if plan_is_preserving else error > 1e-2


def scaled_down(recipe, by):
    """The recipe for a model of 1/by the width and a quarter of the layers; heads stay 64 wide."""

    def size(axis, value):
        return value if axis == "head_dim" else value // by

    content = recipe.to_dict()
    for step in content["steps"]:
        if step["op"] == "deepen":
            step["to"] //= 4
        elif step["op"] == "reuse":
            step["to"] = {axis: size(axis, value) for axis, value in step["to"].items()}
            step["layers"] //= 4
        else:
            step["to"] = size(step["axis"], step["to"])
    return growth.Recipe.model_validate({**content, "expect": {}, "name": recipe.name})
