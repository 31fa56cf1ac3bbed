"""Which initialisation trains best? A byte-level model is trained, grown and trained on.

    python benchmarks/inits.py diverge [ARM …] [--family phi|llama] [--tied] [--to 48]
    python benchmarks/inits.py budgets [ARM …] [--units 1 2 4] [--to 48]

`diverge` trains the source for 400 steps and the grown model for 400 more, and prints the distance of copies (0 equal,
1.41 independent), the effective rank of the embedding and the held-out loss: 2 minutes an arm on one core. `budgets`
compares with training from scratch at equal total FLOPs, a quarter of them spent on the source; a unit is 1,000 steps
of the target, 2 minutes. Results are appended to --results, and what is there is not run again.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from byte_model import PEAK, flops_per_token, held_out_loss, model, optimizer, text, train_step
from transformers.utils import logging

import growth
from growth.operators import Operator, chain, widen

SOURCE, LAYERS, STEPS = 24, 6, 400
WARMUP, DECAY, SOURCE_PART = 50, 0.2, 0.25
# of the residual stream, the ffn and the heads: init and shares
ARMS = {
    "equal": ("tile equal",) * 3,
    "random": ("tile random",) * 3,
    "mask": ("tile mask",) * 3,
    "first": ("tile first",) * 3,
    "pad": ("pad",) * 3,
    "first+pad": ("tile first", "pad", "pad"),
    "mask+pad": ("tile mask", "pad", "pad"),
    "random+pad": ("tile random", "pad", "pad"),
    "pad+mask": ("pad", "tile mask", "tile mask"),
    "pad+random": ("pad", "tile random", "tile random"),
    "pad+first": ("pad", "tile first", "tile first"),
}


def recipe(arm: str, to: int) -> Operator:
    """The growth of all three widths."""
    sizes = {"residual": to, "ffn": 4 * to, "heads": to // 12}
    steps = []
    for (axis, size), kind in zip(sizes.items(), ARMS[arm], strict=True):
        init, *shares = kind.split()
        steps.append(widen(axis, to=size, init=init, **({"shares": shares[0]} if shares else {})))
    return chain(*steps)


def grown(source, adam, arm: str, to: int, fresh: str, rewarm: int):
    """The grown model and its optimizer, which starts new entries at a lower rate if `rewarm` says so."""
    plan = growth.plan(recipe(arm, to), source)
    larger = growth.grow_model(source, plan)
    larger.train()
    adam = growth.grow_optimizer(adam, source, larger, plan, fresh=fresh)
    if rewarm:
        growth.Rewarm(adam, larger, plan, steps=rewarm)
    return larger, adam


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """0 for equal copies, 1.41 for independent ones."""
    return float((one - other).detach().norm() / (one.square().sum() + other.square().sum()).sqrt() * 2**0.5)


def effective_rank(matrix: torch.Tensor) -> float:
    """The exponential of the entropy of the variances along the principal axes (Roy and Vetterli 2007)."""
    power = torch.linalg.svdvals(matrix.detach() - matrix.detach().mean(0)) ** 2
    power = power / power.sum()
    power = power[power > 0]
    return float(torch.exp(-(power * power.log()).sum()))


def diverge(arm: str, family: str, tied: bool, width: int, to: int, fresh: str, rewarm: int, data) -> dict:
    """One row of the table of divergence."""
    training, held_out = data
    source, draws = model(family, width, LAYERS, 0, tied=tied), torch.Generator().manual_seed(3)
    adam = optimizer(source)
    for _ in range(STEPS):
        train_step(source, adam, training, draws, PEAK)
    larger, adam = grown(source, adam, arm, to, fresh, rewarm)
    before, start = effective_rank(larger.model.embed_tokens.weight), held_out_loss(larger, held_out, 8)
    draws = torch.Generator().manual_seed(5)
    for _ in range(STEPS):
        train_step(larger, adam, training, draws, PEAK)
    embedding, mlp = larger.model.embed_tokens.weight, larger.model.layers[2].mlp
    inner = (mlp.fc1 if family == "phi" else mlp.up_proj).weight
    copied = min(to - width, width)
    return {
        "start": start,
        "loss": held_out_loss(larger, held_out, 8),
        "rank": (before, effective_rank(embedding)),
        "embedding": distance(embedding[:, :copied], embedding[:, width : width + copied]),
        "ffn": distance(inner[: 4 * copied], inner[4 * width : 4 * (width + copied)]),
    }


def budget(arm: str, units: float, seed: int, source_width: int, to: int, fresh: str, rewarm: int, data) -> dict:
    """One run at a total budget of `units` thousand steps of the target."""
    training, held_out = data
    target = flops_per_token(model("phi", to, LAYERS, 0))
    total_cost = units * 1000 * target
    source = model("phi", to if arm == "scratch" else source_width, LAYERS, seed)
    first = 0 if arm == "scratch" else round(total_cost * SOURCE_PART / flops_per_token(source))
    steps = first + round((total_cost - first * flops_per_token(source)) / target)
    adam, draws, module = optimizer(source), torch.Generator().manual_seed(100 + seed), source
    decay = int(DECAY * steps)
    jump = None
    for step in range(steps):
        if step == first and arm != "scratch":
            before = held_out_loss(module, held_out, 8)
            module, adam = grown(module, adam, arm, to, fresh, rewarm)
            jump = held_out_loss(module, held_out, 8) - before
        rate = PEAK * min(1, (step + 1) / WARMUP, (steps - step) / decay)
        train_step(module, adam, training, draws, rate)
    return {"steps": (first, steps - first), "loss": held_out_loss(module, held_out, 48), "jump": jump}


def main() -> None:
    """Run what is asked for and not yet in the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["diverge", "budgets"])
    parser.add_argument("arms", nargs="*", default=list(ARMS))
    parser.add_argument("--family", choices=["phi", "llama"], default="phi")
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--source", type=int, default=SOURCE)
    parser.add_argument("--to", type=int, default=48)
    parser.add_argument("--units", type=float, nargs="*", default=[1, 2, 4])
    parser.add_argument("--fresh", choices=["mean", "zero", "reset"], default="mean", help="moments of what is new")
    parser.add_argument("--rewarm", type=int, default=0, help="steps of a second warm-up of what is new")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("inits.jsonl"))
    given = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    data = text()
    known = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    for arm in given.arms:
        for units in given.units if given.table == "budgets" else [0]:
            what = {
                "table": given.table,
                "arm": arm,
                "source": given.source,
                "to": given.to,
                "seed": given.seed,
                "units": units,
            }
            what |= {"family": given.family, "tied": given.tied, "fresh": given.fresh}
            what |= {"rewarm": given.rewarm} if given.rewarm else {}
            if any(what.items() <= row.items() and row.get("rewarm", 0) == given.rewarm for row in known):
                continue
            start = time.perf_counter()
            if given.table == "diverge":
                row = diverge(arm, given.family, given.tied, given.source, given.to, given.fresh, given.rewarm, data)
            else:
                row = budget(arm, units, given.seed, given.source, given.to, given.fresh, given.rewarm, data)
            row = {**what, **row, "seconds": round(time.perf_counter() - start)}
            with given.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
