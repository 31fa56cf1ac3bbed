"""Shipped recipes on the configs they are meant for, as the hub has them: planned whole, from headers alone."""

import pytest

from growth.architectures import architecture
from growth.arrays.tensor_info import TensorInfo
from growth.planning.plan import make_plan
from growth.planning.recipe import load_recipe, shipped_recipes
from tests.planning.test_derive import PHI_1_5

LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False}
SOURCES = {
    "microsoft/phi-1_5": PHI_1_5,
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "num_hidden_layers": 22,
        "vocab_size": 32000,
    },
    "HuggingFaceTB/SmolLM2-360M": LLAMA
    | {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "num_hidden_layers": 32,
        "vocab_size": 49152,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.2-1B": LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_hidden_layers": 16,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "Qwen/Qwen3-0.6B": {
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 128,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_window_layers": 28,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "EleutherAI/pythia-410m": {
        "model_type": "gpt_neox",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "vocab_size": 50304,
    },
}
RECIPES = [path.stem for path in shipped_recipes() if load_recipe(path).source in SOURCES]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_for_a_hub_model_arrive(name):
    recipe = load_recipe(name)
    built = architecture(SOURCES[recipe.source])
    headers = {tensor: TensorInfo(tensor, "BF16", shape) for tensor, shape in built.shapes().items()}
    plan = make_plan(built, recipe.grow(built, 0), headers)
    recipe.check(plan.config)
    assert recipe.expect
    assert plan.preserving == ("reuse" not in name)
