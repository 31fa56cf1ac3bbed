"""What a config leaves unsaid means here what it means to the stock class."""

import json
import math
from copy import deepcopy
from itertools import cycle, islice

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoConfig, AutoModelForCausalLM

from growth import ConfigError
from growth.architectures import FAMILIES, architecture
from growth.architectures.rotary import nested_rope
from growth.architectures.wrapper import Wrapper
from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.stock_parameters import stored_as
from tests.support.families import all_cases, typical
from tests.support.selection import one_of_each

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
# sizes for which every default shows: no KV heads, head_dim or pattern of layers is that of another default
WIDE = {
    "vocab_size": 64,
    "hidden_size": 4096,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}


# where a class cannot be built with those alone
OWN_SIZES = {
    "big_bird": {"attention_type": "original_full"},
    "bitnet": {"num_key_value_heads": 8},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "deepseek_v3": {"num_key_value_heads": 64},
    "deepseek_v32": {"num_key_value_heads": 64},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2},
    "glm4_moe_lite": {"num_key_value_heads": 64},
    "kimi_linear": {"num_key_value_heads": 64},
    "minicpm3": {"num_key_value_heads": 64},
    "youtu": {"num_key_value_heads": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 3]]},
    "helium": {"num_key_value_heads": 8, "head_dim": 64},
    "hunyuan_v1_dense": {"head_dim": 64},
    "hunyuan_v1_moe": {"head_dim": 64},
    "lfm2_moe": {"layer_types": 3 * ["conv", "full_attention"]},
    "ministral": {"head_dim": 64},
    "nemotron": {"num_key_value_heads": 8},
    "rwkv": {"rescale_every": 0},
    "nemotron_h": {"num_hidden_layers": 4},
}


# what a class cannot be built without
NEEDED = {
    "big_bird": {"attention_type": "original_full"},
    "cohere_compass_text": {"rope_parameters": {"full_attention": None}},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2},
    "glm4_moe": {"head_dim": 128},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": 16 * ["conv", "full_attention"]},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "rwkv": {"rescale_every": 0},
}

# wrappers of text models take the defaults of these (tests/architectures/test_wrappers.py)
FIRST = {case.family: case for case in reversed(all_cases())}
PLAIN = sorted(name for name, table in FAMILIES.items() if not isinstance(table, Wrapper))


def stock_and_ours(family):
    """The stock config of the sizes in WIDE, and the table of a config.json that states nothing else."""
    known = AutoConfig.for_model(family)
    sizes = {key: value for key, value in WIDE.items() if hasattr(known, key)} | OWN_SIZES.get(family, {})
    config = {known.attribute_map.get(key, key): value for key, value in sizes.items()}
    return AutoConfig.for_model(family, **sizes), architecture({"model_type": family, **config})


@pytest.mark.parametrize("family", PLAIN)
def test_of_every_key(family):
    """KV heads, head_dim, biases and norms in the shapes of tensors; then what no shape shows."""
    config, built = stock_and_ours(family)
    shapes, head_dim = built.shapes(), built.head_channels.size
    stored_as(config, [TensorInfo(name, "F32", shape) for name, shape in shapes.items()])  # or it raises
    assert built.tied is config.tie_word_embeddings
    if "heads" in built.axes:
        assert head_dim == (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    if built.eps:
        assert built.eps_default == getattr(config, built.eps)
    for key in built.ratios:
        assert built.config[key] == getattr(config, key)
    for key, values in built.layer_lists.items():
        assert list(values) == list(islice(cycle(getattr(config, key)), len(values)))  # which a class may repeat
    rope = getattr(config, "rope_parameters", None)
    if built.rotary:
        assert built.rotary == int(head_dim * rope.get("partial_rotary_factor", 1.0))
    for layer_type, _, base in built.bases:
        stated = nested_rope(built.config).get("rope_theta", base)
        assert stated == (rope[layer_type] if layer_type else rope)["rope_theta"]


@pytest.mark.parametrize("family", PLAIN)
def test_what_the_stock_class_saves_is_read_the_same(family, tmp_path):
    config, bare = stock_and_ours(family)
    config.save_pretrained(tmp_path)
    saved = architecture(json.loads((tmp_path / "config.json").read_text()))
    assert saved.shapes() == bare.shapes()
    assert saved.rotary == bare.rotary
    assert saved.axes == bare.axes


@pytest.mark.parametrize("family", one_of_each([(family,) for family in PLAIN], lambda family: typical(FIRST[family])))
def test_the_stock_geometry_has_as_many_parameters(family):
    """Of the class's own default sizes, which are those of a published model, as far as they make one."""
    config = AutoConfig.for_model(family, **NEEDED.get(family, {}))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    built = architecture(config.to_dict())
    tied = {*model._tied_weights_keys} if built.tied else set()  # stored once
    found = sum(tensor.numel() for name, tensor in model.state_dict().items() if name not in tied)
    assert found == sum(math.prod(shape) for shape in built.shapes().values())


@pytest.mark.parametrize("family", ["phi3", "smollm3", "granite", "cohere", "cohere2"])
def test_null_is_one_kv_head_a_query_head(family):
    built = architecture({"model_type": family, **SIZES, "num_key_value_heads": None})
    assert (
        built.axes["heads"].size == AutoConfig.for_model(family, **SIZES, num_key_value_heads=None).num_key_value_heads
    )


FACTORS = {"short_factor": [1.0] * 3, "long_factor": [2.0] * 3}
FORMS = [
    {"partial_rotary_factor": 0.75, "rope_theta": 5000.0},
    {"partial_rotary_factor": 0.75, "rope_theta": 5000.0, "rope_scaling": None},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.75}},
    {"rope_scaling": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.75}},
    {"partial_rotary_factor": 0.75, "rope_theta": 5000.0, "rope_scaling": {"type": "longrope", **FACTORS}},
]


@pytest.mark.parametrize("family", ["phi3", "glm", "glm4"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_rotary_parameters_grows(form, family):
    built = architecture({"model_type": family, **SIZES, "head_dim": 8, **form})
    sizes = {name: axis.size for name, axis in built.axes.items()} | {"head_dim": 10, "residual": 80}
    config = deepcopy(built.grown_config(sizes, range(6), 1.0))  # stock classes write into what they are given
    assert architecture(config).rotary == built.rotary == 6
    stock = AutoConfig.for_model(**config)
    assert int(stock.head_dim * stock.rope_parameters["partial_rotary_factor"]) == 6
    assert stock.rope_parameters["rope_theta"] == 5000.0


@pytest.mark.parametrize(
    "unturned",
    [
        {"model_type": "smollm3", "no_rope_layers": [0] * 6},
        {"model_type": "cohere2", "layer_types": ["full_attention"] * 6},
    ],
)
def test_heads_that_nothing_turns_are_even_all_the_same(unturned):
    with pytest.raises(ConfigError, match="Choose an even one"):
        architecture({**SIZES, **unturned, "head_dim": 9})
    with pytest.raises(StrictDataclassClassValidationError, match="even rotary dimension"):
        AutoConfig.for_model(**{**SIZES, **unturned, "head_dim": 9})


def test_frequencies_that_hang_on_head_dim_are_refused():
    rope = {"rope_type": "proportional", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    with pytest.raises(ConfigError, match="proportional"):
        architecture({**SIZES, "model_type": "glm", "rope_parameters": rope})
