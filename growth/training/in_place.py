"""Grow a model and its optimizer in place: both stay the objects that a training loop holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from growth.errors import CheckpointError, OptimizerError
from growth.output.grown_model import take_over
from growth.output.in_memory import grow_model, plan_in_memory
from growth.output.model_checks import check_hooks
from growth.planning.plan import Plan
from growth.planning.recipe import RecipeLike
from growth.training.moments import Fresh
from growth.training.optimizer import grow_optimizer, placed_parameters
from growth.training.scaled_updates import parameter_ids

Optimizers = torch.optim.Optimizer | Iterable[torch.optim.Optimizer]


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's wrapper."""
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, torch.optim.Optimizer)
    return inner


def listed(optimizers: Optimizers) -> tuple[torch.optim.Optimizer, ...]:
    """One optimizer or several as torch's optimizers, each once."""
    several = (optimizers,) if hasattr(optimizers, "param_groups") else tuple(optimizers)
    return tuple(dict.fromkeys(map(unwrapped, several)))


def grow_in_place(model: PreTrainedModel, optimizer: Optimizers, recipe: RecipeLike, *, fresh: Fresh = "mean") -> Plan:
    """Grow a model and its optimizer, and keep both objects; return the plan.

    optimizer: one, or several that share the model's parameters, such as Muon and AdamW.
    fresh: as for `growth.grow_optimizer`.

    The parameters are new ones on the model's device, frozen where those that they grew from are. What refers to single
    parameters or submodules (hooks, EMA copies, a compiled graph) refers to the old ones. A scheduler needs no change.

    Raises:
        GrowthError: a recipe that does not apply, hooks on submodules or parameters, an optimizer that holds
            parameters elsewhere than in its groups, or training state that cannot grow; nothing has changed then.
    """
    made = plan_in_memory(recipe, model)
    check_hooks(model, own=False)
    larger = grow_model(model, made, hooks="drop")
    _check_class(model, larger)
    optimizers = listed(optimizer)
    for one in optimizers:
        check_holds_in_groups(one)
    if fresh == "all":
        placed = [placed_parameters(one, model, larger, made) for one in optimizers]
        parameters = dict(larger.named_parameters())
        for one, groups in zip(optimizers, placed, strict=True):
            _start_anew(one, groups, parameters)
    else:
        grown = [grow_optimizer(one, model, larger, made, fresh=fresh) for one in optimizers]
        for one, larger_one in zip(optimizers, grown, strict=True):
            one.param_groups, one.state = larger_one.param_groups, larger_one.state
    take_over(model, larger)
    model.__class__ = type(larger)  # another one where a dense model became a mixture
    return made


def check_holds_in_groups(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that also holds parameters elsewhere than in its groups, such as LBFGS: they would stay.

    Raises:
        OptimizerError: an attribute holds parameters, or another optimizer with a state of its own.
    """
    known = [optimizer.param_groups, *optimizer.param_groups, optimizer.state]
    seen, parameters = {id(optimizer), *map(id, known)}, parameter_ids(optimizer)
    for name, value in vars(optimizer).items():
        if _holds(value, parameters, seen):
            kind = type(optimizer)
            raise OptimizerError(
                f"{kind.__module__}.{kind.__qualname__} holds parameters in '{name}' beside those in its groups, and "
                "after a growth in place it would train the old ones. Train with another optimizer, or grow between "
                "two runs and make a new optimizer over the grown model."
            )


def _holds(value: Any, parameters: set[int], seen: set[int]) -> bool:
    """Whether plain containers and objects lead from a value to one of some parameters, or to another optimizer."""
    if id(value) in parameters:
        return True
    if id(value) in seen or isinstance(value, Tensor | nn.Module | type) or callable(value):
        return False
    seen.add(id(value))
    if isinstance(value, torch.optim.Optimizer) and id(value.state) not in seen:
        return True
    if isinstance(value, Mapping):
        inside: Iterable[Any] = (*value.keys(), *value.values())
    else:
        inside = value if isinstance(value, list | tuple | set | frozenset) else getattr(value, "__dict__", {}).values()
    return any(_holds(each, parameters, seen) for each in inside)


def _start_anew(
    optimizer: torch.optim.Optimizer, groups: Sequence[Sequence[str]], parameters: Mapping[str, nn.Parameter]
) -> None:
    """Give an optimizer other parameters, by their names group by group, and no state."""
    optimizer.state.clear()
    for group, names in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = [parameters[name] for name in names]
        if "param_names" in group:
            group["param_names"] = list(names)


def _check_class(model: PreTrainedModel, larger: PreTrainedModel) -> None:
    """Refuse another class where the model's forward was replaced, since it would call the old class's."""
    if type(larger) is not type(model) and "forward" in vars(model):
        raise CheckpointError(
            f"Cannot grow this {type(model).__name__} into a {type(larger).__name__} in place: its forward method was "
            "replaced (mixed precision, for instance). Grow it between two runs (growth grow RECIPE)."
        )
