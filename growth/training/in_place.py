"""Grow a model and its optimizer in place: both stay the objects that a training loop holds."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from growth.errors import CheckpointError
from growth.output.grown_model import source_parameters, take_over
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
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, recipe: RecipeLike, *, fresh: Fresh | None = "mean"
) -> Plan:
    """Grow a model and its optimizer, and keep both objects; return the plan.

    fresh: as for `growth.grow_optimizer`. None: the optimizer, of any class, starts without state; its groups and their
        options stay.

    The parameters are new ones on the model's device, frozen where those that they grew from are. What refers to single
    parameters or submodules (hooks, EMA copies, a compiled graph) refers to the old ones. A scheduler needs no change.

    Raises:
        GrowthError: a recipe that does not apply, hooks on submodules or parameters, or training state that cannot
            grow; nothing has changed then.
    """
    made = plan_in_memory(recipe, model)
    check_hooks(model, own=False)
    larger = grow_model(model, made, hooks="drop")
    if fresh is None:
        _check_class(model, larger)
        members = _members(optimizer, model, larger, made)
        optimizer.state.clear()
        for group, parameters in zip(optimizer.param_groups, members, strict=True):
            group["params"] = list(parameters.values())
            if "param_names" in group:
                group["param_names"] = list(parameters)
    else:
        grown = grow_optimizer(optimizer, model, larger, made, fresh=fresh)
        optimizer.param_groups, optimizer.state = grown.param_groups, grown.state
    take_over(model, larger)
    model.__class__ = type(larger)  # another one where a dense model became a mixture
    return made


def _members(
    optimizer: torch.optim.Optimizer, model: PreTrainedModel, larger: PreTrainedModel, plan: Plan
) -> list[dict[str, nn.Parameter]]:
    """The parameters of a grown model by group, each in the group of those that it grew from.

    One that grew from none, such as a router, joins the group of the first parameter with as many dimensions.
    """
    group_of = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    by_dimensions = {p.ndim: group_of[id(p)] for p in reversed(list(model.parameters())) if id(p) in group_of}
    members: list[dict[str, nn.Parameter]] = [{} for _ in optimizer.param_groups]
    grew_from = source_parameters(larger, model, plan)
    for name, parameter in larger.named_parameters():
        sources = grew_from[name]
        number = group_of.get(id(sources[0])) if sources else by_dimensions.get(parameter.ndim)
        if number is not None:
            members[number][name] = parameter
    return members


def _check_class(model: PreTrainedModel, larger: PreTrainedModel) -> None:
    """Refuse another class where the model's forward was replaced, since it would call the old class's."""
    if type(larger) is not type(model) and "forward" in vars(model):
        raise CheckpointError(
            f"Cannot grow this {type(model).__name__} into a {type(larger).__name__} in place: its forward method was "
            "replaced (mixed precision, for instance). Grow it between two runs (growth grow RECIPE)."
        )
