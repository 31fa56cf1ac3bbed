"""State dicts of torch's Adam, AdamW and SGD: what they may contain, and which parameter each entry belongs to.

A *named* state dict has the names of parameters in checkpoint files where torch has numbers. torch numbers parameters
group by group, in the order in which each group lists them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from growth.arrays.torch_interop import SAFETENSORS_NAMES
from growth.errors import OptimizerError
from growth.planning.plan import Plan
from growth.training.parameter_names import Names

State = Mapping[str, Mapping[str, Any]]  # the entries of each parameter, by its name

# name -> the power of the gradient that it averages
MOMENTS: Mapping[str, int] = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "momentum_buffer": 1}
OPTIMIZERS: tuple[type[torch.optim.Optimizer], ...] = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
_OPTIONS = ({"betas", "amsgrad"}, {"momentum", "dampening"})  # options of Adam's groups, and of SGD's
_KEYS = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"})  # entries of a parameter in Adam, and in SGD
_OPTIONAL = {"max_exp_avg_sq"}
_NEW = "Start a new optimizer over the grown model"


def check_class(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose state cannot grow.

    Raises:
        OptimizerError: any class but torch.optim's Adam, AdamW and SGD.
    """
    kind = type(optimizer)
    if kind not in OPTIMIZERS:
        raise OptimizerError(
            f"Cannot grow the state of {kind.__module__}.{kind.__qualname__}: only torch.optim's "
            f"{', '.join(known.__name__ for known in OPTIMIZERS)} can. {_NEW}, or train with one of these "
            "(TrainingArguments(optim='adamw_torch'))."
        )


# ------------------------------------------------- the entries of one parameter


def check_entry(name: str, entry: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    """Refuse the state of a parameter if torch's Adam, AdamW or SGD cannot have made it; call `check_options` first.

    name, shape: the parameter's name, for the message, and its shape.

    Raises:
        OptimizerError: unknown or missing keys; a moment that is not a dense float tensor of the parameter's shape
            with finite values; a negative mean of squares; a step that is not a count.
    """
    unknown = sorted(map(str, entry.keys() - MOMENTS.keys() - {"step"}))
    if unknown:
        raise OptimizerError(
            f"The optimizer keeps '{unknown[0]}' of '{name}': only {', '.join(MOMENTS)} can grow. {_NEW}."
        )
    keys = entry.keys() - _OPTIONAL
    if keys not in _KEYS:
        either = " or ".join(", ".join(sorted(known)) for known in _KEYS)
        raise OptimizerError(
            f"The optimizer's state of '{name}' has {', '.join(sorted(entry))} instead of exactly {either}: it is "
            f"damaged, or of another optimizer. {_NEW}."
        )
    if "step" in entry:
        _check_step(name, entry["step"])
    for key, tensor in moments(entry).items():
        problem = _problem(tensor, shape, squares=MOMENTS[key] == 2)
        if problem is not None:
            raise OptimizerError(f"'{key}' of '{name}' {problem}. {_NEW}.")


def moments(entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """The moments in the state of a parameter; without SGD's momentum before the first step, which is None."""
    return {key: value for key, value in entry.items() if key in MOMENTS and value is not None}


def _check_step(name: str, step: Any) -> None:
    plain = type(step) in (int, float) or (type(step) is Tensor and step.ndim == 0 and not step.is_complex())
    if not plain or (isinstance(step, Tensor) and step.is_meta) or not (math.isfinite(step) and step >= 0):
        raise OptimizerError(f"'step' of '{name}' is {str(step)[:80]}, which is not a number of steps. {_NEW}.")


def _problem(tensor: Any, shape: tuple[int, ...], *, squares: bool) -> str | None:
    """Why a moment cannot grow, as the rest of a sentence about it."""
    if type(tensor) is not Tensor:
        gather = "Gather it first if it is sharded (torch.distributed.checkpoint.state_dict, full_state_dict=True)"
        return f"is a {type(tensor).__name__}: only plain tensors can grow. {gather}"
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in SAFETENSORS_NAMES:
        kind = "a tensor without values (meta)" if tensor.is_meta else f"of type {tensor.dtype}"
        kind = kind if tensor.layout is torch.strided else f"stored as {tensor.layout}"
        return f"is {kind}: only dense tensors of {', '.join(map(str, SAFETENSORS_NAMES))} can grow. {_NEW}"
    if tuple(tensor.shape) != shape:
        other = "the optimizer's state is of another model, or numbers its parameters in another order"
        return f"has shape {list(tensor.shape)} and the parameter {list(shape)}: {other}"
    if tensor.requires_grad:
        return "requires a gradient, which would not follow it: detach it first"
    smallest, largest = map(float, tensor.aminmax()) if tensor.numel() else (0.0, 0.0)
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        return "holds NaN or Inf: go back to a checkpoint from before it did"
    if squares and smallest < 0:
        return f"is a mean of squares and holds {smallest:g}: go back to a checkpoint from before it was damaged"
    return None


# ------------------------------------------------- groups


def check_groups(groups: Iterable[Any], keys: Iterable[Any]) -> None:
    """Check the groups of a state dict, and the keys of its state, against what an optimizer can have.

    groups: `param_groups`, whose params are numbers or names.
    keys: the keys of `state`.

    Raises:
        OptimizerError: options of another optimizer, or `differentiable`; a parameter that is listed twice; state of a
            parameter that no group lists.
    """
    listed: Counter[Any] = Counter()
    for group in groups:
        if not any(options <= group.keys() for options in _OPTIONS):
            raise OptimizerError(
                f"The optimizer's groups have the options {', '.join(sorted(map(str, group)))}: only the state of "
                f"torch's Adam, AdamW and SGD can grow. {_NEW}."
            )
        if group.get("differentiable"):
            raise OptimizerError(
                "The optimizer is differentiable: the history of its updates cannot grow. Make it with "
                "differentiable=False."
            )
        params = group["params"]
        if any(type(param) not in (int, str) for param in params):
            raise OptimizerError(
                f"A group of the optimizer lists parameters that are neither numbers nor names. {_NEW}."
            )
        listed.update(params)
    twice = [param for param, times in listed.items() if times > 1]
    if twice:
        raise OptimizerError(
            f"The optimizer's groups list parameter {twice[0]} twice: the state dict is damaged. {_NEW}."
        )
    unknown = sorted((key for key in keys if key not in listed), key=str)
    if unknown:
        raise OptimizerError(
            f"The optimizer keeps state of parameter {unknown[0]}, which is in none of its groups. {_NEW}."
        )


def check_options(groups: Iterable[Mapping[str, Any]], state: State) -> None:
    """Refuse state without the entries that the options of its group need; groups list names.

    Raises:
        OptimizerError: Adam's state with SGD's options or the reverse; `amsgrad` without its maximum.
    """
    for group in groups:
        expected = _KEYS["betas" not in group] | (_OPTIONAL if group.get("amsgrad") else set())
        for name in group["params"]:
            missing = sorted(expected - state[name].keys()) if state.get(name) else []
            if missing:
                raise OptimizerError(
                    f"The optimizer's state of '{name}' lacks '{missing[0]}', which the options of its group need: it "
                    f"is damaged, or of another optimizer. {_NEW}."
                )


def check_order(groups: Iterable[Sequence[str]], plan: Plan, before: Iterable[str]) -> None:
    """Refuse groups in which a new layer's parameters have no defined place.

    groups: the names of the source's parameters, in the order in which the optimizer lists them.
    before: all names, in the order of the source model's parameters().

    Raises:
        OptimizerError: the plan adds layers, and a group is not in the order of the model.
    """
    if [layer.source for layer in plan.growth.layers] == list(range(plan.source.depth)):
        return
    place = {name: index for index, name in enumerate(before)}
    for number, group in enumerate(groups):
        if not _is_ordered(group, place):
            raise OptimizerError(
                f"Group {number} of the optimizer lists its parameters in another order than model.parameters(), and "
                "the growth adds layers, whose place in it is not defined. Sort group['params'] in the model's order."
            )


def grown_groups(groups: Iterable[Sequence[str]], plan: Plan, before: Names, after: Names) -> list[list[str]]:
    """List the grown model's parameters by group, each in the group of the one that it grew from.

    A group in the order of the source model's parameters() gets the order of the grown model's, as in a new optimizer
    for the grown model. A group in another order keeps it.

    groups: the names of the source's parameters, in the order in which the optimizer lists them.
    before, after: all parameters of the source and of the grown model, as `parameter_names` returns them.

    Raises:
        OptimizerError: as `check_order`.
    """
    groups = [list(group) for group in groups]
    check_order(groups, plan, before)
    place = {name: index for index, name in enumerate(before)}
    sources = {tensor_map.target: tensor_map.source.name for tensor_map in plan.tensors}
    result = []
    for group in groups:
        members = {name: index for index, name in enumerate(group)}
        grown = [name for name in after if sources.get(name) in members]
        if not _is_ordered(group, place):
            grown.sort(key=lambda name: members[sources[name]])
        result.append(grown)
    return result


def _is_ordered(group: Sequence[str], place: Mapping[str, int]) -> bool:
    places = [place[name] for name in group]
    return places == sorted(places)


def numbered(named: Mapping[str, Any], after: Names) -> dict[str, Any]:
    """Convert a named state dict for load_state_dict: numbers for names, and the model's names as `param_names`.

    after: the parameters of the grown model, as `parameter_names` returns them.
    """
    number = {name: at for at, name in enumerate(name for group in named["param_groups"] for name in group["params"])}
    groups = []
    for group in named["param_groups"]:
        names = {"param_names": [after[name] for name in group["params"]]} if "param_names" in group else {}
        groups.append({**group, **names, "params": [number[name] for name in group["params"]]})
    state = {number[name]: named["state"][name] for name in number if name in named["state"]}
    return {**named, "state": state, "param_groups": groups}
