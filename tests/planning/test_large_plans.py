"""A plan is made from headers alone, however large the model and however many files it is in."""

import json
import math
import os
import subprocess
import sys
import time

import pytest

import growth
from growth.architectures import architecture
from growth.checkpoints.formats.safetensors import INDEX, layout
from growth.operators import chain, deepen, widen

LLAMA_405B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}
FILES = 1000


@pytest.fixture(scope="module")
def llama_405b(tmp_path_factory):
    """Its headers in 1,000 files that take no space: 0.8 TB of zeros that are nowhere."""
    folder = tmp_path_factory.mktemp("llama-405b")
    (folder / "config.json").write_text(json.dumps(LLAMA_405B))
    tensors = [(name, "BF16", shape) for name, shape in architecture(LLAMA_405B).shapes().items()]
    weight_map = {}
    for number in range(FILES):
        name = f"model-{number + 1:05d}-of-{FILES:05d}.safetensors"
        header, places = layout(folder / name, tensors[number::FILES])
        (folder / name).write_bytes(header)
        os.truncate(folder / name, len(header) + sum(place.bytes for place in places))
        weight_map |= {place.name: name for place in places}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_planning_405_billion_parameters_takes_neither_time_nor_memory(llama_405b):
    """Processor seconds, the best of three: another process on the machine must not decide."""
    watched = (
        "import resource, sys, growth\n"
        "plan = growth.plan('double-depth', sys.argv[1])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "peak = next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]\n"
        "print(len(plan.tensors), plan.bytes, used.ru_utime + used.ru_stime, peak, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", watched, str(llama_405b)]
    runs = [subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split() for _ in range(3)]
    rows, size, seconds, peak, torch = min(runs, key=lambda run: float(run[2]))
    assert (int(rows), torch) == (3 + 9 * 252, "False")
    before = architecture(LLAMA_405B).shapes()
    layers = 2 * sum(math.prod(shape) for name, shape in before.items() if ".layers." in name)
    assert int(size) == 2 * (layers + sum(math.prod(shape) for name, shape in before.items() if ".layers." not in name))
    assert float(seconds) < 2
    assert int(peak) / 1024 < 300


def test_planning_reads_no_tensor(llama_405b):
    """Twice as wide as well: 3.2 T parameters, of which nothing was read: the zeros would have taken minutes."""
    began = time.process_time()
    doubled = chain(*(widen(axis, factor=2, init="tile") for axis in ("residual", "heads", "ffn")), deepen(factor=2))
    plan = growth.plan(doubled, llama_405b)
    assert plan.preserving
    assert plan.parameters > 3e12
    assert {tensor_map.dimensions[0].size for tensor_map in plan.tensors if tensor_map.target == "lm_head.weight"} == {
        128256
    }
    assert time.process_time() - began < 10
