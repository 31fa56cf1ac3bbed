"""One rank of tests/distributed/test_distributed.py: loads grown models into FSDP2 shards and says what it saw."""

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
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard

from growth.distributed.grow_reader import GrowReader, empty_model, materialise
from growth.verification.streaming import load_stock


def by_columns(parameter):
    return Shard(1) if parameter.ndim > 1 else Shard(0)


PLACEMENTS = {"rows": None, "columns": by_columns}


def sharded(reader, placement):
    model = empty_model(reader.config)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, shard_placement_fn=PLACEMENTS[placement])
    fully_shard(model, mesh=mesh, shard_placement_fn=PLACEMENTS[placement])
    return materialise(model, "cpu").eval()


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
    """For each case {source, recipe.yaml, grown, placement}, in float32: whether all values are the file's, logits,
    bytes that the reader says it has read and that it has.
    """
    dist.init_process_group("gloo")
    cases, output = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    ids = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(1))
    seen = {}
    for name, case in cases.items():
        reader = GrowReader(case["source"], case["recipe.yaml"], dtype="float32")
        model = sharded(reader, case["placement"])
        state = model.state_dict()
        with reads() as sizes:
            dcp.load(state, storage_reader=reader)
        expected = load_stock(Path(case["grown"])).state_dict()
        different = [n for n, tensor in expected.items() if not torch.equal(state[n].full_tensor(), tensor)]
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FSDP2-wrapped")
            logits = model(input_ids=ids).logits
        seen[name] = {
            "different": different,
            "unknown": sorted(state.keys() ^ expected.keys()),
            "tied": tied,
            "bytes": reader.bytes_read,
            "read": sum(sizes),
        }
        if dist.get_rank() == 0:
            save_file({"logits": logits.contiguous()}, output / f"{name}.safetensors")
    (output / f"rank{dist.get_rank()}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
