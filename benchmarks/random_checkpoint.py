"""Writes a seeded random checkpoint of a true geometry, tensor by tensor, without a model in memory.

python benchmarks/random_checkpoint.py out/phi-1_5 --model phi-1.5
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

from growth.architectures import architecture
from growth.checkpoint import SINGLE, layout

PHI_1_5 = {
    "architectures": ["PhiForCausalLM"],
    "model_type": "phi",
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": False,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "bos_token_id": None,
    "eos_token_id": None,
}
MODELS = {"phi-1.5": PHI_1_5, "phi-1.5-two-layers": {**PHI_1_5, "num_hidden_layers": 2}}


def values(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random fp16 values of a trained model's sizes: gains about 1, the rest small."""
    generator = np.random.default_rng([seed, *name.encode()])
    drawn = generator.standard_normal(shape, np.float32)
    if "norm" in name and name.endswith("weight"):
        return (1 + 0.2 * drawn).astype(np.float16)
    return (0.02 * drawn).astype(np.float16)


def write(folder: Path, config: dict, seed: int = 0) -> None:
    """Writes config.json and model.safetensors."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shapes = architecture(config).shapes()
    header, places = layout(folder / SINGLE, [(name, "F16", shape) for name, shape in shapes.items()])
    with (folder / SINGLE).open("wb") as file:
        file.write(header)
        for place in places:
            file.write(values(place.name, place.shape, seed).data)
        os.fsync(file.fileno())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=MODELS, default="phi-1.5")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.folder, MODELS[options.model], options.seed)
