"""Grow an optimizer: its groups, and what it keeps of each parameter."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import torch

from growth.arrays.torch_interop import as_array, as_tensor
from growth.engine.grow_tensor import MemorySource, grow_tensor
from growth.errors import OptimizerError
from growth.planning.plan import Plan
from growth.training.moments import Fresh, State, grow_state
from growth.training.optimizer_kinds import is_moment
from growth.training.optimizer_state import (
    check_class,
    check_entries,
    check_groups,
    grown_groups,
    kinds_of,
    numbered,
)
from growth.training.parameter_names import (
    Names,
    StoredParameter,
    buffer_names,
    by_file,
    misfit,
    parameter_names,
    shapes_by_file,
)
from growth.training.scaled_updates import restore_rates

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def grow_optimizer(
    optimizer: torch.optim.Optimizer, small: PreTrainedModel, big: PreTrainedModel, plan: Plan, *, fresh: Fresh = "mean"
) -> torch.optim.Optimizer:
    """Make an optimizer of the same class over the grown model's parameters, with the grown state of the old one.

    optimizer: one of docs/training.md ("What is supported"), over parameters of `small`; of any class with fresh="all".
    big: `growth.grow_model(small, plan)`. Every value of both models is compared with the plan, so grow the optimizer
        before training either further.
    plan: `growth.plan(recipe, small)`.
    fresh: the state of units and layers that the source does not have. "mean": no momentum, the mean of the source
        tensor's squared gradients, and the old step count, so that the first update of a fresh unit is no larger than
        others. "zero": none; tensors that are new as a whole start at step 0, but fresh units of old tensors share the
        old step count, and their first updates are 3 to 7 times the learning rate, unless `growth.Rewarm` reduces them.
        "reset": the same, and all copies but the first have no state either. "all": nothing has any state, as in a
        new optimizer with the same groups.

    A parameter joins the group of the parameter that it grew from; groups keep their options, including those that a
    scheduler has set. To keep a scheduler, set `scheduler.optimizer = result`.

    Raises:
        OptimizerError: another class of optimizer, or models that are not the plan's.

    >>> import growth, torch, transformers
    >>> model = transformers.AutoModelForCausalLM.from_pretrained(growth.resolve("examples/phi-mini"))
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> plan = growth.plan("phi-mini", model)
    >>> larger = growth.grow_model(model, plan)
    >>> grown = growth.grow_optimizer(optimizer, model, larger, plan)
    >>> type(grown).__name__, grown.param_groups[0]["lr"], len(grown.param_groups[0]["params"])
    ('AdamW', 0.001, 117)
    """
    if fresh != "all":
        check_class(optimizer)
    before = _parameters(small, {name: info.shape for name, info in plan.sources.items()}, "small")
    after = _parameters(big, {tensor_map.target: tensor_map.shape for tensor_map in plan.tensors}, "big")
    named = grow_named_state_dict(_named(optimizer, small), plan, before, after, fresh=fresh)
    _check_made(small, big, plan)
    parameters = dict(big.named_parameters())
    members = [
        [(name, parameters[name]) if "param_names" in group else parameters[name] for name in group["params"]]
        for group in named["param_groups"]
    ]
    kind = type(optimizer)
    _check_matrices(optimizer, (group["params"] for group in named["param_groups"]), after)
    accepted = inspect.signature(kind).parameters
    options = {key: value for key, value in optimizer.defaults.items() if key in accepted}
    grown = kind([{"params": params} for params in members], **options)
    grown.load_state_dict(numbered(named))  # puts moments and steps where this optimizer wants them
    return grown


def check_optimizer(optimizer: torch.optim.Optimizer, model: PreTrainedModel, fresh: Fresh = "mean") -> None:
    """Refuse an optimizer whose state cannot grow, before anything grows.

    Raises:
        OptimizerError: as for `grow_optimizer`, except for what only a plan or the state's values show.
    """
    if fresh != "all":
        check_class(optimizer)
    named = _named(optimizer, model)
    check_groups(named["param_groups"], named["state"], known=fresh != "all")


def names_in_groups(optimizer: torch.optim.Optimizer, model: PreTrainedModel) -> list[list[str]]:
    """The names of the parameters in an optimizer's groups.

    Raises:
        OptimizerError: a parameter that is not the model's.
    """
    return [group["params"] for group in _named(optimizer, model)["param_groups"]]


def check_grown_groups(
    optimizer: torch.optim.Optimizer, groups: Iterable[Sequence[str]], plan: Plan, before: Names, after: Names
) -> list[list[str]]:
    """The names of the grown model's parameters by group of an optimizer, in their order, before anything grows.

    groups: the names of the source's.
    before, after: the parameters of the source and of the grown model, as `parameter_names` returns them.

    Raises:
        OptimizerError: groups in which a parameter has no defined place, or one that the class does not train.
    """
    grown = grown_groups(groups, plan, before, after)
    _check_matrices(optimizer, grown, after)
    return grown


def _check_matrices(optimizer: torch.optim.Optimizer, groups: Iterable[Sequence[str]], after: Names) -> None:
    if type(optimizer) is not getattr(torch.optim, "Muon", None):
        return
    for name in (name for group in groups for name in group):
        if len(after[name].shape) != 2:
            raise OptimizerError(
                f"Muon cannot train '{name}' of the grown model, a stack of experts: it takes 2D parameters. Train the "
                "MLPs with AdamW before they become experts."
            )


def placed_parameters(
    optimizer: torch.optim.Optimizer, small: PreTrainedModel, big: PreTrainedModel, plan: Plan
) -> list[list[str]]:
    """The names of the grown model's parameters by group of an optimizer of any class, in their order.

    Raises:
        OptimizerError: as for `check_grown_groups`.
    """
    groups = names_in_groups(optimizer, small)
    return check_grown_groups(optimizer, groups, plan, parameter_names(small, plan.sources), parameter_names(big))


def grow_named_state_dict(
    named: Mapping[str, Any], plan: Plan, before: Names, after: Names, *, fresh: Fresh = "mean"
) -> dict[str, Any]:
    """Grow an optimizer's state dict with names for numbers, as torch.distributed.checkpoint gathers it.

    named: `state` by the names of parameters in the model, and `param_groups` whose `params` are names.
    before, after: the parameters of the source and of the grown model, as `parameter_names` returns them.
    fresh: as for `grow_optimizer`.

    Raises:
        OptimizerError: as for `grow_optimizer`.
    """
    if fresh not in get_args(Fresh):
        raise OptimizerError(f"Unknown fresh='{fresh}': use one of {', '.join(get_args(Fresh))}.")
    groups, state = named["param_groups"], {name: entry for name, entry in named["state"].items() if entry}
    check_groups(groups, named["state"], known=fresh != "all")
    placed = grown_groups([group["params"] for group in groups], plan, before, after)
    options = [
        {**copy.deepcopy({**group, "params": ()}), "params": names} for group, names in zip(groups, placed, strict=True)
    ]
    grown: dict[str, dict[str, Any]] = {}
    if fresh != "all":
        check_entries(groups, state, before)
        grown = _grown_entries(groups, state, plan, before, options, after, fresh)
    return {**named, "state": grown, "param_groups": options}


def _grown_entries(
    groups: Iterable[Mapping[str, Any]],
    state: State,
    plan: Plan,
    before: Names,
    grown_groups: Iterable[Mapping[str, Any]],
    after: Names,
    fresh: Fresh,
) -> dict[str, dict[str, Any]]:
    """The entries of the grown model's parameters: taken apart into tensors of files, grown, and put together."""
    kinds = kinds_of(groups)
    decoded = {name: kinds[name].decoded(entry) for name, entry in state.items()}
    apart = {
        file: {key: value[index] if is_moment(value) else value for key, value in decoded[name].items()}
        for name in decoded
        for file, index in before[name].files.items()
    }
    file_kinds = {file: kinds[name] for name in decoded for file in before[name].files}
    grown = grow_state(apart, file_kinds, plan, fresh=fresh)
    whole = {name: _whole(stored, grown) for name, stored in after.items()}
    kinds = kinds_of(grown_groups)
    return {name: kinds[name].encoded(entry) for name, entry in whole.items() if entry}


def _whole(stored: StoredParameter, entries: State) -> dict[str, Any]:
    """The entry of a parameter from those of the tensors that make it; empty if they have none."""
    found = [(index, entries[file]) for file, index in stored.files.items() if file in entries]
    if len(found) == 1 and found[0][0] == ():
        return dict(found[0][1])
    result: dict[str, Any] = {}
    for index, entry in found:
        for key, value in entry.items():
            if is_moment(value):
                result.setdefault(key, value.new_zeros(stored.shape))[index] = value
            else:
                result.setdefault(key, value)
    return result


def _parameters(model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]], which: str) -> Names:
    """A model's parameters, checked against the shapes of the plan."""
    names = parameter_names(model, shapes)
    buffers = buffer_names(model)
    wrong = misfit(shapes_by_file(names), {name: shape for name, shape in shapes.items() if name not in buffers})
    if wrong is not None:
        raise OptimizerError(
            f"The model `{which}` is not the plan's: {wrong}. Use plan = growth.plan(recipe, small) and "
            "big = growth.grow_model(small, plan)."
        )
    return names


def _check_made(small: PreTrainedModel, big: PreTrainedModel, plan: Plan) -> None:
    """Refuse a grown model that the plan does not make: state would go to wrong layers or units.

    Many plans lead to the same shapes, so values are compared.

    Raises:
        OptimizerError: a value differs.
    """
    old, new = (by_file(parameter_names(model), dict(model.named_parameters())) for model in (small, big))
    arrays = {name: as_array(tensor.detach().cpu().contiguous()) for name, tensor in old.items()}
    for tensor_map in (one for one in plan.tensors if one.target in new):
        made = as_tensor(grow_tensor(tensor_map, MemorySource(arrays), plan.seed), tensor_map.dtype)
        found = new[tensor_map.target].detach().cpu()
        if not torch.equal(made.to(found.dtype), found):
            raise OptimizerError(
                f"The model `big` is not what the plan makes of `small`: '{tensor_map.target}' has other values. "
                "Either another plan made it, or one of the two was trained or changed since. Use plan = "
                "growth.plan(recipe, small) and big = growth.grow_model(small, plan), and then grow the optimizer."
            )


def _named(optimizer: torch.optim.Optimizer, model: PreTrainedModel) -> dict[str, Any]:
    """An optimizer's state dict with the names of its parameters for their numbers."""
    restore_rates(optimizer)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in (*listed, *optimizer.state):
        if id(parameter) not in names:
            raise OptimizerError(
                f"The optimizer has a parameter of shape {list(parameter.shape)} that is not a parameter of `small`. "
                "Pass the model that the optimizer trains."
            )
    groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    return {"state": {names[id(p)]: entry for p, entry in optimizer.state.items()}, "param_groups": groups}
