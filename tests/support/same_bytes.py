"""What growths of given sources must be, byte for byte; run as a program, it prints the hashes as JSON.

    python -m tests.support.same_bytes [--workers N] [--parts N] [--shard BYTES] [--serial] [--only PART_OF_A_NAME] [--write]

It needs no torch: another processor's, another numpy's or another Python's hashes are soon compared. `--write` makes
tests/support/same_bytes.json, which is to be read before it is committed: what differs in it changes what users' seeds give.
"""

import argparse
import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np

import growth
from growth.algebra.draws import Draws
from growth.architectures import architecture
from growth.architectures.base import Architecture
from growth.arrays.casting import NUMPY_DTYPES, cast
from growth.planning.recipe import load_recipe, recipe_of
from tests.support.paths import PHI_MINI

GOLDEN = Path(__file__).with_name("same_bytes.json")
TINY = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "head_dim": 8}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SOURCES = {  # configs of sources whose weights are drawn here
    "llama": {"model_type": "llama", **TINY, **HEADS, "rope_theta": 10000.0},
    "qwen3": {"model_type": "qwen3", **TINY, **HEADS, "tie_word_embeddings": True},
    "gemma2": {"model_type": "gemma2", **TINY, **HEADS},
    "mixtral": {"model_type": "mixtral", **TINY, **HEADS, "num_local_experts": 2, "num_experts_per_tok": 2},
    "gpt2": {"model_type": "gpt2", "vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 33},
}
SAMPLE = {"op": "widen", "init": "sample", "shares": "random"}
APART = {"op": "break_symmetry"}
COPIES = {"op": "widen", "init": "tile", "shares": "equal"}
DRAWN = {  # recipes in which as much as can be is drawn, or divided by numbers that no half type holds
    "copies": [
        {**SAMPLE, "axis": "residual", "factor": 1.75},
        {**SAMPLE, "axis": "ffn", "factor": 2.5},
        {**COPIES, "axis": "heads", "factor": 1.5},
        {"op": "widen", "axis": "vocab", "multiple": 128, "init": "random"},
        {"op": "deepen", "factor": 1.5},
    ],
    "divided": [
        {**COPIES, "axis": "residual", "factor": 3},
        {"op": "widen", "axis": "ffn", "factor": 1.375, "init": "sample", "shares": "mask"},
        {**COPIES, "axis": "heads", "factor": 3},
        APART,
    ],
    "fresh": [
        {"op": "widen", "axis": "residual", "factor": 1.25, "init": "pad"},
        {"op": "widen", "axis": "ffn", "factor": 1.5, "init": "pad"},
        {"op": "widen", "axis": "vocab", "multiple": 64, "init": "mean"},
        {"op": "deepen", "factor": 2, "order": "stack"},
    ],
    "experts": [
        {"op": "upcycle", "experts": 3, "top_k": 2, "router_std": 0.03},
        {**COPIES, "axis": "ffn", "factor": 2},
        {"op": "widen", "axis": "experts", "factor": 2},
        APART,
    ],
    "twins": [{"op": "widen", "axis": "experts", "factor": 2}, {**COPIES, "axis": "ffn", "factor": 2}, APART],
    "reused": [{"op": "reuse", "to": {"residual": 40, "ffn": 56}, "method": "submatrix", "fan_in": True}],
}
TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
SHIPPED = ("double-both", "double-depth", "double-width", "one-and-a-half-width", "phi-mini")


def cases():
    """Name -> (source, recipe, dtype); a source is phi-mini, or a config's name and the type its weights are in."""
    found = {f"phi-mini, {name}": ("phi-mini", load_recipe(name), None) for name in SHIPPED}
    for code, dtype in TYPES.items():
        found[f"phi-mini, copies, {dtype}"] = ("phi-mini", _recipe("copies"), dtype)
        for source, recipe in [("llama", "copies"), ("llama", "divided"), ("llama", "reused"), ("qwen3", "experts")]:
            found[f"{source}, {recipe}, {dtype}"] = (f"{source} {code}", _recipe(recipe), None)
    for source, recipe in (
        ("gemma2", "divided"),
        ("gpt2", "divided"),
        ("qwen3", "copies"),
        ("qwen3", "fresh"),
        ("mixtral", "twins"),
    ):
        found[f"{source}, {recipe}"] = (f"{source} BF16", _recipe(recipe), None)
    return found


def _recipe(name):
    return recipe_of({"description": name, "seed": 20_26, "steps": DRAWN[name]}, name)


def write_source(name, folder):
    """Writes the checkpoint that `name` stands for; every value of it is drawn."""
    family, code = name.split()
    table: Architecture = architecture(SOURCES[family])
    header, content = {}, b""
    for tensor, shape in table.shapes().items():
        values = Draws(0, f"{family}/{tensor}").elements(0, shape) * np.float32(0.1)
        data = cast(values, np.empty(shape, NUMPY_DTYPES[code])).tobytes()
        header[tensor] = {"dtype": code, "shape": shape, "data_offsets": [len(content), len(content) + len(data)]}
        content += data
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SOURCES[family]))
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content)


def tensor_hashes(folder):
    """Tensor -> hash of its type, shape and bytes, over all files of a folder."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:start]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                found[name] = short_hash(entry["dtype"], entry["shape"], content[start + begin : start + end])
    return dict(sorted(found.items()))


def short_hash(dtype, shape, data):
    """Twelve digits of the SHA-256 of a tensor."""
    return hashlib.sha256(f"{dtype} {list(shape)} ".encode() + bytes(data)).hexdigest()[:12]


def hashes(place, only="", parts=1, **options):
    """Case -> tensor -> hash, and that of config.json."""
    found = {}
    for name, (source, recipe, dtype) in cases().items():
        if only not in name:
            continue
        folder = PHI_MINI if source == "phi-mini" else place / source
        if not folder.exists():
            write_source(source, folder)
        output = place / name
        for part in range(1, parts + 1):
            share = (part, parts) if parts > 1 else None
            growth.grow(recipe, folder, output, dtype=dtype, part=share, forks=True, **options)
        found[name] = tensor_hashes(output)
        config = json.loads((output / "config.json").read_text())
        found[name]["config.json"] = short_hash("", [], json.dumps(config, sort_keys=True).encode())
    return found


def main():
    """Prints what was grown, or writes it down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--shard", type=int)
    parser.add_argument("--serial", action="store_true", help="numkong uses no special instructions")
    parser.add_argument("--only", default="")
    parser.add_argument("--write", action="store_true")
    told = parser.parse_args()
    if told.workers:
        os.sched_getaffinity = lambda pid: range(told.workers)
    if told.serial:
        import numkong

        for name in numkong.get_capabilities():
            if name != "serial":
                numkong.disable_capability(name)
    with tempfile.TemporaryDirectory() as place:
        found = hashes(Path(place), told.only, told.parts, max_shard_size=told.shard)
    if told.write:
        GOLDEN.write_text(json.dumps(found, indent=0) + "\n")
    else:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
