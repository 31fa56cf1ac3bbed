"""Grow a model half-way through an FSDP2 loop: every rank saves its shards, and loads its shards of the grown model.

torchrun --standalone --nproc-per-node 2 examples/fsdp_loop.py
"""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from plain_loop import GROW_AT, MODEL, STEPS, batches
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer

from growth.distributed.grow_reader import GrowReader, empty_model, materialise


def shard(model):
    """Shard each layer by itself, then the rest."""
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def make_optimizer(model):
    """An optimizer and its scheduler."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)


def grow(model, optimizer, scheduler, recipe, folder):
    """The grown model, its optimizer and scheduler; a collective call. No rank holds more than its shards.

    folder: a new one that all ranks see.
    """
    dcp.save(get_model_state_dict(model), checkpoint_id=folder)
    dcp.save(get_optimizer_state_dict(model, optimizer), checkpoint_id=folder / "optimizer")
    if dist.get_rank() == 0:
        model.config.save_pretrained(folder)
    dist.barrier()

    reader = GrowReader(folder, recipe, optimizer=folder / "optimizer")
    larger = materialise(shard(empty_model(reader.config)), model.device)
    dcp.load(get_model_state_dict(larger), storage_reader=reader)
    grown, schedule = make_optimizer(larger)
    # before the first backward pass: if there are gradients, torch silently restores nothing
    memory = get_optimizer_state_dict(larger, grown)
    dcp.load(memory, storage_reader=reader)
    set_optimizer_state_dict(larger, grown, memory)
    schedule.load_state_dict(scheduler.state_dict())
    return larger, grown, schedule


def shared_folder():
    """A new folder that all ranks of one machine see; on a cluster, name one on a file system that all nodes share."""
    made = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(made)
    return Path(made[0])


def mean(loss):
    """The mean loss of all ranks."""
    dist.all_reduce(total := loss.detach().clone())
    return total.item() / dist.get_world_size()


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = shard(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32))
    optimizer, scheduler = make_optimizer(model)

    stream = batches(AutoTokenizer.from_pretrained(MODEL), seed=dist.get_rank())
    for step in range(STEPS):
        rows = next(stream)
        if step == GROW_AT:
            before = mean(model(input_ids=rows, labels=rows, use_cache=False).loss)
            model, optimizer, scheduler = grow(model, optimizer, scheduler, "phi-mini", shared_folder())
            after = mean(model(input_ids=rows, labels=rows, use_cache=False).loss)
            if dist.get_rank() == 0:
                print(f"before: {before:.5f}\nafter:  {after:.5f}, {model.num_parameters():,} parameters")

        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        average = mean(loss)
        if dist.get_rank() == 0:
            print(f"step {step + 1}: loss {average:.5f}, learning rate {scheduler.get_last_lr()[0]:.2e}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
