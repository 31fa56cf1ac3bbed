"""growth recipe: everything that stands in the way in one error, a lossy way round, and no recipe that fails to plan."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growth import ConfigError, GrowthError, RecipeError
from growth.architectures import architecture
from growth.planning.derive import derive_recipe, recipe_text
from growth.planning.recipe import parse_recipe
from tests.support.configs import SOURCES
from tests.support.families import all_cases, stated_config
from tests.support.plans import plan_of
from tests.support.selection import examples

STATED = {"hidden_act": "silu", "attention_bias": False, "max_position_embeddings": 8192}
SMOLLM2 = SOURCES["HuggingFaceTB/SmolLM2-360M"] | STATED
CASES = {case.name: case for case in all_cases()}
LOSSY = {"hidden_act": "gelu", "rope_theta": 1e12, "rms_norm_eps": 2.0}
IMPOSSIBLE = {
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "attention_bias": True,
}


def obstacles_to(source, target, **options):
    with pytest.raises(RecipeError) as refused:
        derive_recipe(source, target, **options)
    return str(refused.value).splitlines()


def test_everything_that_stands_in_the_way_is_named_at_once_and_apart():
    lines = obstacles_to(SMOLLM2, SMOLLM2 | IMPOSSIBLE | LOSSY)
    middle = next(at for at, line in enumerate(lines) if "--lossy" in line)
    impossible, lossy = lines[1:middle], lines[middle + 1 :]
    for lasting in (
        "layers: 32 in the source, 2 in the target. Growth only makes models larger.",
        "KV heads: 5 in the source, 1 in the target.",
        "ffn: 2560 in the source, 64 in the target.",
        "attention_bias: False in the source, True in the target.",
    ):
        assert sum(line.startswith(f"  - {lasting}") for line in impossible) == 1
    for removable in (
        "hidden_act: 'silu' in the source, 'gelu' in the target.",
        "rope_theta: 100000.0 in the source, 1000000000000.0 in the target.",
        "rms_norm_eps: 1e-05 in the source, 2.0 in the target.",
    ):
        assert sum(line.startswith(f"  - {removable}") for line in lossy) == 1
    assert (len(impossible), len(lossy)) == (4, 3)


def test_a_lossy_recipe_does_not_pass_what_nothing_removes():
    lasting = obstacles_to(SMOLLM2, SMOLLM2 | IMPOSSIBLE | LOSSY, lossy=True)
    everything = obstacles_to(SMOLLM2, SMOLLM2 | IMPOSSIBLE | LOSSY)
    assert lasting == everything[: len(lasting)]
    assert everything[len(lasting)].startswith("It would also change the function. With --lossy")


def test_a_lossy_recipe_takes_the_targets_values_and_says_so():
    target = SMOLLM2 | LOSSY | {"hidden_size": 1024 * 15 // 16 * 2, "num_hidden_layers": 40, "head_dim": 64}
    recipe, remarks = derive_recipe(SMOLLM2, target, lossy=True)
    assert [remark.split(":")[0] for remark in remarks] == ["LOSSY"] * 3
    again = parse_recipe(recipe_text(recipe, remarks), "derived.yaml")
    assert again.steps[-1].op == "configure"
    assert again.description.endswith("lossy")
    plan = plan_of(SMOLLM2, again)
    assert not plan.preserving
    assert {key: plan.config[key] for key in LOSSY} == LOSSY


def test_heads_that_are_wider_at_the_same_base_by_a_fraction_are_named_as_such():
    lines = obstacles_to(SMOLLM2, SMOLLM2 | {"head_dim": 96})
    assert lines[1].startswith("  - head_dim: 64 in the source, 96 in the target. ")
    assert "only with rope_theta = 3.16228e+07; the source has 100000 and the target 100000" in lines[1]
    assert lines[1].endswith("or choose a whole multiple of head_dim at the source's rope_theta.")


def test_heads_that_are_a_whole_multiple_as_wide_keep_their_base():
    recipe, remarks = derive_recipe(SMOLLM2, SMOLLM2 | {"head_dim": 128})
    assert remarks == []
    assert [(step.axis, step.to, step.rope_pairs) for step in recipe.steps] == [("head_dim", 128, "spread")]
    plan = plan_of(SMOLLM2, recipe)
    assert plan.preserving
    assert plan.config["rope_theta"] == SMOLLM2["rope_theta"]


def test_a_longer_context_of_rotary_positions_is_taken_from_the_target():
    recipe, remarks = derive_recipe(SMOLLM2, SMOLLM2 | {"max_position_embeddings": 16384})
    assert remarks == []
    assert [step.op for step in recipe.steps] == ["configure"]
    plan = plan_of(SMOLLM2, recipe)
    assert plan.preserving
    assert plan.config["max_position_embeddings"] == 16384


@pytest.mark.parametrize(
    "change",
    [
        {"max_position_embeddings": 1024},  # shorter
        {"max_position_embeddings": 16384, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    ],
)
def test_another_context_is_remarked_where_it_is_shorter_or_sets_the_frequencies(change):
    source = SMOLLM2 | {key: value for key, value in change.items() if key == "rope_scaling"}
    recipe, remarks = derive_recipe(source, source | change)
    assert [step.op for step in recipe.steps] == ["deepen"]
    assert remarks == [
        f"the result keeps max_position_embeddings: 8192; the target has {change['max_position_embeddings']}"
    ]


def test_learned_positions_grow():
    source = stated_config(CASES["gpt2, tied"])
    recipe, _ = derive_recipe(source, source | {"n_positions": source["n_positions"] + 16})
    assert [(step.op, step.axis) for step in recipe.steps] == [("widen", "positions")]


def test_a_padded_vocabulary_starts_as_the_mean_of_the_old_tokens():
    recipe, _ = derive_recipe(SMOLLM2, SMOLLM2 | {"vocab_size": 49280})
    assert [(step.axis, step.to, step.init) for step in recipe.steps] == [("vocab", 49280, "mean")]
    assert plan_of(SMOLLM2, recipe).keeps_logits


CHANGES = [
    ("granite, untied", {"logits_scaling": 4.0}),
    ("mistral, sliding window", {"sliding_window": 8}),
    ("mistral, sliding window", {"sliding_window": None}),
    ("qwen3, untied, biases, windows", {"layer_types": ["full_attention"] * 3}),
    ("smollm3, untied, listed", {"no_rope_layers": [0, 1, 1]}),
    ("llama, rope scaling", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    ("llama, rope scaling", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7e5}}),
    ("gemma, tied", {"head_dim": 10}),
    ("gemma2, tied, alternating windows", {"final_logit_softcapping": None}),
    ("gpt_neox, parallel", {"hidden_act": "relu"}),
    ("starcoder2, tied", {"norm_epsilon": 2.0}),
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_a_lossy_recipe_arrives_at_the_targets_config(name, change):
    source = stated_config(CASES[name])
    target = source | change
    with pytest.raises(RecipeError, match="With --lossy"):
        derive_recipe(source, target)
    recipe, _ = derive_recipe(source, target, lossy=True)
    plan = plan_of(source, recipe)
    assert not plan.preserving
    again, remarks = derive_recipe(plan.config, target)
    assert ([step.op for step in again.steps], remarks) == (["deepen"], [])  # nothing is left to do


# ------------------------------------------------- a recipe that is derived can be planned


SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
OTHERS = {
    "head_dim": (4, 8, 12, 16),
    "vocab_size": (64, 80, 97),
    "max_position_embeddings": (32, 64, 128),
    "rms_norm_eps": (1e-6, 1e-5),
    "tie_word_embeddings": (False, True),
    "sliding_window": (None, 4, 8),
}


def changed(config):
    """Some sizes multiplied by small ratios, and other values of some other keys that the config states."""
    ratios = st.sampled_from([0.5, 1, 1, 1.25, 1.5, 2, 3])
    scaled = {key: ratios.map(lambda by, key=key: math.ceil(config[key] * by)) for key in SIZES if config.get(key)}
    others = {key: st.sampled_from(values) for key, values in OTHERS.items() if key in config}
    return st.fixed_dictionaries({}, optional=scaled | others)


@examples(40, 300)
@given(st.data())
def test_a_derived_recipe_is_one_that_plans(data):
    source = stated_config(CASES[data.draw(st.sampled_from(sorted(CASES)))])
    target = source | data.draw(changed(source))
    lossy = data.draw(st.booleans())
    try:
        wanted = architecture(target)
    except ConfigError:
        return
    try:
        recipe, remarks = derive_recipe(source, target, lossy=lossy)
    except GrowthError:
        return
    plan = plan_of(source, parse_recipe(recipe_text(recipe, remarks), "derived.yaml"))
    assert plan.target.shapes() == wanted.example_shapes()
    assert plan.keeps_logits or lossy
    recipe.check(plan.target.config)
