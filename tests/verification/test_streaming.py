"""Streaming: the stock forward from disk is the stock forward in memory, and refuses what does not fit."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from growth.checkpoints.open import open_stored
from growth.errors import CheckpointError, ConfigError
from growth.verification.float64 import proof_grade
from growth.verification.streaming import CHUNK, StreamedModel, WeightPool, load_stock, read_tensor, stream
from tests.support.models import random_phi, save, tokens

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": {},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},  # tied: the file has no head
    "mixtral": {"num_local_experts": 4},  # experts are stored one by one and run fused
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "embd_pdrop": 0.0},
}


def family(name):
    known = {key: value for key, value in SMALL.items() if name != "gpt2" or key.endswith(("_size", "_id"))}
    known.pop("hidden_size" if name == "gpt2" else "", None)
    config = AutoConfig.for_model(name, **{**known, **FAMILIES[name]})
    with proof_grade():
        options = {"attn_implementation": "eager", "experts_implementation": "eager"}
        model = AutoModelForCausalLM.from_config(config, **options)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.2, generator=generator)
    return model.eval()


def trace(folder):
    """The logits, and the residual streams entering the first layer and leaving each layer."""
    streams = []
    logits = stream(folder, tokens(), torch.float64, lambda _, hidden: streams.append(hidden.clone()))
    return logits, streams


@torch.no_grad()
def in_memory(model, ids):
    with proof_grade() if model.dtype == torch.float64 else torch.no_grad():
        return model(input_ids=ids, output_hidden_states=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_nobody_reads_memory_that_was_given_back(tmp_path, name, monkeypatch):
    model = family(name)
    model.save_pretrained(tmp_path)
    give_back = WeightPool.give_back

    def poisoned(pool, weight):
        give_back(pool, weight.fill_(float("nan")))

    monkeypatch.setattr(WeightPool, "give_back", poisoned)
    ids = tokens(model.config.vocab_size)
    assert torch.equal(stream(tmp_path, ids, torch.float64), in_memory(model, ids).logits)


@pytest.mark.parametrize("name", ["qwen3_next", "gpt_neox_japanese", "llama4_text"])
def test_weights_that_are_read_where_they_are_not_loaded_are_no_garbage(tmp_path, name):
    """Some classes read weights of modules that they do not call; what they compute is right, or refused."""
    known = AutoConfig.for_model(name).to_dict().keys()
    config = AutoConfig.for_model(name, **{key: value for key, value in SMALL.items() if key in known})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    model.eval().save_pretrained(tmp_path)
    ids = tokens(SMALL["vocab_size"])
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
    try:
        found = stream(tmp_path, ids, torch.float32)
    except CheckpointError as error:
        assert "cannot be run a module at a time" in str(error)  # noqa: PT017 (one of two good ends)
    else:
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_phi_from_disk_equals_phi_as_transformers_loads_it(tmp_path, dtype):
    folder = save(random_phi(dtype), tmp_path / "phi")
    model = load_stock(folder, dtype)
    model.set_attn_implementation("eager")
    assert torch.equal(stream(folder, tokens(), dtype), in_memory(model, tokens()).logits)


def test_phi_from_disk_equals_phi_in_memory_in_float64(tmp_path):
    model = random_phi()
    logits, streams = trace(save(model, tmp_path / "phi"))
    expected = in_memory(model, tokens())
    assert torch.equal(logits, expected.logits)
    assert len(streams) == 4
    # transformers reports the last one after the final norm
    assert all(map(torch.equal, streams[:-1], expected.hidden_states[:-1]))


@pytest.mark.parametrize("name", FAMILIES)
def test_families_from_disk_equal_those_in_memory(tmp_path, name):
    model = family(name)
    model.save_pretrained(tmp_path)
    logits, streams = trace(tmp_path)
    expected = in_memory(model, tokens())
    assert torch.equal(logits, expected.logits)
    assert torch.equal(streams[1], expected.hidden_states[1])


def test_shards_are_read(tmp_path):
    model = random_phi()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert torch.equal(stream(tmp_path, tokens(), torch.float64), in_memory(model, tokens()).logits)


def test_weights_can_be_perturbed_by_their_stored_names(tmp_path):
    names = []
    folder = save(random_phi(), tmp_path / "phi")
    StreamedModel(folder, torch.float64).run(tokens(), perturbs=[lambda name, weight: names.append(name)])
    assert sorted(names) == sorted(open_stored(folder).tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_read_tensor_converts_in_chunks(tmp_path, dtype):
    stored = {"long": torch.randn(CHUNK // 512 + 1, 1024).to(dtype), "scalar": torch.tensor(2.5).to(dtype)}
    (tmp_path / "config.json").write_text("{}")
    save_file(stored, tmp_path / "model.safetensors")
    for name, info in open_stored(tmp_path).tensors.items():
        assert torch.equal(read_tensor(info), stored[name])
        with proof_grade():
            found = read_tensor(info, torch.float64)
        assert torch.equal(found, stored[name].double())


# ------------------------------------------------- refusals

LOST = "model.layers.1.mlp.fc1.weight"


def broken(folder, change):
    save(random_phi(torch.float32), folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


DAMAGE = {
    "missing": (lambda weights: weights.pop(LOST), f"{LOST}: missing"),
    "unexpected": (lambda weights: weights.update(extra=torch.ones(1)), "extra: in the file but unknown"),
    "mismatched": (lambda weights: weights.update({LOST: torch.ones(3, 4)}), "of another shape"),
}


@pytest.mark.parametrize("read", [load_stock, lambda f: stream(f, tokens(), torch.float32)])
@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_an_incomplete_checkpoint_is_refused_by_name(tmp_path, change, message, read):
    with pytest.raises(CheckpointError, match=message):
        read(broken(tmp_path / "phi", change))


def test_an_intact_checkpoint_passes(phi_folder):
    model = load_stock(phi_folder)
    assert model.dtype == torch.float64
    assert not model.training


def test_an_unknown_model_type_is_a_config_error(tmp_path):
    folder = save(random_phi(torch.float32), tmp_path / "phi")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "phidelity"}))
    with pytest.raises(ConfigError, match="no stock model"):
        stream(folder, tokens(), torch.float32)


def test_a_quantised_tensor_is_refused(tmp_path):
    def quantise(weights):
        weights[LOST] = weights[LOST].to(torch.int8)

    with pytest.raises(CheckpointError, match="stored as I8"):
        stream(broken(tmp_path / "phi", quantise), tokens(), torch.float32)


MEASURE = """
import resource, sys, torch
from pathlib import Path
from growth.verification.streaming import stream
ids = torch.zeros(1, 4, dtype=torch.int64)
stream(Path(sys.argv[1]), ids, torch.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stream(Path(sys.argv[2]), ids, torch.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="ru_maxrss is in bytes there")
@pytest.mark.slow
def test_memory_does_not_grow_with_depth(tmp_path):
    geometry = {"hidden_size": 256, "intermediate_size": 1024}
    small = save(random_phi(torch.float16, num_hidden_layers=2, **geometry), tmp_path / "small")
    deep = save(random_phi(torch.float16, num_hidden_layers=24, **geometry), tmp_path / "deep")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(deep)], capture_output=True, text=True, check=True
    )
    more, model = int(done.stdout), 4 * 24 * 0.79e6 / 1024  # in KB
    assert more < model / 4
