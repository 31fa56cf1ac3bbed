"""Grow a model half-way through an FSDP2 loop: gather it on rank 0, grow it on the CPU, shard it again.

torchrun --standalone --nproc-per-node 2 examples/fsdp_loop.py
"""

import torch
import torch.distributed as dist
from plain_loop import GROW_AT, MODEL, STEPS, batches
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer

import growth
from growth.training.optimizer import grow_named_state_dict
from growth.training.parameter_names import parameter_names

GATHER = StateDictOptions(full_state_dict=True, cpu_offload=True)  # on rank 0; empty on the others
SCATTER = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def shard(model):
    """Shard each layer by itself, then the rest."""
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def make_optimizer(model):
    """An optimizer and its scheduler."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)


def grow(model, optimizer, scheduler, recipe):
    """The grown model, its optimizer and scheduler; a collective call. Rank 0 needs memory for both models at once."""
    weights = get_model_state_dict(model, options=GATHER)
    memory = get_optimizer_state_dict(model, optimizer, options=GATHER)
    config = [None]
    if dist.get_rank() == 0:
        small = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
        small.load_state_dict(weights)
        plan = growth.plan(recipe, small)
        large = growth.grow_model(small, plan)
        weights, config = large.state_dict(), [large.config]
        before = parameter_names(small, {row.source.name for row in plan.tensors})
        after = parameter_names(large, {row.target for row in plan.tensors})
        memory = grow_named_state_dict(memory, plan, before, after)
    dist.broadcast_object_list(config)

    larger = shard(AutoModelForCausalLM.from_config(config[0], dtype=model.dtype))
    grown, schedule = make_optimizer(larger)
    set_model_state_dict(larger, weights, options=SCATTER)
    # before the first backward pass: if there are gradients, torch silently restores nothing
    set_optimizer_state_dict(larger, grown, memory, options=SCATTER)
    schedule.load_state_dict(scheduler.state_dict())
    return larger, grown, schedule


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
            model, optimizer, scheduler = grow(model, optimizer, scheduler, "phi-mini")
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
