"""configure: other values of config keys, labelled as lossy, and never a key that decides about weights."""

import pytest
import torch

import growth
from growth import RecipeError
from growth.operators import chain, configure, deepen, rescale, untie, widen
from growth.operators.base import Growth
from growth.planning.recipe import parse_recipe
from tests.support.configs import SOURCES
from tests.support.families import all_cases, random_model, stated_config, table, typical
from tests.support.plans import plan_of
from tests.support.selection import one_of_each

SMOLLM2 = SOURCES["HuggingFaceTB/SmolLM2-360M"]

CASES = {case.name: case for case in all_cases()}


def test_a_key_is_stated_with_another_value_and_the_plan_says_that_it_is_lossy():
    plan = plan_of(SMOLLM2, configure(keys={"rope_theta": 5e6}))
    assert plan.config["rope_theta"] == 5e6
    assert not plan.preserving
    assert not plan.keeps_logits
    assert "rope_theta" not in plan.kept
    step = plan.growth.steps[-1]
    assert step.operator == "configure rope_theta 100000 → 5000000.0"
    assert "(lossy)" in step.why


def test_a_rotary_parameter_is_stated_where_the_config_has_it():
    config = {**SMOLLM2, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}
    stated = plan_of(config, configure(keys={"rope_theta": 5e6})).config
    assert stated["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e6}
    only_there = {key: value for key, value in config.items() if key != "rope_theta"}
    stated = plan_of(only_there, configure(keys={"rope_theta": 5e6})).config
    assert stated["rope_parameters"]["rope_theta"] == 5e6
    assert "rope_theta" not in stated


@pytest.mark.parametrize(
    "later",
    [widen("ffn", to=2624), rescale(norm_eps=1e-3), configure(keys={"rope_theta": 3e5}), deepen(factor=2)],
    ids=["widen", "rescale", "configure", "deepen"],
)
def test_no_step_follows_configure_which_it_could_change(later):
    with pytest.raises(RecipeError, match=r"follows configure \(rope_theta\).*Make configure the last step"):
        plan_of(SMOLLM2, chain(configure(keys={"rope_theta": 2e5}), later))


def test_the_weights_are_those_of_the_other_steps():
    plan = plan_of(SMOLLM2, chain(widen("ffn", to=2624), configure(keys={"rope_theta": 3e5})))
    plain = plan_of(SMOLLM2, widen("ffn", to=2624))
    assert plan.config == {**plain.config, "rope_theta": 3e5}
    assert [row.shape for row in plan.tensors] == [row.shape for row in plain.tensors]


def test_a_value_that_another_step_would_change_is_another_value():
    wider = chain(widen("head_dim", to=128), configure(keys={"rope_theta": SMOLLM2["rope_theta"]}))
    plan = plan_of(SMOLLM2, wider)
    assert not plan.preserving
    assert plan.config["rope_theta"] == SMOLLM2["rope_theta"]
    assert plan.growth.steps[-1].operator.endswith("rope_theta 10000000000.0 → 100000.0")


def test_a_growth_that_ends_in_configure_is_composed_only_as_the_later_one():
    first, last = untie(), configure(keys={"rope_theta": 3e5})
    start = Growth.start(table(CASES["llama, tied"]))
    assert first(start).then(last(first(start))).settings == {"rope_theta": 3e5}
    with pytest.raises(RecipeError, match="follows configure"):
        last(start).then(first(start))


def test_a_whole_number_is_a_float_where_the_config_has_a_float():
    stated = plan_of(SMOLLM2, configure(keys={"rms_norm_eps": 1})).config
    assert type(stated["rms_norm_eps"]) is float


@pytest.mark.parametrize("keys", [{"max_position_embeddings": 16384}, {"attention_dropout": 0.5}])
def test_what_the_function_does_not_depend_on_is_exact(keys):
    plan = plan_of(SMOLLM2, configure(keys=keys))
    assert plan.preserving
    assert plan.config == {**SMOLLM2, **keys}


def test_a_longest_context_that_sets_frequencies_is_lossy():
    dynamic = {**SMOLLM2, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    assert not plan_of(dynamic, configure(keys={"max_position_embeddings": 16384})).preserving


LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def test_a_longest_context_is_exact_with_llama3_only_if_the_original_length_is_stated():
    """transformers takes the longest context for it otherwise."""
    longer = configure(keys={"max_position_embeddings": 16384})
    stated = {**LLAMA3, "original_max_position_embeddings": 8192}
    config = {key: value for key, value in SMOLLM2.items() if key != "rope_theta"}
    assert plan_of({**config, "rope_parameters": stated}, longer).preserving
    assert not plan_of({**config, "rope_parameters": LLAMA3}, longer).preserving


def test_planning_changes_neither_the_step_nor_the_source():
    keys = {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}
    config = {**SMOLLM2, "rope_scaling": None}
    plan_of(config, configure(keys=keys))
    assert keys == {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}
    assert config == {**SMOLLM2, "rope_scaling": None}


@pytest.mark.parametrize(
    ("older", "keys"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, {"rope_parameters": {"factor": 4.0}}),
        ({}, {"rope_type": "linear"}),
    ],
)
def test_a_key_that_another_spelling_overrides_is_refused(older, keys):
    with pytest.raises(RecipeError, match=r"other keys decide|ignores rope_type"):
        plan_of({**SMOLLM2, **older}, configure(keys=keys))


REFUSED = [
    ("llama, untied", {"rope_theta": float("nan")}, "NaN and infinity"),
    ("cohere2, tied", {"sliding_window": None}, "sliding_window = None .* cannot run such a cohere2"),
    ("falcon, one group", {"hidden_dropout": 3.0}, "hidden_dropout = 3.0"),
    ("llama, untied", {"attention_dropout": -1.0}, "attention_dropout = -1.0"),
    ("llama, untied", {"hidden_size": 64}, "hidden_size = 64 sets a size"),
    ("llama, untied", {"num_hidden_layers": 2, "rope_theta": 1e6}, "configure: num_hidden_layers = 2 sets a size"),
    ("llama, untied", {"mlp_bias": True}, "mlp_bias = True sets a size, decides which weights"),
    ("llama, untied", {"tie_word_embeddings": True}, "tie_word_embeddings = True"),
    ("llama, untied", {"model_type": "mistral"}, "model_type says what a checkpoint is"),
    ("llama, untied", {"return_dict": False, "_name_or_path": "x"}, "_name_or_path, return_dict says what"),
    ("llama, untied", {"rope_tehta": 1e6}, "transformers ignores rope_tehta"),
    ("llama, untied", {"sliding_window": 4}, "transformers ignores sliding_window"),
    ("llama, untied", {"max_position_embeddings": None}, "max_position_embeddings = None and the planned weights"),
    ("llama, untied", {"hidden_act": "unheard-of"}, "hidden_act = 'unheard-of' and the planned weights"),
    ("llama, untied", {"rope_type": "dynamic"}, "Missing required keys in `rope_parameters`"),
    ("llama, untied", {"rms_norm_eps": "x"}, "rms_norm_eps = 'x' and the planned weights"),
    ("falcon, groups, two norms", {"parallel_attn": False}, "parallel_attn = False sets a size, decides which weights"),
    ("llama, untied", {"dtype": "float16", "auto_map": {}}, "auto_map, dtype says what"),
    ("opt, tied", {"max_position_embeddings": 256}, "max_position_embeddings = 256 sets a size"),
    (
        "gemma3_text, untied, biases, two bases",
        {"rope_theta": 1e6},
        "a rope_theta for each type of layer. Give rope_parameters",
    ),
]


@pytest.mark.parametrize(("name", "keys", "message"), REFUSED)
def test_keys_that_decide_about_weights_are_refused(name, keys, message):
    model = random_model(CASES[name])
    with pytest.raises(RecipeError, match=message):
        growth.grow_model(model, configure(keys=keys))


def test_a_step_without_keys_is_refused():
    with pytest.raises(RecipeError, match=r"step 1 \(configure\): keys"):
        parse_recipe("description: d\nsteps: [{op: configure, keys: {}}]", "r")


def test_a_model_in_memory_has_the_values():
    model = random_model(CASES["llama, untied"])
    grown = growth.grow_model(model, configure(keys={"hidden_act": "relu"}))
    assert grown.config.hidden_act == "relu"
    assert "hidden_act" not in growth.plan(configure(keys={"hidden_act": "relu"}), model).kept


@pytest.mark.parametrize("name", ["llama, tied", "phi, untied", "gemma, tied"])
def test_a_model_in_memory_grows_with_another_rotary_base(name):
    """It is the model that files give: the source's own frequencies are not those of the grown config."""
    model = random_model(CASES[name])
    grown = growth.grow_model(model, configure(keys={"rope_theta": 500.0}))
    stock = type(model)(grown.config).to(next(grown.parameters()).dtype)
    stock.load_state_dict(grown.state_dict())
    ids = torch.arange(12)[None] % model.config.vocab_size
    with torch.no_grad():
        torch.testing.assert_close(grown.eval()(ids).logits, stock.eval()(ids).logits, rtol=0, atol=1e-4)
        assert not torch.allclose(grown(ids).logits, model.eval()(ids).logits, rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", one_of_each([(name,) for name in CASES], lambda name: typical(CASES[name])))
def test_every_family_takes_a_key_that_it_knows(name):
    config = stated_config(CASES[name])
    assert plan_of(config, configure(keys={"use_cache": False})).preserving
