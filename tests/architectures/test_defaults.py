"""What a config leaves unsaid means here what it means to the stock class."""

import json
from copy import deepcopy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoConfig, AutoModelForCausalLM

from growth import ConfigError
from growth.architectures import architecture

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
FAMILIES = ["phi3", "smollm3", "granite", "cohere", "cohere2", "glm", "glm4"]


@pytest.mark.parametrize("family", FAMILIES)
def test_of_every_key(family):
    built = architecture({"model_type": family, **SIZES})
    config = AutoConfig.for_model(family, **SIZES)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert built.shapes() == {n: shape for n, shape in state.items() if n not in model.all_tied_weights_keys}
    assert built.eps_default == getattr(config, built.eps)
    assert {key: list(values) for key, values in built.layer_lists.items()} == {
        key: getattr(config, key) for key in built.layer_lists
    }
    if built.rotary:
        head_dim = built.axes["head_dim"].size
        assert built.rotary == int(head_dim * config.rope_parameters["partial_rotary_factor"])


@pytest.mark.parametrize("family", ["phi3", "smollm3", "granite", "cohere", "cohere2"])
def test_null_is_one_kv_head_a_query_head(family):
    built = architecture({"model_type": family, **SIZES, "num_key_value_heads": None})
    assert (
        built.axes["heads"].size == AutoConfig.for_model(family, **SIZES, num_key_value_heads=None).num_key_value_heads
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_stock_class_saves_is_read_the_same(family, tmp_path):
    AutoConfig.for_model(family, **SIZES).save_pretrained(tmp_path)
    saved = architecture(json.loads((tmp_path / "config.json").read_text()))
    bare = architecture({"model_type": family, **SIZES})
    assert saved.shapes() == bare.shapes()
    assert saved.rotary == bare.rotary
    assert saved.axes == bare.axes


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
    with pytest.raises(ConfigError, match="Nearest: 8 or 10"):
        architecture({**SIZES, **unturned, "head_dim": 9})
    with pytest.raises(StrictDataclassClassValidationError, match="even rotary dimension"):
        AutoConfig.for_model(**{**SIZES, **unturned, "head_dim": 9})


def test_frequencies_that_hang_on_head_dim_are_refused():
    rope = {"rope_type": "proportional", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    with pytest.raises(ConfigError, match="proportional"):
        architecture({**SIZES, "model_type": "glm", "rope_parameters": rope})
