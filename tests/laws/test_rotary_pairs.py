"""rope_pairs: spread. In a head m times as large, old rotary pair k is pair k·m at the same base: exact in every family."""

from dataclasses import replace

import pytest
import torch

import growth
from growth import RecipeError
from growth.architectures import architecture
from growth.architectures.rotary import nested_rope
from growth.checkpoints.stock_parameters import auto_class
from growth.operators import chain, deepen, widen
from growth.operators.base import Growth
from growth.planning.check import assert_laws
from growth.planning.recipe import parse_recipe
from growth.verification.float64 import proof_grade
from tests.support.families import all_cases, random_model, stated_config, steps_of, table, typical
from tests.support.models import EXACT, grown, relative_error, save
from tests.support.plans import plan_of
from tests.support.selection import one_of_each

CASES = {case.name: case for case in all_cases()}
LISTED = {"yarn", "dynamic", "longrope"}  # types of RoPE whose frequencies depend on more than base and share


def rope_types(config):
    nested = nested_rope(config)
    forms = [form for form in nested.values() if isinstance(form, dict)] or [nested]
    return {form.get("rope_type", form.get("type", "default")) for form in forms}


def rotary_axis(built):
    return built.head_channels


def grows(case):
    built = table(case)
    axis = rotary_axis(built)
    padded = f"{axis.name}, pad" not in case.refused
    free = bool(axis.rotary_pairs) and not (axis.refusal or axis.one_stride)
    return padded and free and not rope_types(built.config) & LISTED


def square(case):
    """Whether a config states head_dim as the quotient of hidden_size and the number of heads."""
    return "residual" in dict(steps_of(case, table(case).rotary_axis))


def spread(case, ratio=2):
    """The operator; with the residual stream, where that is needed."""
    along = [widen("residual", factor=ratio)] if square(case) else []
    return chain(*along, widen(table(case).rotary_axis, factor=ratio, rope_pairs="spread"))


ROTARY = [(case,) for case in CASES.values() if grows(case)]


def kind(case):
    axis = rotary_axis(table(case))
    return axis.rotary_pairs, axis.partly_rotary, axis.norm, tuple(sorted(rope_types(stated_config(case))))


def over(*kinds):
    return pytest.mark.parametrize("case", one_of_each(ROTARY, *kinds, ids=lambda case: case.name))


def frequencies(model):
    """The frequencies that the stock class computes, one vector for each type of layer, or their sines at position 1."""
    buffers = dict(model.named_buffers())
    stated = {n: buffer for n, buffer in buffers.items() if n.endswith("inv_freq") and "original" not in n}
    tables = {n: buffer for n, buffer in buffers.items() if n.endswith("embed_positions")}  # sines, then cosines
    return stated or {name: buffer[1].chunk(2)[0] for name, buffer in tables.items()}


@over(typical, kind)
@pytest.mark.parametrize("ratio", [2, 3])
def test_the_function_and_the_frequencies_stay_at_the_same_base(case, ratio):
    model = random_model(case)
    larger = grown(model, spread(case, ratio))
    assert relative_error(model, larger) <= EXACT
    old, new = frequencies(model), frequencies(larger)
    assert old.keys() == new.keys()
    assert old
    for name, values in old.items():
        assert len(new[name]) == ratio * len(values)
        assert torch.equal(new[name][::ratio], values)


@over(typical)
def test_the_rotary_parameters_of_the_config_stay(case):
    source = stated_config(case)
    target = plan_of(source, spread(case)).config
    for key in (key for key in source if key.startswith("rope_")):
        assert without_share(target[key]) == without_share(source[key])
    old, new = (rotary_axis(architecture(config)) for config in (source, target))
    assert (new.size, new.fixed) == (2 * old.size, 2 * old.fixed)


def without_share(value):
    """A value without the share of a head that is rotary, which may be written with another rounding."""
    if not isinstance(value, dict):
        return value
    return {key: without_share(inner) for key, inner in value.items() if key != "partial_rotary_factor"}


@over(kind)
def test_by_file(case, tmp_path):
    model = random_model(case)
    source = save(model, tmp_path / "source")
    along = "  - {op: widen, axis: residual, factor: 2}\n" if square(case) else ""
    axis = table(case).rotary_axis
    steps = f"{along}  - {{op: widen, axis: {axis}, factor: 2, rope_pairs: spread}}\n"
    steps += "" if "layers" in case.refused else "  - {op: deepen, to: 5}\n"
    growth.grow(parse_recipe(f"description: spread\nsteps:\n{steps}", "spread.yaml"), source, tmp_path / "out")
    with proof_grade():
        options = {"dtype": "auto", "attn_implementation": "eager", "experts_implementation": "eager"}
        large = auto_class(model.config).from_pretrained(tmp_path / "out", **options)
    assert relative_error(model, large) <= EXACT
    assert growth.verify(source, tmp_path / "out", tokens=32).passed
    assert growth.verify_weights(source, tmp_path / "out").passed


# ------------------------------------------------- composition


WHOLE = ["llama, untied", "llama, rope scaling", "qwen3, tied", "gemma3_text, untied, biases, two bases"]
PARTIAL = ["phi, untied", "phi3, in part, old form of the config", "glm, one query a head, head_dim 12"]
NEIGHBOURS = ["cohere, biases, head_dim 6", "cohere2, tied"]


@pytest.mark.parametrize("name", WHOLE + PARTIAL + NEIGHBOURS)
def test_two_steps_are_one(name):
    start = Growth.start(table(CASES[name]))
    twice = chain(*(widen("head_dim", factor=ratio, rope_pairs="spread") for ratio in (2, 3)))(start)
    once = widen("head_dim", factor=6, rope_pairs="spread")(start)
    assert (twice.expansions["head_dim"].source == once.expansions["head_dim"].source).all()
    assert twice.config == once.config


@pytest.mark.parametrize("name", WHOLE + PARTIAL + NEIGHBOURS)
@pytest.mark.parametrize("spread_first", [True, False])
def test_it_composes_with_channels_that_follow_the_old_ones(name, spread_first):
    model = random_model(CASES[name])
    size = model.config.head_dim if hasattr(model.config, "head_dim") else 8
    following = widen("head_dim", to=(2 * size if spread_first else size) + 4, init="pad")
    spreading = widen("head_dim", factor=2, rope_pairs="spread")
    steps = (spreading, following) if spread_first else (following, spreading)
    assert relative_error(model, grown(model, chain(*steps))) <= EXACT


@pytest.mark.parametrize("name", PARTIAL)
@pytest.mark.parametrize("spread_first", [True, False])
def test_it_composes_with_copies_of_channels_that_are_not_rotary(name, spread_first):
    model = random_model(CASES[name])
    size = architecture(stated_config(CASES[name])).axes["head_dim"].size
    copying = widen("head_dim", to=(2 * size if spread_first else size) + 2, init="tile", shares="random")
    spreading = widen("head_dim", factor=2, rope_pairs="spread")
    steps = (spreading, copying) if spread_first else (copying, spreading)
    assert relative_error(model, grown(model, chain(*steps))) <= EXACT


@pytest.mark.parametrize("name", WHOLE + PARTIAL + NEIGHBOURS)
def test_it_composes_with_other_axes_and_layers(name):
    model = random_model(CASES[name])
    heads = (table(CASES[name]).axes["heads"].size + 1) * table(CASES[name]).axes["queries"].size
    others = [widen("residual", to=48), widen("ffn", to=60, init="tile"), widen("heads", to=heads), deepen(factor=2)]
    assert (
        relative_error(model, grown(model, chain(*others, widen("head_dim", factor=2, rope_pairs="spread")))) <= EXACT
    )
    assert (
        relative_error(model, grown(model, chain(widen("head_dim", factor=2, rope_pairs="spread"), *others))) <= EXACT
    )


# ------------------------------------------------- the laws, and what is refused


@over(kind)
def test_pairs_elsewhere_cannot_claim_to_keep_the_function(case):
    built = table(case)
    larger = spread(case)(Growth.start(built))
    assert_laws(larger, built.depth)
    if built.head_channels.fixed > 2:  # a single pair is pair 0, wherever others go
        with pytest.raises(AssertionError, match=f"{built.rotary_axis}: units whose place is fixed"):
            assert_laws(replace(larger, rope_stride=1), built.depth)


REFUSALS = [
    (
        "llama, untied",
        {"axis": "head_dim", "to": 20},
        r"from 8 to 20 .* 20 / 8 = 2\.5. Use to: 16 or to: 24 or rope_pairs: first",
    ),
    ("llama, untied", {"axis": "head_dim", "to": 10}, r"10 / 8 = 1\.25. Use to: 16 or rope_pairs: first"),
    ("llama, untied", {"axis": "ffn", "factor": 2}, "ffn from .* only channels of heads with rotary embeddings"),
    ("smollm3, no layer turns", {"axis": "head_dim", "factor": 2}, "only channels of heads with rotary embeddings"),
    ("phi, untied", {"axis": "head_dim", "factor": 2, "init": "tile"}, "by tile with rope_pairs: .* Use init: pad"),
    (
        "minimax_m3_vl_text, indexers, one dense layer, half rotary",
        {"axis": "head_dim", "factor": 2},
        "as many channels of an indexer as of a head",
    ),
    ("phi3, longrope", {"axis": "head_dim", "factor": 2}, "with rope_type 'longrope'.* default or linear or llama3"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), REFUSALS)
def test_what_has_no_such_pairs_is_refused_with_the_reason(name, arguments, message):
    with pytest.raises(RecipeError, match=message):
        widen(**arguments, rope_pairs="spread")(Growth.start(table(CASES[name])))


@pytest.mark.parametrize("rope_type", sorted(LISTED))
def test_other_types_of_rope_are_refused(rope_type):
    form = {"rope_type": rope_type, "factor": 2.0, "rope_theta": 1e4}
    built = architecture({"model_type": "llama", **CASES["llama, untied"].config, "rope_parameters": form})
    with pytest.raises(RecipeError, match=f"'{rope_type}'"):
        widen("head_dim", factor=2, rope_pairs="spread")(Growth.start(built))


def test_a_word_that_is_none_of_the_two_is_refused():
    with pytest.raises(RecipeError, match="widen has no rope_pairs 'last': use one of first, spread"):
        widen("head_dim", factor=2, rope_pairs="last")(Growth.start(table(CASES["llama, untied"])))


def test_channels_that_are_all_rotary_have_no_copies_after_a_growth_either():
    with pytest.raises(RecipeError, match="all 10 channels of a head are rotary"):
        chain(widen("head_dim", to=10, init="pad"), widen("head_dim", to=12, init="tile"))(
            Growth.start(table(CASES["llama, untied"]))
        )
