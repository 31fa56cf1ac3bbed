"""Plans: what they promise is what is written, and what cannot be is refused before a byte is."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import growth
from growth import CheckpointError, ConfigError
from growth.architectures import architecture
from growth.architectures.rotary import partial_rotary_factor, rotary_channels
from growth.arrays.torch_interop import as_array, as_tensor
from growth.engine.grow_tensor import MemorySource, grow_tensor
from growth.operators import chain, deepen, widen
from tests.support.configs import CONFIG
from tests.support.models import random_phi, save

ALL = chain(
    widen("residual", to=40, init="tile", shares="equal"),
    widen("ffn", to=61, init="pad"),
    widen("head_dim", to=10, init="tile", shares="equal"),
    deepen(to=5),
)


def test_the_plan_is_what_is_written(phi_folder, tmp_path):
    plan = growth.plan(ALL, phi_folder, dtype="float16")
    growth.grow(ALL, phi_folder, tmp_path / "out", dtype="float16", max_shard_size=40_000)
    written = {}
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1
    for path in files:
        tensors = load_file(path)
        assert sum(t.nbytes for t in tensors.values()) <= 40_000 or len(tensors) == 1
        written |= tensors
    assert {tensor_map.target: (tensor_map.shape, torch.float16) for tensor_map in plan.tensors} == {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in written.items()
    }
    assert plan.bytes == sum(tensor.nbytes for tensor in written.values())
    assert plan.parameters == sum(tensor.numel() for tensor in written.values())
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == plan.bytes
    assert index["weight_map"].keys() == written.keys()


def test_copies_and_zeros_are_planned_as_such(phi_folder):
    plan = growth.plan(deepen(to=6), phi_folder)
    how = {tensor_map.target: tensor_map.what for tensor_map in plan.tensors}
    assert how["model.layers.0.mlp.fc2.weight"] == "copy"
    assert how["model.layers.1.mlp.fc2.weight"] == how["model.layers.1.mlp.fc2.bias"] == "zero (ends an identity layer)"
    assert how["model.layers.1.self_attn.dense.weight"] == "zero (ends an identity layer)"
    assert how["model.layers.1.mlp.fc1.weight"] == "copy"


def test_whole_ratios_need_no_mean_and_no_scale(phi_folder):
    rows = {
        tensor_map.target: tensor_map
        for tensor_map in growth.plan(widen("residual", factor=2, init="tile", shares="equal"), phi_folder).tensors
    }
    embedding = rows["model.embed_tokens.weight"]
    assert embedding.dimensions[1].mean_correction is None
    assert set(embedding.dimensions[1].scale) == {1.0}
    assert set(rows["lm_head.weight"].dimensions[1].scale) == {0.5}


def test_rescaled_eps_leaves_single_channels_untouched(phi_folder):
    """32 -> 40 triples four channels: the other 28 are the source's to the last bit."""
    plan = growth.plan(widen("residual", to=40, norm_eps="rescale", init="tile", shares="equal"), phi_folder)
    tensor_map = {tensor_map.target: tensor_map for tensor_map in plan.tensors}["model.embed_tokens.weight"]
    source = load_file(phi_folder / "model.safetensors")[tensor_map.target]
    grown = as_tensor(
        grow_tensor(tensor_map, MemorySource({tensor_map.target: as_array(source)}), plan.seed), tensor_map.dtype
    )
    assert torch.equal(grown[:, 4:32], source[:, 4:])
    assert not torch.equal(grown[:, :4], source[:, :4])


def test_a_plan_says_why_as_json(phi_mini):
    content = json.loads(json.dumps(growth.plan("phi-mini", phi_mini).to_dict()))
    assert content["preserving"] is True
    assert all(step["why"] for step in content["steps"])
    assert content["after"]["residual"] == 160
    assert len(content["tensors"]) == 5 + 8 * 14


# ------------------------------------------------- sources that disagree with their config


def altered(folder, tmp_path, change_tensors=None, change_config=None):
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    (change_tensors or (lambda _: None))(tensors)
    (change_config or (lambda _: None))(config)
    out = tmp_path / "altered"
    out.mkdir()
    save_file(tensors, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config))
    return out


FC1 = "model.layers.1.mlp.fc1.weight"
WRONG_TENSORS = {
    "missing": (lambda t: t.pop(FC1), f"lacks tensor '{FC1}', which its config"),
    "unknown": (lambda t: t.update(extra=torch.zeros(1)), "holds tensor 'extra', which phi with this config does not"),
    "mis-shaped": (
        lambda t: t.update({FC1: torch.zeros(7, 32)}),
        r"has shape \[7, 32\] and config.json implies \[48, 32\]",
    ),
    "integer": (lambda t: t.update({FC1: torch.zeros(48, 32, dtype=torch.int64)}), "stored as I64: only F16"),
    "layer too many": (
        lambda t: t.update({"model.layers.3.mlp.fc2.bias": torch.zeros(32)}),
        "model.layers.3.mlp.fc2.bias",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG_TENSORS.values(), ids=WRONG_TENSORS.keys())
def test_tensors_must_be_what_the_config_promises(change, message, phi_folder, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        growth.plan(deepen(to=4), altered(phi_folder, tmp_path, change))


def test_old_rotary_buffers_are_left_out_and_named(phi_folder, tmp_path):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    source = altered(phi_folder, tmp_path, lambda t: t.update({name: torch.zeros(2)}))
    assert growth.plan(deepen(to=4), source).dropped == (name,)


WRONG_CONFIGS = {
    "family": (
        {"model_type": "xlnet"},
        "model_type 'xlnet'. A LayerNorm follows every branch, .* model types can grow: docs/families.md",
    ),
    "no family": ({"model_type": None}, "model_type None"),
    "negative": ({"hidden_size": -32}, "hidden_size = -32; a whole number above 0"),
    "fraction": ({"hidden_size": 32.5}, "hidden_size = 32.5"),
    "text": ({"num_hidden_layers": "3"}, "num_hidden_layers = '3'"),
    "huge": ({"vocab_size": 2**40}, "vocab_size = 1099511627776"),
    "missing": ({"intermediate_size": None}, "no 'intermediate_size'"),
    "groups": (
        {"num_key_value_heads": 3},
        "num_attention_heads = 8, which is not a multiple of num_key_value_heads = 3",
    ),
    "odd rotary": ({"partial_rotary_factor": 0.4}, "hence 3 rotary channels; they come in pairs"),
    "rotary over 1": ({"partial_rotary_factor": 1.5}, "partial_rotary_factor = 1.5"),
    "rotary NaN": ({"partial_rotary_factor": float("nan")}, "partial_rotary_factor = nan"),
    "two factors": (
        {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 0.25}},
        "two values of partial_rotary_factor: .*0.25.*0.5",
    ),
    "rope text": ({"rope_parameters": "default"}, "rope_parameters = 'default'"),
    "flag": ({"qk_layernorm": "yes"}, "qk_layernorm = 'yes'; true or false"),
    "qk norm": ({"qk_layernorm": True, "head_dim": 8}, "hidden_size // num_attention_heads = 4 .* head_dim is 8"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_CONFIGS.values(), ids=WRONG_CONFIGS.keys())
def test_configs_that_are_no_model_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        architecture({key: value for key, value in {**CONFIG, **change}.items() if value is not None})


def test_an_error_in_a_config_names_its_file(phi_folder, tmp_path):
    wrong = altered(phi_folder, tmp_path, lambda _: None)
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps({**config, "hidden_size": 32.5}))
    message = f"^{re.escape(str(wrong / 'config.json'))} has hidden_size = 32.5"
    with pytest.raises(ConfigError, match=message):
        growth.plan("double-width", wrong)
    with pytest.raises(ConfigError, match=message):
        growth.verify(phi_folder, wrong, "double-width")


# ------------------------------------------------- the config that is written


def test_every_pair_of_rotary_and_head_dim_comes_out_right():
    """int(head_dim * (rotary / head_dim)) truncates for hundreds of pairs; the factor written never does."""
    truncated = 0
    for head_dim in range(2, 257):
        for rotary in range(2, head_dim + 1, 2):
            factor = partial_rotary_factor(rotary, head_dim)
            assert int(head_dim * factor) == rotary
            assert abs(factor - rotary / head_dim) < 1e-12
            truncated += int(head_dim * (rotary / head_dim)) != rotary
    assert truncated > 100


OLD = {"partial_rotary_factor": 0.5, "rope_theta": 5000.0}
NEW = {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 5000.0}}


@pytest.mark.parametrize("form", [OLD, NEW, {**OLD, **NEW}], ids=["old", "new", "both"])
def test_both_forms_of_rotary_parameters_are_read_and_written(form, tmp_path):
    source = architecture({**CONFIG, "head_dim": 44, "partial_rotary_factor": 0.5, **form})
    assert source.rotary == 22
    config = source.grown_config({n: a.size for n, a in source.axes.items()} | {"head_dim": 60}, range(3), 1.0)
    for place in (config, config["rope_parameters"]):
        assert place["rope_theta"] == 5000.0
        assert int(60 * place["partial_rotary_factor"]) == 22
    (tmp_path / "config.json").write_text(json.dumps(config))
    stock = AutoConfig.from_pretrained(tmp_path)
    assert int(stock.head_dim * stock.rope_parameters["partial_rotary_factor"]) == 22
    assert stock.rope_parameters["rope_theta"] == 5000.0
    assert rotary_channels(stock.to_dict(), 60, 0.5) == 22


def test_a_size_that_the_source_leaves_to_the_default_stays_unsaid():
    config = {key: value for key, value in CONFIG.items() if key not in ("head_dim", "num_key_value_heads")}
    source = architecture(config)
    sizes = {name: axis.size for name, axis in source.axes.items()}
    grown = source.grown_config(sizes | {"residual": 64, "head_dim": 8}, range(3), 1.0)
    assert not {"head_dim", "num_key_value_heads"} & grown.keys()
    assert source.grown_config(sizes | {"residual": 64}, range(3), 1.0)["head_dim"] == 4


def test_foreign_keys_stay_and_code_is_not_taken_along():
    source = architecture({**CONFIG, "favourite_colour": "blue", "auto_map": {"AutoModel": "x.Y"}})
    grown = source.grown_config({name: axis.size for name, axis in source.axes.items()}, range(3), 1.0)
    assert grown["favourite_colour"] == "blue"
    assert "auto_map" not in grown


def test_keys_that_the_table_does_not_know_are_named(phi_folder, tmp_path):
    source = altered(phi_folder, tmp_path, change_config=lambda config: config.update(favourite_colour="blue"))
    assert growth.plan(deepen(to=4), source).kept == ("favourite_colour", "hidden_act")


def test_eps_follows_the_recipe(phi_folder):
    stock = growth.plan(widen("residual", to=40, init="tile", shares="equal"), phi_folder).config
    rescaled = growth.plan(widen("residual", to=40, norm_eps="rescale", init="tile", shares="equal"), phi_folder).config
    assert stock["layer_norm_eps"] == 1e-5
    assert rescaled["layer_norm_eps"] == pytest.approx(1e-5 * 32 / 40, rel=1e-12)


def test_qk_layernorm_ties_three_sizes(tmp_path):
    folder = save(random_phi(qk_layernorm=True), tmp_path / "qk")
    with pytest.raises(ConfigError, match="Grow residual, heads and head_dim so that they agree"):
        growth.plan(widen("residual", to=40, init="tile", shares="equal"), folder)
