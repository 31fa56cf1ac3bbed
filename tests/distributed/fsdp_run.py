"""One rank of tests/distributed/test_fsdp_run.py: saves or resumes a run by accelerate's functions, as a Trainer does."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import load_fsdp_model, load_fsdp_optimizer, save_fsdp_model, save_fsdp_optimizer
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModelForCausalLM, get_scheduler

from growth.training.trainer_checkpoint import trainer_groups
from tests.support.trainers import rows, tiny

KINDS = ("SHARDED_STATE_DICT", "FULL_STATE_DICT")
BEFORE, AFTER, BATCH = 3, 4, 4
ROWS = rows((BEFORE + AFTER) * BATCH)


def small():
    return tiny().double()


def optimizer_of(model):
    """The optimizer and scheduler that a Trainer makes."""
    named = dict(model.named_parameters())
    groups = [
        {"params": [named[name] for name in names], "weight_decay": decay}
        for names, decay in zip(trainer_groups(model, named), (0.1, 0.0), strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    return optimizer, get_scheduler("linear", optimizer, num_warmup_steps=1, num_training_steps=BEFORE + AFTER)


def train(model, optimizer, scheduler, steps, ranks=1, rank=0):
    """The mean loss of each step, over the rows of all ranks."""
    losses = []
    for step in steps:
        own = ROWS[step * BATCH : (step + 1) * BATCH][rank::ranks]
        ids = torch.stack([row["input_ids"] for row in own])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        total = loss.detach()
        if ranks > 1:
            dist.all_reduce(total)
        losses.append(float(total / ranks))
    return losses


def sharded(model):
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def main():
    what, folder = sys.argv[1], Path(sys.argv[2])
    state = PartialState(cpu=True)
    ranks, rank = state.num_processes, state.process_index
    accelerator = SimpleNamespace(
        num_processes=ranks,
        process_index=rank,
        is_main_process=rank == 0,
        is_fsdp2=True,
        wait_for_everyone=dist.barrier,
    )
    for kind in KINDS:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type=kind)
        place = folder / kind / ("checkpoint-3" if what == "save" else "grown")
        if what == "save":
            model = sharded(small())
            optimizer, scheduler = optimizer_of(model)
            losses = train(model, optimizer, scheduler, range(BEFORE), ranks, rank)
            save_fsdp_model(plugin, accelerator, model, place)
            save_fsdp_optimizer(plugin, accelerator, optimizer, model, place)
            if rank == 0:
                torch.save(scheduler.state_dict(), place / "scheduler.pt")
        else:
            config = AutoConfig.from_pretrained(place)
            model = sharded(AutoModelForCausalLM.from_config(config, dtype=torch.float64))
            optimizer, scheduler = optimizer_of(model)
            load_fsdp_model(plugin, accelerator, model, place)
            load_fsdp_optimizer(plugin, accelerator, optimizer, model, place)
            scheduler.load_state_dict(torch.load(place / "scheduler.pt", weights_only=True))
            losses = train(model, optimizer, scheduler, range(BEFORE, BEFORE + AFTER), ranks, rank)
        if rank == 0:
            (folder / f"{what}-{kind}.json").write_text(json.dumps(losses))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
