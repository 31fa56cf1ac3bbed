"""Write a seeded random checkpoint of a real geometry, tensor by tensor, without a model in memory.

python benchmarks/random_checkpoint.py out/phi-1_5 --model phi-1.5
"""

import argparse
import json
import os
from collections.abc import Iterator
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np

from growth.architectures import architecture
from growth.checkpoints.formats.safetensors import INDEX, SINGLE, layout

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
TINYLLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA_405B = {
    **TINYLLAMA,
    "vocab_size": 128256,
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
}
MIXTURE_1T = {
    **TINYLLAMA,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2560,
    "num_hidden_layers": 70,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
    "mlp_only_layers": [],
    "rope_theta": 1000000.0,
    "bos_token_id": None,
    "eos_token_id": None,
}


def phi(hidden: int, layers: int, vocab: int = 51200) -> dict:
    """Return the config of a Phi of another size, with heads of 64 channels."""
    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers, "vocab_size": vocab}
    return {**PHI_1_5, **sizes, "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64}


SIZES = ("vocab_size", "hidden_size", "intermediate_size")
MODELS = {
    "phi-1.5": PHI_1_5,
    "phi-1.5-two-layers": phi(2048, 2),
    "phi-0.1b": phi(512, 16),
    "phi-0.3b": phi(1024, 16),
    "phi-large-vocab": phi(1024, 2, vocab=1_000_000),
    "tinyllama-1.1b": TINYLLAMA,
    "tinyllama-12-layers": {**TINYLLAMA, "num_hidden_layers": 12},
    "llama-405b": LLAMA_405B,
    "mixture-1t": MIXTURE_1T,
    "tiny-phi": phi(64, 2, vocab=512),
    "tiny-phi-vocab": phi(64, 2, vocab=50_000),
    "tiny-llama": {**TINYLLAMA, **dict.fromkeys(SIZES, 256), "num_hidden_layers": 3},
}
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
BLOCK = 1 << 24  # values drawn at a time


def values(name: str, shape: tuple[int, ...], seed: int, dtype: str) -> Iterator[np.ndarray]:
    """Yield random values of realistic sizes, block by block: gains near 1, the rest small."""
    generator = np.random.default_rng([seed, *name.encode()])
    gain = "norm" in name and name.endswith("weight")
    count = prod(shape)
    for start in range(0, count, BLOCK):
        drawn = generator.standard_normal(min(BLOCK, count - start), np.float32)
        drawn = 1 + 0.2 * drawn if gain else 0.02 * drawn
        if dtype == "BF16":  # the upper half of a float32; truncation is good enough here
            yield (drawn.view(np.uint32) >> 16).astype(np.uint16)
        else:
            yield drawn.astype({"F16": np.float16, "F32": np.float32}[dtype])


def write(folder: Path, config: dict, *, seed: int = 0, files: int = 1, sparse: bool = False) -> None:
    """Write config.json and the tensors, in the config's dtype, divided evenly among several safetensors files.

    sparse: write no tensor bytes; the file system reads them as zeros that take no space.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    dtype = DTYPES[config["torch_dtype"]]
    tensors = [(name, dtype, shape) for name, shape in architecture(config).shapes().items()]
    bounds = np.linspace(0, len(tensors), files + 1).astype(int)
    weight_map = {}
    for number, (start, stop) in enumerate(pairwise(bounds), 1):
        name = SINGLE if files == 1 else f"model-{number:05d}-of-{files:05d}.safetensors"
        header, places = layout(folder / name, tensors[start:stop])
        weight_map |= {place.name: name for place in places}
        with (folder / name).open("wb") as file:
            file.write(header)
            for place in places if not sparse else ():
                for block in values(place.name, place.shape, seed, dtype):
                    file.write(block.data)
            file.truncate(len(header) + sum(place.bytes for place in places))
            file.flush()
            os.fsync(file.fileno())
    if files > 1:
        total = sum(2 * prod(shape) for _, _, shape in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=MODELS, default="phi-1.5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=1)
    parser.add_argument("--sparse", action="store_true", help="no values: files that take no space")
    options = parser.parse_args()
    write(options.folder, MODELS[options.model], seed=options.seed, files=options.files, sparse=options.sparse)
