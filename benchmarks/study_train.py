"""One run of the study: start or resume, train, store a result and a checkpoint."""

import functools
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from byte_model import (
    LENGTH,
    ROWS,
    flops_per_token,
    held_out_loss,
    model,
    optimizer,
    text,
    train_step,
)
from study_arms import ARMS, BY_NAME, SCALES, Arm, Run
from transformers import PreTrainedModel

import growth
from growth.operators import chain

WARMUP = 50
SAVE_EVERY = 60  # seconds
TOKENS = ROWS * LENGTH  # in a step
HEAD_READERS, FFN_READER = "self_attn.dense", "mlp.fc2"
READERS = ("q_proj", "k_proj", "v_proj", "fc1", "lm_head", HEAD_READERS, FFN_READER)

corpus = functools.cache(text)


def new_model(run: Run, seed: int = 0) -> PreTrainedModel:
    """A model of a run's geometry with random weights."""
    arm = BY_NAME[run.arm]
    return model("phi", round(SCALES[run.scale].width * arm.share), arm.layers, seed)


@functools.cache
def unit_of_flops(scale: str) -> float:
    """FLOPs of training a scale's target on one token per parameter."""
    target = model("phi", SCALES[scale].width, ARMS[0].layers, 0)
    return flops_per_token(target) * sum(parameter.numel() for parameter in target.parameters())


@functools.cache
def step_flops(scale: str, share: float, layers: int) -> float:
    """FLOPs of one step of a model, in the units of positions."""
    return flops_per_token(model("phi", round(SCALES[scale].width * share), layers, 0)) * TOKENS / unit_of_flops(scale)


def steps_of(run: Run) -> int:
    """The number of steps in a run."""
    arm = BY_NAME[run.arm]
    cost = step_flops(run.scale, arm.share, arm.layers)
    return max(1, round((run.stop - run.start) / cost))


def factor(run: Run, step: int, steps: int) -> float:
    """The learning rate of a step over the peak."""
    arm = BY_NAME[run.arm]
    warm = WARMUP if run.start == 0 else arm.rewarm if run.grows and arm.optimizer == "fresh" else 0
    rate = min(1.0, (step + 1) / warm) if warm else 1.0
    if run.decay_from is not None:
        decay = max(1, round(steps * (run.stop - run.decay_from) / (run.stop - run.start)))
        rate *= min(1.0, (steps - step) / decay)
    return rate


def divide_per_unit(grown: PreTrainedModel, seed: int) -> None:
    """Divide equal shares of two copies anew: one share per unit, the same in all that reads it, of mean 1/2.

    The shares are those of `shares: random` at 6ba53c3: 1 + √3/4 u each, u uniform from −1 to 1, over their sum.
    """
    draws = torch.Generator().manual_seed(seed)

    def shares(units: int) -> torch.Tensor:
        drawn = 1 + 0.25 * 3**0.5 * (2 * torch.rand(2, units, generator=draws) - 1)
        return (drawn / drawn.sum(0)).flatten()

    config = grown.config
    residual = shares(config.hidden_size // 2)
    head_dim = config.hidden_size // config.num_attention_heads
    with torch.no_grad():
        for name, weight in grown.named_parameters():
            if weight.ndim == 2 and name.removesuffix(".weight").endswith(READERS):
                read = residual
                if HEAD_READERS in name:
                    read = shares(config.num_attention_heads // 2).repeat_interleave(head_dim)
                elif FFN_READER in name:
                    read = shares(config.intermediate_size // 2)
                weight.mul_(2 * read)


def plan_of(arm: Arm, scale: str, small: PreTrainedModel, seed: int) -> growth.Plan:
    """The plan of an arm's growth."""
    recipe = arm.recipe(SCALES[scale].width)
    return growth.plan(recipe if isinstance(recipe, str) else chain(*recipe), small, seed=seed)


def grow(run: Run, small: PreTrainedModel, adam: torch.optim.Optimizer) -> tuple[Any, Any]:
    """The grown model and its optimizer."""
    arm = BY_NAME[run.arm]
    plan = plan_of(arm, run.scale, small, run.seed)
    larger = growth.grow_model(small, plan)
    if arm.optimizer == "fresh":
        adam = optimizer(larger)
    else:
        adam = growth.grow_optimizer(adam, small, larger, plan, fresh="reset" if arm.optimizer == "reset" else "mean")
    if arm.unit_shares:
        divide_per_unit(larger, run.seed)
    return larger, adam


def restore(run: Run, stored: dict[str, Any]) -> tuple[PreTrainedModel, torch.optim.Optimizer, torch.Generator]:
    """Model, optimizer and random state of a checkpoint."""
    module = new_model(run)
    module.load_state_dict(stored["model"])
    adam = optimizer(module)
    adam.load_state_dict(stored["optimizer"])
    draws = torch.Generator()
    draws.set_state(stored["draws"])
    return module, adam, draws


def save(path: Path, **content: Any) -> None:
    """Store a file so that it is there whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.replace(path)


def store(path: Path, content: Any) -> None:
    """Store JSON so that it is there whole or not at all."""
    part = path.with_suffix(".json-part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def execute(run: Run, folder: Path) -> dict[str, Any]:
    """Run or resume one run, whose parent is done; return its result, which is stored last."""
    torch.set_num_threads(1)
    scale, arm, (training, held_out) = SCALES[run.scale], BY_NAME[run.arm], corpus()
    measure = functools.partial(held_out_loss, data=held_out, batches=scale.batches)
    partial, parent = folder / f"{run.name}.partial", None
    facts: dict[str, Any] = {"flops": 0.0, "source_flops": 0.0, "seconds": 0.0, "step": 0}
    if run.parent:
        before = torch.load(folder / f"{run.parent.name}.pt", weights_only=True)
        facts |= {key: before["facts"][key] for key in ("flops", "source_flops")}
        parent = restore(run.parent, before)
    if partial.exists():
        stored = torch.load(partial, weights_only=True)
        module, adam, draws = restore(run, stored)
        facts = stored["facts"]
    elif parent is None:
        module = new_model(run, run.seed)
        adam, draws = optimizer(module), torch.Generator().manual_seed(100 + run.seed)
    else:
        module, adam, draws = parent
        if run.grows:
            facts |= {"before": measure(module), "source_flops": facts["flops"]}
            module, adam = grow(run, module, adam)
            facts["after"] = measure(module)
    steps, done = steps_of(run), facts["step"]
    if run.grows and arm.optimizer != "fresh" and done < arm.rewarm:
        plan = plan_of(arm, run.scale, parent[0], run.seed)
        growth.Rewarm(adam, module, plan, steps=arm.rewarm, done=done)
    module.train()
    begun, saved = time.perf_counter() - facts["seconds"], time.perf_counter()
    cost = flops_per_token(module) * TOKENS
    for step in range(done, steps):
        train_step(module, adam, training, draws, run.peak * factor(run, step, steps))
        now = time.perf_counter()
        if now - saved > SAVE_EVERY:
            part = facts | {"step": step + 1, "seconds": now - begun}
            save(partial, model=module.state_dict(), optimizer=adam.state_dict(), draws=draws.get_state(), facts=part)
            saved = now
    facts |= {"flops": facts["flops"] + steps * cost, "step": steps, "seconds": time.perf_counter() - begun}
    content = {"model": module.state_dict(), "optimizer": adam.state_dict(), "draws": draws.get_state()}
    save(folder / f"{run.name}.pt", **content, facts=facts)
    result = {key: value for key, value in asdict(run).items() if key != "parent"}
    result |= {"parent": run.parent.name if run.parent else None, **facts, "loss": measure(module)}
    store(folder / f"{run.name}.json", result)
    partial.unlink(missing_ok=True)
    return result
