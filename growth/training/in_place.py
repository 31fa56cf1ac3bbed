"""Grow a model and its optimizer in place: both stay the objects that a training loop holds."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from growth.output.grown_model import take_over
from growth.output.in_memory import grow_model, plan_in_memory
from growth.output.model_checks import check_hooks
from growth.planning.plan import Plan
from growth.planning.prepare import RecipeLike
from growth.training.moments import Fresh
from growth.training.optimizer import grow_optimizer


def unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's wrapper."""
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, torch.optim.Optimizer)
    return inner


def grow_in_place(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, recipe: RecipeLike, *, fresh: Fresh = "mean"
) -> Plan:
    """Grow a model and its optimizer, and keep both objects; return the plan.

    The parameters are new ones on the model's device, frozen where those that they grew from are. What refers to single
    parameters or submodules (hooks, EMA copies, a compiled graph) refers to the old ones. A scheduler needs no change.

    Raises:
        GrowthError: a recipe that does not apply, hooks on submodules or parameters, or training state that cannot
            grow; nothing has changed then.
    """
    made = plan_in_memory(recipe, model)
    check_hooks(model, own=False)
    larger = grow_model(model, made, hooks="drop")
    grown = grow_optimizer(optimizer, model, larger, made, fresh=fresh)
    take_over(model, larger)
    optimizer.param_groups, optimizer.state = grown.param_groups, grown.state
    return made
