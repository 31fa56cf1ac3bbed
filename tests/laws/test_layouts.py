"""The same mathematics in two layouts, grown by the same recipe, gives the same tensors: Llama's and Phi-3's."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

import growth
from growth.architectures import architecture
from growth.operators import chain, deepen, widen
from growth.verification.float64 import proof_grade
from tests.cases.llama import SMALL
from tests.support.families import Case, random_model
from tests.support.models import EXACT, grown, relative_error

FUSED = {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"), "mlp.gate_up_proj": ("gate_proj", "up_proj")}
TRAITS = ({}, {"num_key_value_heads": 4, "tie_word_embeddings": True}, {"num_key_value_heads": 1, "head_dim": 6})


def steps(init, norm_eps):
    """Every axis that both families can grow."""
    shares = None if init == "pad" else "equal"  # divided weights depend on the name of their tensor
    return {
        "residual": widen("residual", to=40, init=init, norm_eps=norm_eps, shares=shares, seed=1),
        "ffn": widen("ffn", to=70, init=init, shares=shares, seed=2),
        "heads": widen("heads", to=8, init=init, shares=shares, seed=3),
        "vocab": widen("vocab", to=70, init=init, seed=4),
        "layers": deepen(to=5),
    }


def fused(state, layers):
    """A Llama's tensors as Phi-3 stores them."""
    made = dict(state)
    for layer in range(layers):
        for name, parts in FUSED.items():
            block = f"model.layers.{layer}.{name.partition('.')[0]}"
            made[f"model.layers.{layer}.{name}.weight"] = torch.cat([made.pop(f"{block}.{p}.weight") for p in parts])
    return made


def as_phi3(llama):
    """The Phi-3 that computes what a Llama does."""
    stated = {key: getattr(llama.config, key) for key in (*SMALL, "head_dim", "tie_word_embeddings")}
    config = Phi3Config(**stated, rms_norm_eps=llama.config.rms_norm_eps)
    with proof_grade():
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    model.load_state_dict(fused(llama.state_dict(), config.num_hidden_layers))
    return model


def pair(traits):
    llama = random_model(Case("llama", "", SMALL | {"head_dim": 8} | traits))
    return llama, as_phi3(llama)


@pytest.mark.parametrize("traits", TRAITS)
def test_the_two_are_one_function(traits):
    llama, phi3 = pair(traits)
    assert isinstance(llama.config, LlamaConfig)
    assert relative_error(llama, phi3) <= EXACT


@pytest.mark.parametrize("norm_eps", ["stock", "rescale"])
@pytest.mark.parametrize("init", ["tile", "sample"])
@pytest.mark.parametrize("traits", TRAITS)
def test_same_recipe_same_tensors(traits, init, norm_eps):
    llama, phi3 = pair(traits)
    operator = chain(*steps(init, norm_eps).values())
    one, other = grown(llama, operator), grown(phi3, operator)
    expected, found = fused(one.state_dict(), one.config.num_hidden_layers), other.state_dict()
    assert expected.keys() == found.keys()
    layers = operator(growth.Growth.start(architecture(llama.config.to_dict()))).layers
    silent = {number for number, layer in enumerate(layers) if layer.silent}  # they draw values, by a tensor's name
    for name in expected:
        if not any(name.startswith(f"model.layers.{number}.") for number in silent):
            assert torch.equal(expected[name], found[name]), name
    assert relative_error(one, other) <= EXACT


@pytest.mark.parametrize("traits", TRAITS)
def test_same_recipe_same_function_where_units_are_fresh(traits):
    """Fresh values are drawn by a tensor's name and so differ; what is computed does not."""
    llama, phi3 = pair(traits)
    operator = chain(*(step for axis, step in steps("pad", "stock").items() if axis != "vocab"))
    assert relative_error(grown(llama, operator), grown(phi3, operator)) <= EXACT
