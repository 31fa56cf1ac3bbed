"""growth recipe on every family: the recipe to a target config arrives there, exactly, or the reason is said."""

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

import growth
from growth import ConfigError, GrowthError
from growth.architectures import architecture
from growth.architectures.rotary import spread_refusal
from growth.arrays.tensor_info import TensorInfo
from growth.operators import chain, deepen, untie, widen
from growth.operators.base import Growth
from growth.operators.deepen import layer_order
from growth.planning.derive import derive_recipe, layers_by_kind, recipe_text
from growth.planning.plan import make_plan
from growth.planning.recipe import parse_recipe
from growth.verification.float64 import proof_grade
from tests.cases.gemma import ROPE
from tests.cases.llama import LLAMA3_ROPE
from tests.support.configs import SOURCES
from tests.support.families import Case, all_cases, inner_axis, random_model, stated_config, steps_of, table, typical
from tests.support.models import EXACT, relative_error
from tests.support.selection import one_of_each

small_model = cache(lambda name: random_model(CASES[name]))
CASES = {case.name: case for case in all_cases()}
# axes that some families have beside the usual ones, and by how much they grow
MORE = {"vocab": 9, "positions": 8, "embedding": 4, "shared_ffn": 8, "dense_ffn": 12}


def kind_of(name):
    return typical(CASES[name])


def config_of(case, **changes):
    """A config as transformers writes it."""
    return stated_config(replace(case, config={**case.config, **changes}))


def planned(config, operator):
    built = architecture(config)
    headers = {name: TensorInfo(name, "F32", shape) for name, shape in built.example_shapes().items()}
    start = operator.grow(built, 0) if hasattr(operator, "grow") else operator(Growth.start(built))
    return make_plan(built, start, headers)


def mixed(case):
    """Everything that a case can grow but head_dim, deeper, in an order that is not the derived one."""
    axes = architecture(config_of(case)).axes
    alone = () if "residual" in case.steps else ("heads", "queries") if "heads" not in case.steps else ("heads",)
    inner = inner_axis(case)
    along = dict(case.steps.get(inner, ())).keys() & {"residual"}  # which grows by its own steps
    names = ["residual", *(() if along else (inner,)), *alone]
    names = [axis for axis in names if axis in axes and axis not in case.refused]
    others = [axis for axis in MORE if axis in axes]
    steps = {axis: axes[axis].size + MORE[axis] for axis in others if axis not in case.steps}
    names += [axis for axis in others if axis in case.steps]
    steps |= dict(step for axis in names for step in steps_of(case, axis))
    steps |= {"experts": 2 * axes["experts"].size} if "experts" in axes and not axes["experts"].refusal else {}
    order = "interleave" if "layers, stack" in case.refused else "stack"
    deeper = [] if "layers" in case.refused else [deepen(to=5, order=order)]
    return chain(*widened(case, steps), *deeper)


def widened(case, steps):
    tiled = {"residual", "experts", *(key.removesuffix(", pad") for key in case.refused if key.endswith(", pad"))}
    copies = {"init": "tile", "shares": "equal"}  # which every family reads
    tiled |= {axis for axis, init in case.along.items() if init == "tile"}
    return [widen(axis, to=to, **(copies if axis in tiled else {"init": "pad"})) for axis, to in steps.items()]


def told(config):
    """The keys that a config class makes of a config, numbers to compare up to rounding."""
    content = AutoConfig.for_model(**config).to_dict()
    return rounded(content)


def rounded(value):
    """A value of a config, numbers to compare up to rounding."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return pytest.approx(value) if isinstance(value, float) else value


def arrives(case, operator):
    """Derives the recipe to what an operator makes of a case: same config, same function. Returns the recipe."""
    source = config_of(case)
    target = AutoConfig.for_model(**planned(source, operator).config).to_dict()
    recipe, remarks = derive_recipe(source, target)
    assert remarks == []
    again = parse_recipe(recipe_text(recipe, remarks), "derived.yaml")
    assert again.steps == recipe.steps
    plan = planned(source, again)
    again.check(plan.target.config)
    assert plan.keeps_logits  # added tokens take some of the probability
    assert told(plan.config) == target
    assert_exact(case, again)
    return recipe


def assert_exact(case, recipe):
    model = small_model(case.name)
    with proof_grade():
        assert relative_error(model, growth.grow_model(model, recipe)) <= EXACT


@pytest.mark.parametrize("name", one_of_each([(name,) for name in CASES], kind_of))
def test_a_mixed_growth_is_derived_from_its_config(name):
    case = CASES[name]
    recipe = arrives(case, mixed(case))
    raw = {"model_type": case.family, **case.config}  # as older configs write it, with defaults left out
    again, remarks = derive_recipe(raw, planned(raw, mixed(case)).config)
    assert (again.steps, remarks) == (recipe.steps, [])


TIED = [name for name, case in CASES.items() if table(case).tied]


@pytest.mark.parametrize("name", one_of_each([(name,) for name in TIED], kind_of))
def test_a_head_of_its_own_is_derived(name):
    recipe = arrives(CASES[name], chain(untie(), mixed(CASES[name])))
    assert [step.op for step in recipe.steps].count("untie") == 1
    assert recipe.steps[0].op == "untie"


def head_of(case):
    """The axis of a head's rotary channels."""
    return table(case).rotary_axis


WIDER_HEADS = [
    name
    for name, case in CASES.items()
    if head_of(case) in table(case).axes and not {head_of(case), f"{head_of(case)}, pad"} & case.refused.keys()
]


@pytest.mark.parametrize("name", one_of_each([(name,) for name in WIDER_HEADS], kind_of))
def test_wider_heads_are_derived(name):
    case = CASES[name]
    recipe = arrives(case, chain(*widened(case, dict(steps_of(case, head_of(case))))))
    assert head_of(case) in {step.axis for step in recipe.steps}


def rotary_pairs(case):
    return table(case).head_channels.rotary_pairs


def spreads(case):
    built = table(case)
    return rotary_pairs(case) and not (spread_refusal(built.config) or built.head_channels.one_stride)


SPREAD = [name for name in WIDER_HEADS if spreads(CASES[name])]


@pytest.mark.parametrize("name", one_of_each([(name,) for name in SPREAD], kind_of))
def test_wider_heads_at_the_same_rotary_base_are_derived(name):
    case = CASES[name]
    along = [widen("residual", factor=2)] if "residual" in dict(steps_of(case, head_of(case))) else []
    recipe = arrives(case, chain(*along, widen(head_of(case), factor=2, rope_pairs="spread")))
    assert [step.rope_pairs for step in recipe.steps if step.axis == head_of(case)] == ["spread"]


# ------------------------------------------------- configs written by hand, as the hub has them


QWEN3 = SOURCES["Qwen/Qwen3-0.6B"]
PYTHIA = SOURCES["EleutherAI/pythia-410m"]
SMOLLM2 = SOURCES["HuggingFaceTB/SmolLM2-360M"]
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "n_ctx": 1024,
    "layer_norm_epsilon": 1e-05,
    "vocab_size": 50257,
}
GEMMA2 = {
    "model_type": "gemma2",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
PAIRS = {
    "Qwen3-0.6B to 4B": (
        QWEN3,
        {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_attention_heads": 32,
            "num_hidden_layers": 36,
            "max_window_layers": 36,
        },
    ),
    "SmolLM2-135M to 360M": (
        SMOLLM2
        | {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "num_hidden_layers": 30,
        },
        SMOLLM2,
    ),
    "SmolLM2-360M to twice its width, untied": (
        SMOLLM2,
        {
            "hidden_size": 1920,
            "intermediate_size": 5120,
            "num_attention_heads": 30,
            "num_key_value_heads": 10,
            "tie_word_embeddings": False,
        },
    ),
    "Pythia-410m to heads that are twice as wide": (PYTHIA, {"hidden_size": 2048}),
    "SmolLM2-360M to heads that are twice as wide": (SMOLLM2, {"head_dim": 128}),
    "Qwen3-0.6B to 8B": (
        QWEN3,
        {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "num_hidden_layers": 36,
            "max_window_layers": 36,
            "tie_word_embeddings": False,
        },
    ),
    "Pythia-70m to 160m": (
        PYTHIA | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 6},
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
    ),
    "GPT-2 to XL": (GPT2, {"n_embd": 1600, "n_head": 25, "n_layer": 48}),
    "Gemma-2-2B to the sizes of 9B": (
        GEMMA2,
        {
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_hidden_layers": 42,
        },
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_well_known_models_are_reached(name):
    source, change = PAIRS[name]
    target = source | change
    recipe, remarks = derive_recipe(source, target)
    assert remarks == []
    plan = planned(source, recipe)
    recipe.check(plan.config)
    assert plan.preserving
    assert {key: plan.config[key] for key in change if key != "max_window_layers"} == {
        key: value for key, value in change.items() if key != "max_window_layers"
    }
    assert plan.target.shapes() == architecture(target).shapes()
    assert plan.target.layer_lists == architecture(target).layer_lists


# ------------------------------------------------- kinds of layers


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_layers_find_their_places_wherever_there_are_some(have, random):
    want = list(have)
    for _ in range(random.randrange(8)):
        want.insert(random.randrange(len(want) + 1), random.choice(have))
    order = layers_by_kind(have, want)
    assert [have[layer] for layer in order] == want
    found = deepen(order=order)(Growth.start(replace(architecture(QWEN3), depth=len(have)))).layers
    assert [layer.source for layer in found if not layer.silent] == list(range(len(have)))
    assert set(have) != {have[0]} or order == layer_order("interleave", len(have), len(want))


def test_alternating_layers_go_on_alternating():
    """The usual target: the pattern of its family, in more layers."""
    case = Case("gemma2", "", {**CASES["gemma2, tied, alternating windows"].config, "num_hidden_layers": 4})
    source, target = config_of(case), config_of(case, num_hidden_layers=6)
    recipe, _ = derive_recipe(source, target)
    assert recipe.steps[0].order == [0, 1, 0, 1, 2, 3]
    assert told(planned(source, recipe).config) == target
    model = random_model(case)
    with proof_grade():
        assert relative_error(model, growth.grow_model(model, recipe)) <= EXACT


# ------------------------------------------------- eps, experts, mixtures


@pytest.mark.parametrize(("size", "copies", "init"), [(48, 1, "tile"), (80, 2, "tile"), (80, 1, "pad")])
@pytest.mark.parametrize("name", ["mistral, tied", "starcoder2, tied", "stablelm, parallel, biases"])
def test_an_eps_that_one_of_the_inits_leaves(name, size, copies, init):
    case = CASES[name]
    source = config_of(case)
    eps = next(key for key in source if key in ("rms_norm_eps", "norm_epsilon", "layer_norm_eps"))
    heads = {"num_attention_heads": size // 8, "num_key_value_heads": size // 16} if "stablelm" in name else {}
    target = config_of(case, hidden_size=size, **heads, **{eps: source[eps] * 32 * copies / size})
    recipe, _ = derive_recipe(source, target)
    assert (recipe.steps[0].init, recipe.steps[0].norm_eps) == (init, "rescale")
    assert told(planned(source, recipe).config) == target
    assert_exact(case, recipe)


MIXTURES = [
    ("llama, tied", "mixtral", {"num_local_experts": 4, "tie_word_embeddings": True, "rms_norm_eps": 1e-6}),
    ("mistral, sliding window", "mixtral", {"num_local_experts": 3, "sliding_window": 4, "rms_norm_eps": 1e-6}),
    (
        "qwen3, tied",
        "qwen3_moe",
        {"num_experts": 4, "norm_topk_prob": True, "tie_word_embeddings": True, "moe_intermediate_size": 60},
    ),
]


@pytest.mark.parametrize(("name", "family", "change"), MIXTURES)
def test_the_mixture_of_a_dense_family_is_reached_by_upcycling(name, family, change):
    wider = {"hidden_size": 40, "intermediate_size": 60, "num_hidden_layers": 5, "num_experts_per_tok": 2}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    case, source = CASES[name], config_of(CASES[name])
    target = config_of(case, **wider, **change, **rope) | {"model_type": family}
    target = AutoConfig.for_model(**{key: value for key, value in target.items() if key != "layer_types"}).to_dict()
    recipe, _ = derive_recipe(source, target)
    assert [step.op for step in recipe.steps] == ["upcycle", "widen", "widen", "deepen"]
    plan = planned(source, recipe)
    recipe.check(plan.config)
    assert plan.config["model_type"] == recipe.expect["model_type"] == family
    assert plan.target.shapes() == architecture(target).shapes()
    assert_exact(case, recipe)


@pytest.mark.parametrize("ffn", [24, 28])
def test_fine_grained_experts_are_parts_of_the_dense_mlp(ffn):
    source = config_of(CASES["qwen3, tied"])
    experts = {"num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": ffn, "norm_topk_prob": True}
    dense = {key: value for key, value in source.items() if key != "layer_types"}
    target = AutoConfig.for_model(**dense | experts | {"model_type": "qwen3_moe"}).to_dict()
    recipe, _ = derive_recipe(source, target)
    assert recipe.steps[0].granularity == 2
    assert planned(source, recipe).target.shapes() == architecture(target).shapes()
    assert_exact(CASES["qwen3, tied"], recipe)


# ------------------------------------------------- what cannot be derived

REFUSALS = [
    ("granite, untied", {"logits_scaling": 4.0}, "logits_scaling: 8.0 in the source, 4.0 in the target"),
    ("granite, untied", {"hidden_size": 40, "head_dim": 8, "residual_multiplier": 0.1}, "residual_multiplier"),
    ("cohere, tied", {"logit_scale": 0.5}, "logit_scale"),
    ("mistral, sliding window", {"sliding_window": 8}, "sliding_window: 4 in the source, 8 in the target"),
    ("mistral, sliding window", {"sliding_window": None}, "sliding_window: 4 in the source, None in the target"),
    ("mistral, tied", {"sliding_window": 8}, "sliding_window: None in the source, 8 in the target"),
    (
        "qwen3, untied, biases, windows",
        {"layer_types": ["full_attention"] * 3},
        "Layer 1 of the target has layer_types",
    ),
    ("qwen3, untied, biases, windows", {"layer_types": ["full_attention"] * 2}, "lists 2 layer_types for 3 layers"),
    (
        "gemma2, tied, alternating windows",
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "Layer 0 of the target has layer_types full_attention, and layer 0 of the source, which it would copy, has layer_types sliding_attention",
    ),
    ("smollm3, untied, listed", {"no_rope_layers": [0, 1, 1]}, "Layer 2 of the target has no_rope_layers 1"),
    ("qwen3_moe, weights normalised, dense layer", {"mlp_only_layers": [2]}, "Layer 1 .* mlp_only_layers False"),
    (
        "qwen3_moe, weights normalised, dense layer",
        {"mlp_only_layers": []},
        "mlp_only_layers: .1. in the source, .. in the target",
    ),
    (
        "qwen3_moe, weights not normalised",
        {"norm_topk_prob": True},
        "norm_topk_prob: False in the source, True in the target",
    ),
    (
        "qwen3_moe, weights not normalised",
        {"num_local_experts": 8},
        "num_experts_per_tok: 2 in the source, 2 in the target.* the result has .* = 4",
    ),
    ("mixtral, top 2 of 4", {"num_local_experts": 6}, "their weights stay only if each is copied equally often"),
    (
        "llama, rope scaling",
        {"rope_parameters": LLAMA3_ROPE | {"factor": 4.0}},
        "factor: 8.0 in the source, 4.0 in the target",
    ),
    ("llama, untied", {"rope_parameters": LLAMA3_ROPE}, "rope_type: 'default' in the source, 'llama3' in the target"),
    (
        "llama, rope scaling",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "rope_type: 'llama3' in the source, 'default' in the target",
    ),
    (
        "gemma3_text, untied, biases, two bases",
        {"rope_parameters": ROPE | {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}}},
        "factor of full_attention: 8.0 in the source, 4.0 in the target",
    ),
    ("gemma2, tied, alternating windows", {"final_logit_softcapping": None}, "final_logit_softcapping: 3.0"),
    ("gemma2, tied, alternating windows", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar"),
    (
        "gemma, tied",
        {"head_dim": 10},
        "head_dim: 8 in the source, 10 in the target.* with rope_theta = 100000; .* the target 10000",
    ),
    ("olmo, untied", {"clip_qkv": 0.5}, "clip_qkv: None in the source, 0.5 in the target"),
    ("olmo, tied", {"hidden_size": 40}, "Untie the head first"),
    (
        "llama, untied",
        {"head_dim": 10},
        "head_dim: 8 in the source, 10 in the target.* with rope_theta = 100000; .* the target 10000",
    ),
    ("llama, untied", {"mlp_bias": True}, "mlp_bias: False in the source, True in the target"),
    (
        "phi3, untied, all channels turn",
        {"head_dim": 12},
        "rotary channels per head: 8 in the source, 12 in the target",
    ),
    ("gpt2, tied", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: False"),
    (
        "gpt2, tied",
        {"activation_function": "relu"},
        "activation_function: 'gelu_new' in the source, 'relu' in the target",
    ),
    ("gpt_neox, parallel", {"use_parallel_residual": False}, "use_parallel_residual"),
    ("opt, norms behind, projected", {"num_hidden_layers": 5}, "Use init: copy"),
    ("opt, norms behind, projected", {"hidden_size": 48, "num_attention_heads": 6}, "Use init: tile and to: 64"),
    ("starcoder2, tied", {"norm_epsilon": 2.0}, "norm_epsilon: 1e-05 in the source, 2.0 in the target"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSALS)
def test_what_no_recipe_reaches_is_refused_with_the_reason(name, change, message):
    case = CASES[name]
    with pytest.raises(GrowthError, match=message):
        derive_recipe(config_of(case), config_of(case) | change)


def test_another_family_is_refused():
    with pytest.raises(GrowthError, match="A llama cannot grow into a qwen3_moe"):
        derive_recipe(config_of(CASES["llama, tied"]), config_of(CASES["qwen3_moe, weights not normalised"]))


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


def test_what_one_config_leaves_to_a_default_is_remarked():
    granite, neox = (config_of(CASES[name]) for name in ("granite, untied", "gpt_neox, parallel"))
    _, remarks = derive_recipe(without(granite, "logits_scaling"), granite)
    assert remarks == ["the target has logits_scaling: 8.0, and the source does not state it: see that they agree"]
    mistral = config_of(CASES["mistral, sliding window"])
    _, remarks = derive_recipe(mistral, without(mistral, "sliding_window"))
    assert remarks == ["the result has sliding_window: 4, and the target does not state it: see that they agree"]
    _, remarks = derive_recipe(without(neox, "attention_bias", "tie_word_embeddings"), neox)
    assert remarks == []


def test_a_flag_that_one_config_leaves_out_is_held_to_the_table():
    gpt2 = config_of(CASES["gpt2, tied"])
    with pytest.raises(GrowthError, match="leaves to a default, one of scale_attn_weights"):
        derive_recipe(without(gpt2, "scale_attn_weights"), gpt2 | {"scale_attn_weights": False})


def test_what_only_training_reads_is_no_reason():
    opt = config_of(CASES["opt, tied"])
    recipe, remarks = derive_recipe(opt, opt | {"dropout": 0.5, "layerdrop": 0.1})
    assert [step.op for step in recipe.steps] == ["deepen"]
    assert remarks == [
        "the result keeps dropout: 0.1; the target has 0.5",
        "the result keeps layerdrop: 0.0; the target has 0.1",
    ]


def test_a_rotary_parameter_beside_objects_of_each_layer_type_is_refused():
    mixed = {"full_attention": {"rope_type": "default"}, "sliding_attention": 1.0}
    config = config_of(CASES["cohere, tied"], rope_parameters=mixed)
    with pytest.raises(ConfigError, match=r"sliding_attention = 1.0 beside an object for each layer type"):
        derive_recipe(config, config)
