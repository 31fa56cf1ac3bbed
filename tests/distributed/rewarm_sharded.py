"""One rank of tests/distributed/test_rewarm.py: warms up what is new in FSDP2 shards, as in one process."""

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

import growth
from growth.operators import chain, deepen, widen
from tests.support.models import random_phi

WIDER = chain(widen("ffn", to=96, init="pad"), widen("residual", factor=2, init="tile"), deepen(to=4))


def steps(model, plan):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    growth.Rewarm(optimizer, model, plan, steps=4)
    for step in range(2):
        for number, parameter in enumerate(model.parameters()):
            gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number + 99 * step))
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = gradient
        optimizer.step()


def main():
    dist.init_process_group("gloo")
    models = [random_phi(torch.float32) for _ in range(2)]
    plan = growth.plan(WIDER, models[0])
    alone, shared = (growth.grow_model(model, plan) for model in models)
    for layer in shared.model.layers:
        fully_shard(layer)
    fully_shard(shared)
    for each in (alone, shared):
        steps(each, plan)
    for (name, one), other in zip(alone.named_parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(other.full_tensor(), one, msg=name)
    assert any(len(other.to_local()) < len(other) for other in shared.parameters())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
