"""Kimi Linear as it is published: its sizes in a config of linear attention, and other names of dense layers."""

import json

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import growth
from growth import ConfigError
from growth.architectures import architecture
from growth.operators import chain, deepen, widen
from growth.verification.float64 import proof_grade
from tests.cases.kimi_linear import NESTED
from tests.support.families import all_cases, random_model
from tests.support.models import EXACT, relative_error, save

CASES = {case.name: case for case in all_cases()}
GROWTH = chain(widen("ssm_heads", to=5), widen("dense_ffn", to=56), deepen(to=4))
LISTED = {"full_attn_layers": [2], "kda_layers": [1, 3]}


def as_published(config):
    for key in ("layer_types", "mlp_layer_types"):
        config.pop(key)
    sizes = {key: config.pop(f"linear_{key}") for key in ("num_heads", "head_dim")}
    taps = {"short_conv_kernel_size": config.pop("linear_conv_kernel_dim")}
    config.update(linear_attn_config=sizes | taps | LISTED, first_k_dense_replace=1, head_dim=8)


def test_as_it_is_published(tmp_path):
    model = random_model(CASES["kimi_linear, one leading dense layer"])
    source = save(model, tmp_path / "source")
    file = source / "model.safetensors"
    dense = "model.layers.0.block_sparse_moe."
    tensors = {name.replace(dense, "model.layers.0.mlp."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    as_published(config)
    (source / "config.json").write_text(json.dumps(config))
    growth.grow(GROWTH, source, tmp_path / "out")
    with proof_grade():
        options = {"dtype": "auto", "attn_implementation": "eager", "experts_implementation": "eager"}
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", **options)
    assert relative_error(model, found) <= EXACT
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert {name.split(".")[2] for name in names if ".mlp." in name} == {"0", "1"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["linear_num_heads"] == 5
    assert "linear_attn_config" not in config


@pytest.mark.parametrize("layers", [{"kda_layers": [1, 2, 3]}, {"kda_layers": None}, {"full_attn_layers": [[2]]}])
def test_a_config_that_does_not_list_each_layer_once_is_refused(layers):
    config = {"model_type": "kimi_linear", "num_hidden_layers": 3}
    with pytest.raises(ConfigError, match="does not list each of 3 layers once"):
        architecture({**config, "linear_attn_config": NESTED | LISTED | layers})
    with pytest.raises(ConfigError, match="an object is needed"):
        architecture({**config, "linear_attn_config": [1]})
