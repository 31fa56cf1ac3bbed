"""One rank of tests/distributed/test_distributed.py: loads grown models into shards and says what it saw."""

import json
import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import Trainer

from growth.distributed.grow_reader import GrowReader, empty_model, materialise
from growth.verification.streaming import load_stock


def by_columns(parameter):
    return Shard(1) if parameter.ndim > 1 else Shard(0)


FSDP = {"rows": None, "columns": by_columns, "mesh": None}  # how parameters are cut
OUTPUTS, INPUTS = ColwiseParallel, RowwiseParallel  # of a matrix's outputs and inputs, among the ranks of a tensor mesh
TENSOR = {
    "llama": {f"self_attn.{name}_proj": OUTPUTS for name in "qkv"}
    | {"self_attn.o_proj": INPUTS, "mlp.gate_proj": OUTPUTS, "mlp.up_proj": OUTPUTS, "mlp.down_proj": INPUTS},
    "phi": {f"self_attn.{name}_proj": OUTPUTS for name in "qkv"}
    | {"self_attn.dense": INPUTS, "mlp.fc1": OUTPUTS, "mlp.fc2": INPUTS},
}


def sharded(reader, placement):
    """The empty model, sharded by FSDP2 over all ranks, by tensor parallelism over pairs of ranks, or by both."""
    model, size = empty_model(reader.config), dist.get_world_size()
    in_pairs = placement in ("tensor", "mesh")
    shape = (size // 2, 2) if in_pairs else (size, 1)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))
    if in_pairs:
        for layer in model.model.layers:
            plan = {name: style() for name, style in TENSOR[model.config.model_type].items()}
            parallelize_module(layer, mesh["tensor"], plan)
    if placement in FSDP:
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh["data"], shard_placement_fn=FSDP[placement])
        fully_shard(model, mesh=mesh["data"], shard_placement_fn=FSDP[placement])
    return materialise(model, "cpu").eval()


def trainer_optimizer(model):
    """AdamW with the Trainer's groups."""
    decaying = set(Trainer.get_decay_parameter_names(None, model))
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if (name in decaying) == (decay > 0)], "weight_decay": decay}
        for decay in (0.1, 0.0)
    ]
    return torch.optim.AdamW(groups, foreach=False)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def memory(model, reader):
    """The optimizer's state as the reader grows it: by number, as load_state_dict takes it, of whole tensors."""
    optimizer = trainer_optimizer(model)
    state = get_optimizer_state_dict(model, optimizer)
    dcp.load(state, storage_reader=reader)
    set_optimizer_state_dict(model, optimizer, state)
    found = optimizer.state_dict()
    entries = {n: {key: whole(value) for key, value in entry.items()} for n, entry in found["state"].items()}
    return entries, found["param_groups"]


def difference(model, reader, grown):
    """What of the optimizer's state is not that of a grown folder of the Trainer."""
    state, groups = memory(model, reader)
    expected = torch.load(Path(grown) / "optimizer.pt", weights_only=True)
    wrong = [
        f"{n}.{key}"
        for n, entry in expected["state"].items()
        for key, value in entry.items()
        if not torch.equal(state[n][key], value.float())
    ]
    options = [[{key: group[key] for key in ("lr", "betas", "weight_decay", "params")} for group in of]
               for of in (groups, expected["param_groups"])]  # fmt: skip
    return wrong + ["groups"] * (options[0] != options[1]) + ["numbers"] * (state.keys() != expected["state"].keys())


@contextmanager
def reads():
    """The sizes of all reads at an offset, which are how a source is read."""
    sizes, call = [], os.preadv

    def noted(*arguments):
        sizes.append(call(*arguments))
        return sizes[-1]

    os.preadv = noted
    try:
        yield sizes
    finally:
        os.preadv = call


def main():
    """For each case {source, optimizer, recipe.yaml, grown, placement}, in float32: whether all values are the file's,
    logits, whether the optimizer's state is the file's, bytes that the reader says it has read and that it has.
    """
    dist.init_process_group("gloo")
    cases, output = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    ids = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(1))
    seen = {}
    for name, case in cases.items():
        reader = GrowReader(case["source"], case["recipe.yaml"], dtype="float32", optimizer=case["optimizer"])
        model = sharded(reader, case["placement"])
        state = model.state_dict()
        with reads() as sizes:
            dcp.load(state, storage_reader=reader)
        expected = load_stock(Path(case["grown"])).state_dict()
        different = [n for n, tensor in expected.items() if not torch.equal(whole(state[n]), tensor)]
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        seen[name] = {
            "different": different,
            "unknown": sorted(state.keys() ^ expected.keys()),
            "tied": tied,
            "bytes": reader.bytes_read,
            "read": sum(sizes),
        }
        if case["optimizer"]:
            seen[name] |= {"memory": difference(model, reader, case["grown"]), "memory_bytes": reader.bytes_read}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FSDP2-wrapped")
            logits = model(input_ids=ids).logits
        if dist.get_rank() == 0:
            save_file({"logits": logits.contiguous()}, output / f"{name}.safetensors")
    (output / f"rank{dist.get_rank()}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
