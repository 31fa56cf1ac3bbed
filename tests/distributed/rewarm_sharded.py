"""One rank of tests/distributed/test_rewarm.py: scales updates by kind in FSDP2 shards, as in one process."""

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

import growth
from growth.operators import chain, deepen, widen
from growth.training.schedule import SecondWarmup, Stage, StageRates
from growth.training.stage_rates import set_rates
from tests.support.models import random_phi

WIDER = chain(widen("ffn", to=96, init="pad"), widen("residual", factor=2, init="tile"), deepen(to=4))
RATES = StageRates(old=0, copies=1.3, new_layers=0.5)


def stage(**stated):
    return Stage(at=growth.Moment(steps=1), recipe=WIDER, **stated)


WAYS = {
    "a second warm-up": lambda *held: growth.Rewarm(*held, steps=4),
    "rates by kind": lambda *held: set_rates(stage(rates=RATES), *held),
    "both": lambda *held: set_rates(stage(rates=RATES, rewarm=SecondWarmup(steps=4, start=1)), *held),
}


def steps(model, plan, scale):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scale(optimizer, model, plan)
    for step in range(2):
        for number, parameter in enumerate(model.parameters()):
            gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number + 99 * step))
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = gradient
        optimizer.step()


def main():
    dist.init_process_group("gloo")
    small = random_phi(torch.float32)
    plan = growth.plan(WIDER, small)
    found = []
    for way, scale in WAYS.items():
        alone, shared = (growth.grow_model(small, plan) for _ in range(2))
        for layer in shared.model.layers:
            fully_shard(layer)
        fully_shard(shared)
        for each in (alone, shared):
            steps(each, plan, scale)
        for (name, one), other in zip(alone.named_parameters(), shared.parameters(), strict=True):
            torch.testing.assert_close(other.full_tensor(), one, msg=f"{way}: {name}")
        assert any(len(other.to_local()) < len(other) for other in shared.parameters())
        found.append(alone.model.embed_tokens.weight.detach())
    assert not any(torch.equal(one, other) for one, other in ((found[0], found[1]), (found[1], found[2])))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
