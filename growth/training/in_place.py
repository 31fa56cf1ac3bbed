"""Grow a model and its optimizer in place: both stay the objects that a training loop holds."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from growth.errors import CheckpointError
from growth.output.grown_model import take_over
from growth.output.in_memory import grow_model, plan_in_memory
from growth.output.model_checks import check_hooks
from growth.planning.plan import Plan
from growth.planning.recipe import RecipeLike
from growth.training.moments import Fresh
from growth.training.optimizer import grow_optimizer, placed_parameters


def unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's wrapper."""
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, torch.optim.Optimizer)
    return inner


def grow_in_place(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, recipe: RecipeLike, *, fresh: Fresh = "mean"
) -> Plan:
    """Grow a model and its optimizer, and keep both objects; return the plan.

    fresh: as for `growth.grow_optimizer`.

    The parameters are new ones on the model's device, frozen where those that they grew from are. What refers to single
    parameters or submodules (hooks, EMA copies, a compiled graph) refers to the old ones. A scheduler needs no change.

    Raises:
        GrowthError: a recipe that does not apply, hooks on submodules or parameters, or training state that cannot
            grow; nothing has changed then.
    """
    made = plan_in_memory(recipe, model)
    check_hooks(model, own=False)
    larger = grow_model(model, made, hooks="drop")
    _check_class(model, larger)
    if fresh == "all":
        groups, parameters = placed_parameters(optimizer, model, larger, made), dict(larger.named_parameters())
        optimizer.state.clear()
        for group, names in zip(optimizer.param_groups, groups, strict=True):
            group["params"] = [parameters[name] for name in names]
            if "param_names" in group:
                group["param_names"] = names
    else:
        grown = grow_optimizer(optimizer, model, larger, made, fresh=fresh)
        optimizer.param_groups, optimizer.state = grown.param_groups, grown.state
    take_over(model, larger)
    model.__class__ = type(larger)  # another one where a dense model became a mixture
    return made


def _check_class(model: PreTrainedModel, larger: PreTrainedModel) -> None:
    """Refuse another class where the model's forward was replaced, since it would call the old class's."""
    if type(larger) is not type(model) and "forward" in vars(model):
        raise CheckpointError(
            f"Cannot grow this {type(model).__name__} into a {type(larger).__name__} in place: its forward method was "
            "replaced (mixed precision, for instance). Grow it between two runs (growth grow RECIPE)."
        )
