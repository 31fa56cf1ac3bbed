"""Train a grown model without writing it: every rank grows its own shards while they are loaded.

    torchrun --standalone --nproc-per-node 2 examples/grow_on_load.py examples/phi-mini phi-mini

The model is sharded by FSDP2. Each rank reads from the source only what its shards copy.
"""

import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from growth.distributed.grow_reader import GrowReader, empty_model, materialise


def grown(source: str, recipe: str, device: str = "cpu") -> torch.nn.Module:
    """The grown model, sharded over all ranks."""
    reader = GrowReader(source, recipe, dtype="float32")
    model = empty_model(reader.config)
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    materialise(model, device)  # memory for this rank's shards; buffers (rotary frequencies) keep their values

    dcp.load(model.state_dict(), storage_reader=reader)
    print(f"rank {dist.get_rank()} read {reader.bytes_read:,} bytes")
    return model


def main() -> None:
    dist.init_process_group("gloo")
    model = grown(*sys.argv[1:])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, model.config.vocab_size, (1, 32))
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    if dist.get_rank() == 0:
        print(f"loss {loss.item():.3f}; one step taken")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
