"""Operators: chains, layer orders, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from growth import RecipeError
from growth.architectures import architecture
from growth.arrays.tensor_info import TensorInfo
from growth.operators import break_symmetry, chain, deepen, reuse, upcycle, widen
from growth.operators.base import Growth, Layer
from growth.operators.deepen import layer_order
from growth.operators.reuse import source_units
from growth.planning.plan import make_plan
from tests.support.configs import start
from tests.support.families import twice
from tests.support.laws import exact_or_refused

ORDERS = ("interleave", "stack", "append", "prepend", "middle", "gopher")


def same(a, b):
    assert a.layers == b.layers
    assert a.steps == b.steps
    for axis in a.expansions:
        for vector in ("source", "write", "read"):
            np.testing.assert_allclose(
                getattr(a.expansions[axis], vector), getattr(b.expansions[axis], vector), rtol=1e-12
            )


OPERATORS = (
    widen("residual", to=40, init="tile", shares="equal"),
    widen("residual", factor=1.5, shares="random", init="tile"),
    widen("residual", factor=2, init="pad", norm_eps="rescale"),
    widen("ffn", factor=1.25, init="sample", seed=3, shares="equal"),
    widen("heads", to=12, init="tile", shares="equal"),
    widen("head_dim", to=10, init="pad"),
    deepen(to=5, order="stack"),
    deepen(factor=2),
    deepen(factor=2, init="copy", order="gopher"),
)
some = st.lists(st.sampled_from(OPERATORS), max_size=3)


@given(some, some)
def test_a_chain_is_its_operators_in_sequence(first, second):
    try:
        by_hand = start()
        for operator in [*first, *second]:
            by_hand = operator(by_hand)
    except RecipeError:
        return
    same(chain(*first, *second)(start()), by_hand)
    same(chain(chain(*first), chain(*second))(start()), by_hand)


LARGER = (
    widen("residual", factor=1.5, shares="random", init="tile"),
    widen("residual", to=70, init="pad", norm_eps="rescale"),
    widen("ffn", factor=1.25, init="sample", seed=3, shares="equal"),
    widen("heads", to=12, init="tile", shares="equal"),
    deepen(to=6, order="stack"),
    deepen(factor=2, init="copy", order="gopher"),
)


@pytest.mark.parametrize("second", LARGER)
@pytest.mark.parametrize(
    "first",
    [
        widen("residual", factor=2, init="tile", shares="equal"),
        widen("ffn", to=60, init="tile", shares="equal"),
        deepen(to=5),
    ],
)
def test_growths_compose_as_operators_chain(first, second):
    """Growing by one recipe, and then the result by another, is the growth by both."""
    before = first(start())
    sizes = {"hidden_size": "residual", "intermediate_size": "ffn", "head_dim": "head_dim"}
    config = {key: before.sizes[axis] for key, axis in sizes.items()} | {"num_hidden_layers": len(before.layers)}
    after = second(start(**config))
    same(before.then(after), second(before))


@given(st.sampled_from(ORDERS), st.integers(1, 30), st.integers(0, 70))
def test_orders_use_every_layer_and_only_those(order, depth, extra):
    sources = layer_order(order, depth, depth + extra)
    assert len(sources) == depth + extra
    assert set(sources) == set(range(depth))


@given(st.sampled_from(ORDERS), st.integers(1, 12), st.integers(0, 30))
def test_identity_layers_leave_the_source_in_order(order, depth, extra):
    growth = deepen(to=depth + extra, order=order)(start(num_hidden_layers=depth))
    assert [layer.source for layer in growth.layers if not layer.silent] == list(range(depth))
    assert growth.preserving


# ------------------------------------------------- over all families

test_unequal_shares_keep_the_logits = exact_or_refused(break_symmetry(), after=twice)
test_masked_weights_keep_the_logits = exact_or_refused(break_symmetry(method="mask"), after=twice)
test_upcycling_keeps_the_logits = exact_or_refused(
    upcycle(experts=4, top_k=2),
    refused="no matching mixture family|text models on their own|already a mixture|has no biases|window layer by layer",
)


# ------------------------------------------------- layers


def test_where_new_layers_stand():
    def silent(order):
        return [layer.silent for layer in deepen(to=5, order=order)(start()).layers]

    assert silent("prepend") == [True, True, False, False, False]
    assert silent("append") == silent("stack") == [False, False, False, True, True]
    assert silent("interleave") == [False, True, False, True, False]


@pytest.mark.parametrize("depth", range(1, 20))
def test_gopher_stays_within_the_source_at_every_depth(depth):
    """round(i L / N) is L itself for the last layer of an even doubling."""
    sources = layer_order("gopher", depth, 2 * depth)
    assert max(sources) == depth - 1
    assert sources == sorted(sources)


def test_a_copy_of_an_identity_layer_is_one():
    growth = chain(deepen(to=6), deepen(factor=2, init="copy"))(start())
    assert growth.layers[2:4] == (Layer(0, True), Layer(0, True))


def test_lossy_steps_say_so():
    assert not deepen(to=5, init="copy")(start()).preserving
    assert not reuse(to={"ffn": 60})(start()).preserving
    assert chain(widen("ffn", to=60, init="tile", shares="equal"), deepen(to=5))(start()).preserving
    lossy = chain(
        widen("ffn", to=60, init="tile", shares="equal"),
        deepen(to=5, init="copy"),
        widen("residual", factor=2, init="tile", shares="equal"),
    )(start())
    assert [step.preserving for step in lossy.steps] == [True, False, True]
    assert not lossy.preserving


def test_reuse_places_old_units():
    assert source_units(4, 8, "tile", "edge").tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert source_units(4, 8, "tile", "middle").tolist() == [2, 3, 0, 1, 2, 3, 0, 1]
    assert source_units(4, 6, "submatrix", "edge").tolist() == [0, 1, 2, 3, -1, -1]


def test_sampling_and_shares_follow_the_seed():
    def sources(seed):
        return widen("ffn", to=80, init="sample", seed=seed, shares="equal")(start()).expansions["ffn"].source.tolist()

    assert sources(1) == sources(1) != sources(2)


REFUSALS = [
    (
        widen("heads", to=14, init="tile", shares="equal"),
        "Cannot widen query heads from 8 to 14: each KV head has 4 query heads.* Use to: 12 or to: 16",
    ),
    (widen("heads", to=10, init="tile", shares="equal"), "Use to: 12"),
    (widen("residual", to=31, init="tile", shares="equal"), "Cannot shrink residual from 32 to 31"),
    (widen("ffn", multiple=-1), "Cannot grow ffn to a multiple of -1: use a whole number from 1 on"),
    (widen("residual", factor=0.5, init="tile", shares="equal"), "Cannot shrink residual from 32 to 16"),
    (widen("residual", factor=1.3, init="tile", shares="equal"), r"41\.6 is not a whole number. Use to: 41 or to: 42"),
    (widen("residual", init="tile", shares="equal"), "needs exactly one of 'to' .*'factor'.*'multiple'"),
    (
        widen("residual", to=40, factor=2, init="tile", shares="equal"),
        "needs exactly one of 'to' .*'factor'.*'multiple'",
    ),
    (
        widen("width", to=40, init="tile", shares="equal"),
        "Cannot widen 'width': the axes of this family are residual, ffn, heads, queries, head_dim, vocab",
    ),
    (widen("rotary", to=40, init="tile", shares="equal"), "Cannot widen rotary channels: .* Widen heads"),
    (
        widen("ffn", to=60, norm_eps="rescale", init="tile", shares="equal"),
        "norm_eps: rescale needs an axis that a norm runs over",
    ),
    (widen("ffn", to=60, init="pad", shares="random"), "needs copies that share a signal"),
    (widen("vocab", to=70, shares="random"), "needs copies that share a signal"),
    (widen("ffn", to=60, init="zeros"), "widen has no init 'zeros': use one of tile, sample, pad, mean, random"),
    (widen("ffn", to=60, init="mean"), "init: mean is for vocab"),
    (widen("ffn", to=60, logit_bias=-5, init="tile", shares="equal"), "logit_bias is the bias of new tokens"),
    (deepen(to=2), "Cannot shrink layers from 3 to 2"),
    (deepen(to=5, order="spiral"), "deepen has no order 'spiral'"),
    (deepen(to=5, init="zero"), "deepen has no init 'zero'"),
    (deepen(order=[0, 1, 3]), "source layer 3, but the source has layers 0 to 2"),
    (deepen(order=[0, 1]), "Cannot shrink layers from 3 to 2"),
    (deepen(order=[0, 2, 1, 1]), r"order \[0, 2, 1, 1\] does not list source layer 2 after the layers before it"),
    (deepen(order=[0, 1, 2, 2], to=5), "order lists 4 layers, but the size asked for is 5"),
    (break_symmetry(), "finds no copies"),
    (chain(widen("ffn", to=60, init="pad"), break_symmetry()), "finds no copies"),
    (chain(widen("ffn", factor=2, shares="first"), break_symmetry()), "finds no copies that share a signal"),
    (
        widen("ffn", factor=3, shares="first"),
        "2 copies of a unit would not be read.* Use shares: random or shares: mask or init: pad",
    ),
    (chain(*[widen("heads", factor=2, shares="first")] * 2), "3 copies of a unit would not be read"),
    (
        chain(widen("ffn", factor=2, shares="random"), widen("ffn", factor=2, shares="first")),
        "2 copies of a unit would not be read",
    ),
    (
        chain(widen("ffn", factor=2, shares="first"), widen("ffn", factor=2, shares="random")),
        "2 copies of a unit would not be read",
    ),
    (widen("ffn", to=48 * 2**14 + 48, init="tile"), "at most 16,384 copies of a unit.* Use init: pad"),
    (widen("ffn", to=60, shares=""), "widen has no shares ''"),
    (widen("ffn", to=60, init=""), "widen has no init ''"),
    (chain(widen("ffn", to=60, init="tile", shares="equal"), break_symmetry(method="luck")), "no method 'luck'"),
    (reuse(to={"ffn": 60}, method="tile", at="corner"), "reuse has no at 'corner'"),
    (reuse(to={"ffn": 40}), "Cannot shrink ffn from 48 to 40"),
]


@pytest.mark.parametrize(
    ("operator", "message"), REFUSALS, ids=lambda value: value[:30] if isinstance(value, str) else ""
)
def test_refusals_say_what_and_what_instead(operator, message):
    with pytest.raises(RecipeError, match=message):
        operator(start())


def test_heads_that_turn_whole_have_nothing_to_copy():
    with pytest.raises(RecipeError, match=r"all 8 channels of a head are rotary.* init: pad"):
        widen("head_dim", to=10, init="tile", shares="equal")(start(partial_rotary_factor=1.0))


def test_copies_that_must_be_read_in_equal_shares_are_not_said_to_be_divided():
    """OLMo's norm has no gain that could undo unequal copies."""
    config = AutoConfig.for_model("olmo", hidden_size=32, num_attention_heads=4, intermediate_size=48).to_dict()
    source = architecture(config)
    headers = {name: TensorInfo(name, "F32", shape) for name, shape in source.shapes().items()}

    def plan(**options):
        return make_plan(source, widen("residual", init="tile", **options)(Growth.start(source)), headers)

    with pytest.raises(RecipeError, match=r"olmo must read them in equal shares.* init: pad, an integer ratio"):
        plan(to=48)
    assert any(tensor_map.is_split for tensor_map in plan(to=64).tensors)
    assert not any(tensor_map.is_split for tensor_map in plan(to=48, shares="equal").tensors)


def test_symmetry_is_broken_where_it_can_be():
    config = AutoConfig.for_model("olmo", hidden_size=32, num_attention_heads=4, intermediate_size=48).to_dict()
    source = architecture(config)
    wider = [widen(axis, factor=1.5, init="tile", shares="equal") for axis in ("residual", "ffn")]
    step = chain(*wider, break_symmetry())(Growth.start(source)).steps[-1]
    assert "of ffn" in step.operator
    assert "copies along residual must be read in equal shares" in step.why
    with pytest.raises(RecipeError, match="finds no copies that share a signal and can be told apart"):
        chain(wider[0], break_symmetry())(Growth.start(source))
