"""Grow an optimizer: its groups, and what it keeps of each parameter."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from growth.arrays.torch_interop import as_array, as_tensor
from growth.engine.grow_tensor import MemorySource, grow_tensor
from growth.errors import OptimizerError
from growth.planning.plan import Plan
from growth.training.moments import Fresh, check_plan, grow_state
from growth.training.optimizer_state import (
    check_class,
    check_groups,
    check_options,
    check_order,
    grown_groups,
    numbered,
)
from growth.training.parameter_names import Names, misfit, parameter_names, parameters_by_file_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def grow_optimizer(
    optimizer: torch.optim.Optimizer, small: PreTrainedModel, big: PreTrainedModel, plan: Plan, *, fresh: Fresh = "mean"
) -> torch.optim.Optimizer:
    """Make an optimizer of the same class over the grown model's parameters, with the grown state of the old one.

    optimizer: torch's Adam, AdamW (amsgrad too) or SGD, over parameters of `small`.
    big: `growth.grow_model(small, plan)`. Every value of both models is compared with the plan, so grow the optimizer
        before training either further.
    plan: `growth.plan(recipe, small)`.
    fresh: the state of units and layers that the source does not have. "mean": no momentum, the mean of the source
        tensor's squared gradients, and the old step count, so that the first update of a fresh unit is no larger than
        others. "zero": none; tensors that are new as a whole start at step 0, but fresh units of old tensors share the
        old step count, and their first updates are 3 to 7 times the learning rate, unless `growth.Rewarm` reduces them.
        "reset": the same, and all copies but the first have no state either.

    A parameter joins the group of the parameter that it grew from; groups keep their options, including those that a
    scheduler has set. To keep a scheduler, set `scheduler.optimizer = result`.

    Raises:
        OptimizerError: another class of optimizer, a model with experts, or models that are not the plan's.

    >>> import growth, torch, transformers
    >>> model = transformers.AutoModelForCausalLM.from_pretrained("examples/phi-mini")
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> plan = growth.plan("phi-mini", model)
    >>> larger = growth.grow_model(model, plan)
    >>> grown = growth.grow_optimizer(optimizer, model, larger, plan)
    >>> type(grown).__name__, grown.param_groups[0]["lr"], len(grown.param_groups[0]["params"])
    ('AdamW', 0.001, 117)
    """
    check_class(optimizer)
    old = _parameters(small, {name: info.shape for name, info in plan.sources.items()}, "small")
    new = _parameters(big, {tensor_map.target: tensor_map.shape for tensor_map in plan.tensors}, "big")
    before, after = parameter_names(small, old), parameter_names(big, new)
    named = grow_named_state_dict(_named(optimizer, old), plan, before, after, fresh=fresh)
    _check_made(old, new, plan)
    members = [
        [(after[name], new[name]) if "param_names" in group else new[name] for name in group["params"]]
        for group in named["param_groups"]
    ]
    accepted = inspect.signature(type(optimizer)).parameters
    options = {key: value for key, value in optimizer.defaults.items() if key in accepted}
    grown = type(optimizer)([{"params": params} for params in members], **options)
    grown.load_state_dict(numbered(named, after))  # puts moments and steps where this optimizer wants them
    return grown


def check_optimizer(optimizer: torch.optim.Optimizer, model: PreTrainedModel, plan: Plan) -> None:
    """Refuse an optimizer whose state cannot grow by a plan, before anything grows.

    plan: a plan of `model`, or of a model that it has grown into.

    Raises:
        OptimizerError: as for `grow_optimizer`, except for what only the state's values show.
    """
    check_class(optimizer)
    check_plan(plan)
    parameters = parameters_by_file_name(model)
    named = _named(optimizer, parameters)
    check_groups(named["param_groups"], named["state"])
    check_order([group["params"] for group in named["param_groups"]], plan, parameters)


def grow_named_state_dict(
    named: Mapping[str, Any], plan: Plan, before: Names, after: Names, *, fresh: Fresh = "mean"
) -> dict[str, Any]:
    """Grow an optimizer's state dict with names for numbers, as torch.distributed.checkpoint gathers it.

    named: `state` by the names of parameters, and `param_groups` whose `params` are names.
    before, after: the parameters of the source and of the grown model, as `parameter_names` returns them.
    fresh: as for `grow_optimizer`.

    Raises:
        OptimizerError: as for `grow_optimizer`.
    """
    groups, state = named["param_groups"], named["state"]
    check_groups(groups, state)
    check_options(groups, state)
    grown = grow_state(state, plan, fresh=fresh)
    placed = grown_groups([group["params"] for group in groups], plan, before, after)
    grown_options = [
        {**copy.deepcopy({**group, "params": ()}), "params": names} for group, names in zip(groups, placed, strict=True)
    ]
    return {**named, "state": grown, "param_groups": grown_options}


def _parameters(model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]], which: str) -> dict[str, nn.Parameter]:
    """A model's parameters by the plan's names, in the model's order; tied ones once."""
    found = {name: parameter for name, parameter in parameters_by_file_name(model).items() if name in shapes}
    wrong = misfit(found, shapes)
    if wrong is not None:
        raise OptimizerError(
            f"The model `{which}` is not the plan's: {wrong}. Use plan = growth.plan(recipe, small) and "
            "big = growth.grow_model(small, plan)."
        )
    return found


def _check_made(old: Mapping[str, nn.Parameter], new: Mapping[str, nn.Parameter], plan: Plan) -> None:
    """Refuse a grown model that the plan does not make: state would go to wrong layers or units.

    Many plans lead to the same shapes, so values are compared.

    Raises:
        OptimizerError: a value differs.
    """
    arrays = {name: as_array(parameter.detach().cpu()) for name, parameter in old.items()}
    for tensor_map in plan.tensors:
        made = as_tensor(grow_tensor(tensor_map, MemorySource(arrays), plan.seed), tensor_map.dtype)
        found = new[tensor_map.target].detach().cpu()
        if not torch.equal(made.to(found.dtype), found):
            raise OptimizerError(
                f"The model `big` is not what the plan makes of `small`: '{tensor_map.target}' has other values. "
                "Either another plan made it, or one of the two was trained or changed since. Use plan = "
                "growth.plan(recipe, small) and big = growth.grow_model(small, plan), and then grow the optimizer."
            )


def _named(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """An optimizer's state dict with the names of its parameters for their numbers."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    listed = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in (*listed, *optimizer.state):
        if id(parameter) not in names:
            raise OptimizerError(
                f"The optimizer has a parameter of shape {list(parameter.shape)} that is not a parameter of `small`. "
                "Pass the model that the optimizer trains."
            )
    groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    return {"state": {names[id(p)]: entry for p, entry in optimizer.state.items()}, "param_groups": groups}
