"""Write docs/scale-training.md: what growing a model and its optimizer costs on a cluster, from measured costs.

make scale        (or: python benchmarks/scale_training.py --output docs/scale-training.md --work out/bench)
"""

import argparse
import math
import os
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from models import SWEEP, Bench, machine
from scale import duration, markdown, volume

from growth.algebra.arithmetic import sample_step
from growth.architectures import architecture
from growth.arrays.tensor_info import TensorInfo
from growth.distributed.grow_reader import GrowReader
from growth.distributed.parameter_boxes import is_measured
from growth.planning.plan import Plan, make_plan
from growth.planning.prepare import apply_recipe
from growth.planning.recipe import load_recipe
from growth.training.parameter_names import parameter_names
from growth.training.trainer_checkpoint import meta_model, trainer_groups

PER_NODE = 8  # ranks
WEIGHT, MOMENTS = 2, 8  # bytes of a bf16 weight, and of Adam's two float32 moments of it

TO_70B = """\
description: Llama 3 from 8B to the geometry of 70B, exact
steps:
  - {op: widen, axis: residual, to: 8192, init: pad}
  - {op: widen, axis: queries, to: 8, init: pad}
  - {op: widen, axis: ffn, to: 28672, init: pad}
  - {op: deepen, to: 80, order: interleave, init: identity}
"""
PHI = {
    "model_type": "phi", "vocab_size": 51200, "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32,
    "intermediate_size": 8192, "partial_rotary_factor": 0.5, "max_position_embeddings": 2048, "layer_norm_eps": 1e-5,
    "hidden_act": "gelu_new", "tie_word_embeddings": False,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False, "rope_theta": 500000.0,
}  # fmt: skip
RUNS: Mapping[str, tuple[dict[str, Any], str, tuple[int, ...]]] = {  # config, recipe, numbers of ranks
    "1.3B → 2.7B (Phi-1.5 → Phi-2)": (PHI, "phi-1.5-to-phi-2", (8, 16, 32)),
    "8B → 70B (Llama 3)": (LLAMA, TO_70B, (64, 128, 256)),
}


@dataclass(frozen=True)
class Costs:
    """Processor seconds of one process per GB of output: of bf16 weights, and of float32 moments."""

    weights: float
    moments: float


def measured(bench: Bench) -> Costs:
    """Measure a load through GrowReader of a small model and of its AdamW state, in one thread."""
    case = SWEEP["0.1 B"]
    source, recipe = bench.source(case), bench.recipe(case)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        state = Path(folder) / "optimizer.pt"
        torch.save(_adam(source), state)
        reader = GrowReader(source, recipe, optimizer=state)
        entries = reader.read_metadata().state_dict_metadata
        big = {name: entry for name, entry in entries.items() if len(getattr(entry, "size", ()))}
        return Costs(*(_seconds(reader, big, moments=moments) for moments in (False, True)))


def _adam(source: Path) -> dict[str, Any]:
    """A state dict of AdamW with the Trainer's groups and random moments."""
    from growth.checkpoints.open import open_checkpoint

    checkpoint = open_checkpoint(source)
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    model = meta_model(checkpoint.config)
    groups = trainer_groups(model, parameter_names(model, shapes))
    names = [name for group in groups for name in group]
    moments = {n: (torch.randn(shapes[name]), torch.rand(shapes[name])) for n, name in enumerate(names)}
    entries = {n: {"step": torch.tensor(9.0), "exp_avg": m, "exp_avg_sq": v} for n, (m, v) in moments.items()}
    options = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).state_dict()["param_groups"][0]
    numbers = iter(range(len(names)))
    return {"state": entries, "param_groups": [{**options, "params": [next(numbers) for _ in g]} for g in groups]}


def _seconds(reader: GrowReader, entries: Mapping[str, Any], *, moments: bool) -> float:
    wanted = {name: entry for name, entry in entries.items() if name.startswith("state.") == moments}
    state = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in wanted.items()}
    for tensor in state.values():
        tensor.fill_(0)  # its pages exist before the clock starts
    begun = time.process_time()
    dcp.load(state, storage_reader=reader)
    return (time.process_time() - begun) / (sum(tensor.nbytes for tensor in state.values()) / 1e9)


# ------------------------------------------------- what a rank reads


def plan_of(config: Mapping[str, Any], recipe: str) -> Plan:
    """Return the plan for a model of which only the config exists."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(recipe)
        loaded = load_recipe(path if "\n" in recipe else recipe)
    source = architecture(config)
    headers = {name: TensorInfo(name, "BF16", shape) for name, shape in source.shapes().items()}
    return make_plan(source, apply_recipe(loaded, source, 0), headers)


def read_by_busiest(plan: Plan, ranks: int) -> tuple[float, float]:
    """Return the values that the busiest rank reads of each kind of tensor, and that all ranks read, on average.

    Parameters are cut by rows, as FSDP2 cuts them. A weight and each of its moments have as many values.
    """
    own = np.zeros(ranks)

    @cache
    def rows(number: int) -> np.ndarray:
        """Return the source rows that each rank copies of a dimension."""
        source = dimensions[number].source
        parts = np.array_split(source, range(-(-len(source) // ranks), len(source), -(-len(source) // ranks)))
        counts = [len(np.unique(part[part >= 0])) for part in parts]
        return np.array(counts + [0] * (ranks - len(counts)), float)

    dimensions = {id(t.dimensions[0]): t.dimensions[0] for t in plan.tensors}
    for t in plan.tensors:
        if t.zero:
            continue
        row = math.prod(t.source.shape[1:])
        own += rows(id(t.dimensions[0])) * row
        if is_measured(t):
            step = 1 if t.dimensions[0].mean_correction is not None else sample_step(t.source.shape)
            own += math.prod(t.source.shape) / step / ranks
    return float(own.max()), float(own.mean())


# ------------------------------------------------- the page


def table(plan: Plan, ranks: tuple[int, ...], costs: Costs, storage: float) -> str:
    """Return the table of one growth."""
    small = sum(math.prod(info.shape) for info in plan.sources.values())
    large, rate = plan.parameters, storage / PER_NODE
    rows: list[list[object]] = [["", *(f"{n} ranks ({n // PER_NODE} node{'s' * (n > PER_NODE)})" for n in ranks)]]
    read = {n: read_by_busiest(plan, n) for n in ranks}
    gigabytes = {n: busiest * (WEIGHT + MOMENTS) / 1e9 for n, (busiest, _) in read.items()}
    saving = {n: small * (WEIGHT + MOMENTS) / n / 1e9 / rate for n in ranks}
    growing = {n: large * (WEIGHT * costs.weights + MOMENTS * costs.moments) / n / 1e9 for n in ranks}
    reading = {n: gigabytes[n] / rate for n in ranks}
    rows += [
        ["a rank saves of the source: weights + moments", *(volume(saving[n] * rate) for n in ranks)],
        ["a rank reads: mean", *(volume(mean * (WEIGHT + MOMENTS) / 1e9) for _, mean in read.values())],
        ["a rank reads: busiest", *(volume(gigabytes[n]) for n in ranks)],
        ["memory of a rank: weights + moments", *(volume(large * (WEIGHT + MOMENTS) / n / 1e9) for n in ranks)],
        ["1. `dcp.save` of the source", *(duration(saving[n]) for n in ranks)],
        ["2. `dcp.load`: read", *(duration(reading[n]) for n in ranks)],
        ["3. `dcp.load`: grow", *(duration(growing[n]) for n in ranks)],
        ["in all", *(duration(saving[n] + reading[n] + growing[n]) for n in ranks)],
    ]
    return markdown(*map(tuple, rows))


def document(costs: Costs, storage: float) -> str:
    """Return the whole of docs/scale-training.md."""
    about = machine()
    parts = []
    for name, (config, recipe, ranks) in RUNS.items():
        plan = plan_of(config, recipe)
        shown = f"the shipped recipe `{recipe}`:" if "\n" not in recipe else f"this recipe:\n\n```yaml\n{recipe}```"
        parts.append(f"## {name}\n\nWith {shown}\n\n{table(plan, ranks, costs, storage)}\n")
    load = os.getloadavg()[0]
    return f"""\
# Growing in the middle of training, on a cluster

This page states what it costs to grow a model *and its optimizer* between two steps of a sharded run: save the small
model with `torch.distributed.checkpoint` (DCP), grow it while DCP loads it into the shards of the large one, and train
on. `make scale` writes this page. **Every figure for several ranks is computed, not measured**, from exact counts of
bytes, which follow from the plans, and from two measured costs.

*The tests do not run this block: it is a part of examples/fsdp_loop.py, which they run on two ranks.*

```python
dcp.save(get_model_state_dict(model), checkpoint_id=folder)                                   # every rank its shards
dcp.save(get_optimizer_state_dict(model, optimizer), checkpoint_id=folder / "optimizer")
if rank == 0:
    model.config.save_pretrained(folder)
dist.barrier()
reader = GrowReader(folder, recipe, optimizer=folder / "optimizer")
larger = materialise(shard(empty_model(reader.config)), device)                               # memory for its shards
dcp.load(get_model_state_dict(larger), storage_reader=reader)
optimizer = make_optimizer(larger)
state = get_optimizer_state_dict(larger, optimizer)
dcp.load(state, storage_reader=reader)
set_optimizer_state_dict(larger, optimizer, state)
```

[examples/fsdp_loop.py](../examples/fsdp_loop.py) is a complete loop that does this; on a cluster, start it with

*The tests do not run this block: it needs a cluster.*

```console
$ torchrun --nnodes 8 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 fsdp_loop.py
```

No rank holds more than its shards and a block of rows. The ranks exchange only means and standard deviations: numbers,
and for models with LayerNorm one mean per row of the matrices that store the stream along their columns.

A Trainer under accelerate's FSDP does this between two runs, by one command, which a single process carries out one
tensor at a time ([trainers.md](trainers.md#fsdp)):

*The tests do not run this block: [trainers.md](trainers.md#fsdp) has one that they run.*

```console
$ growth grow RECIPE --source CHECKPOINT --config MODEL --output LARGER --training
```

## What was measured

One process and one thread ({about["processor"]}) grew a model of 0.1 B parameters by a
quarter in width, on load, from the page cache. It took {costs.weights:.2f} processor seconds per GB of bf16 weights,
which are divided among copies at random, and {costs.moments:.2f} per GB of float32 moments. These are processor
seconds (`time.process_time`), measured while the load of the machine's {about["cores"]} cores was {load:.1f}: on an
idle machine they are smaller.

## What is assumed

- {PER_NODE} ranks per node. A node reads and writes its storage at {storage:g} GB/s, whatever the others do, and its
  ranks share that rate equally.
- bf16 weights and two float32 moments per weight; parameters sharded by rows over all ranks (FSDP2).
- Every rank grows with one thread, and grows after it has read. Nothing is in a page cache.

The busiest rank reads more than the mean because the rows that the source has are not spread evenly: in a matrix whose
rows are doubled by padding, half of the ranks hold fresh rows, which are not read, and the others hold every old row.
Sharding by columns is bounded in the same way. [scale.md](scale.md) has the measured factors for growth by a quarter.

{chr(10).join(parts)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/bench"), help="folder of the source")
    parser.add_argument("--output", type=Path, default=Path("docs/scale-training.md"))
    parser.add_argument("--storage", type=float, default=2.0, help="GB/s that each node reads and writes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    options.output.write_text(document(measured(Bench(options.work)), options.storage))


if __name__ == "__main__":
    main()
