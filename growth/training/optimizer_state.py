"""State dicts of optimizers: what they may contain, and which parameter each entry belongs to.

A *named* state dict has the names of parameters in the model where torch has numbers. torch numbers parameters group by
group, in the order in which each group lists them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from os.path import commonpath
from typing import Any

import torch
from torch import Tensor

from growth.arrays.torch_interop import SAFETENSORS_NAMES
from growth.errors import OptimizerError
from growth.planning.plan import Plan
from growth.training.moments import State
from growth.training.optimizer_kinds import KINDS, Entry, Kind, kind_of_class, kind_of_group
from growth.training.parameter_names import Names

_NEW = "Start a new optimizer over the grown model (fresh='all'; in a schedule, optimizer: fresh)"
_BLOCKWISE = ("state1", "qmap1", "absmax1")  # of bitsandbytes


def known_classes() -> str:
    """The names of all optimizers whose state can grow."""
    torchs = [name.removeprefix("torch.optim.") for kind in KINDS for name in kind.classes if "torch." in name]
    others = [name for kind in KINDS for name in kind.classes if "torch." not in name]
    return f"torch.optim's {', '.join(torchs)} and {', '.join(others)}"


def check_class(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose state cannot grow.

    Raises:
        OptimizerError: a class that `KINDS` does not list.
    """
    kind = type(optimizer)
    if kind_of_class(kind) is None:
        raise OptimizerError(
            f"Cannot grow the state of {kind.__module__}.{kind.__qualname__}: only {known_classes()} can. {_NEW}, or "
            "train with one of these (TrainingArguments(optim='adamw_torch'))."
        )


# ------------------------------------------------- the entries of one parameter


def check_entry(name: str, entry: Entry, shape: tuple[int, ...], group: Mapping[str, Any]) -> None:
    """Refuse the state of a parameter if the optimizer that has its group cannot have made it.

    name, shape: the parameter's name, for the message, and its shape.

    Raises:
        OptimizerError: unknown or missing entries; a moment that is not a dense float tensor of its shape with finite
            values; a negative mean of squares; a step that is not a count.
    """
    kind = check_keys(name, entry, shape, group)
    for key, expected in kind.shapes(shape, {**group, **dict.fromkeys(kind.optional.values(), True)}).items():
        if key in kind.scalars or entry.get(key) is None:
            continue
        signed = kind.moments.get(key) in ("gradients", "updates")
        problem = _problem(entry[key], expected, is_parameters=key in kind.moments, signed=signed)
        if problem is not None:
            raise OptimizerError(f"'{key}' of '{name}' {problem}. {_NEW}.")


def check_keys(name: str, entry: Entry, shape: tuple[int, ...], group: Mapping[str, Any]) -> Kind:
    """Refuse the state of a parameter that lacks entries, or has other ones; return its kind.

    Raises:
        OptimizerError: unknown or missing entries; a step that is not a count.
    """
    kind = kind_of_group(group)
    assert kind is not None, "check_groups comes first"
    _check_keys(name, entry, kind, kind.shapes(shape, group))
    for key, value in entry.items():
        if key in kind.scalars:
            _check_scalar(name, key, value)
    return kind


def _check_keys(name: str, entry: Entry, kind: Kind, needed: Iterable[str]) -> None:
    unknown = sorted(map(str, entry.keys() - kind.entries))
    missing = sorted(set(needed) - entry.keys())
    refuse_blockwise(name, *map(str, entry))
    if missing:
        raise OptimizerError(
            f"The optimizer's state of '{name}' lacks '{missing[0]}', which the options of its group need: it is "
            f"damaged, or of another optimizer. {_NEW}."
        )
    if unknown:
        raise OptimizerError(
            f"The optimizer keeps '{unknown[0]}' of '{name}': only {', '.join(sorted(kind.entries))} can grow with the "
            f"options of its group. {_NEW}."
        )


def refuse_blockwise(name: str, *keys: str) -> None:
    """Refuse 8-bit state.

    Raises:
        OptimizerError: the keys of a parameter's state are of it.
    """
    found = sorted({*keys} & {*_BLOCKWISE})
    if found:
        raise OptimizerError(
            f"The optimizer keeps '{found[0]}' of '{name}': 8-bit state (bitsandbytes) has one scale for each block "
            f"of values, and growth takes blocks apart. {_NEW}."
        )


def _check_scalar(name: str, key: str, value: Any) -> None:
    plain = type(value) in (int, float) or (type(value) is Tensor and value.ndim == 0 and not value.is_complex())
    if not plain or (isinstance(value, Tensor) and value.is_meta) or not (math.isfinite(value) and value >= 0):
        what = "a number of steps" if key == "step" else "a number of at least 0"
        raise OptimizerError(f"'{key}' of '{name}' is {str(value)[:80]}, which is not {what}. {_NEW}.")


def _problem(tensor: Any, shape: tuple[int, ...], *, is_parameters: bool, signed: bool) -> str | None:
    """Why a moment cannot grow, as the rest of a sentence about it.

    is_parameters: whether `shape` is the parameter's, and not that of a factor.
    """
    if type(tensor) is not Tensor:
        gather = "Gather it first if it is sharded (torch.distributed.checkpoint.state_dict, full_state_dict=True)"
        return f"is a {type(tensor).__name__}: only plain tensors can grow. {gather}"
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in SAFETENSORS_NAMES:
        kind = "a tensor without values (meta)" if tensor.is_meta else f"of type {tensor.dtype}"
        kind = kind if tensor.layout is torch.strided else f"stored as {tensor.layout}"
        return f"is {kind}: only dense tensors of {', '.join(map(str, SAFETENSORS_NAMES))} can grow. {_NEW}"
    if tuple(tensor.shape) != shape:
        other = "the optimizer's state is of another model, or numbers its parameters in another order"
        whose = "the parameter" if is_parameters else "should have"
        return f"has shape {list(tensor.shape)} and {whose} {list(shape)}: {other}"
    if tensor.requires_grad:
        return "requires a gradient, which would not follow it: detach it first"
    smallest, largest = map(float, tensor.aminmax()) if tensor.numel() else (0.0, 0.0)
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        return "holds NaN or Inf: go back to a checkpoint from before it did"
    if not signed and smallest < 0:
        return f"is a mean of squares and holds {smallest:g}: go back to a checkpoint from before it was damaged"
    return None


# ------------------------------------------------- groups


def kinds_of(groups: Iterable[Mapping[str, Any]]) -> dict[str, Kind]:
    """The kind of optimizer of each parameter; groups list names, and `check_groups` has seen them."""
    found = ((name, kind_of_group(group)) for group in groups for name in group["params"])
    return {name: kind for name, kind in found if kind is not None}


def check_groups(groups: Iterable[Any], keys: Iterable[Any], *, known: bool = True) -> None:
    """Check the groups of a state dict, and the keys of its state, against what an optimizer can have.

    groups: `param_groups`, whose params are numbers or names.
    keys: the keys of `state`.
    known: whether their options must be those of an optimizer whose state can grow.

    Raises:
        OptimizerError: options of another optimizer, or `differentiable`; a parameter that is listed twice; state of a
            parameter that no group lists.
    """
    listed: Counter[Any] = Counter()
    for group in groups:
        if known and kind_of_group(group) is None:
            raise OptimizerError(
                f"The optimizer's groups have the options {', '.join(sorted(map(str, group)))}: only the state of "
                f"{known_classes()} can grow. {_NEW}."
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


def check_entries(groups: Iterable[Mapping[str, Any]], state: State, names: Names) -> None:
    """Refuse state that cannot grow; groups list names.

    Raises:
        OptimizerError: as `check_entry`; or state of a parameter that the plan does not have.
    """
    for group in groups:
        for name in group["params"]:
            if not state.get(name):
                continue
            if name not in names:
                raise OptimizerError(
                    f"The optimizer keeps state of '{name}', which the plan does not have. Plan the growth of the "
                    "model that the optimizer trains."
                )
            check_entry(name, state[name], names[name].shape, group)


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
    for the grown model. A group in another order keeps it. In the first layers of a
    model without any, vectors join the group of the final norm and matrices that of the embedding.

    groups: the names of the source's parameters, in the order in which the optimizer lists them.
    before, after: all parameters of the source and of the grown model, as `parameter_names` returns them.

    Raises:
        OptimizerError: as `check_order`.
    """
    groups = [list(group) for group in groups]
    check_order(groups, plan, before)
    place = {name: index for index, name in enumerate(before)}
    sources = _sources(plan, before, after)
    _check_together(groups, sources)
    result = []
    for group in groups:
        members = {name: index for index, name in enumerate(group)}
        grown = [name for name in after if sources[name][0] in members]
        if not _is_ordered(group, place):
            grown.sort(key=lambda name: members[sources[name][0]])
        result.append(grown)
    return result


def _sources(plan: Plan, before: Names, after: Names) -> dict[str, list[str]]:
    """The parameters that each parameter of the grown model grew from.

    One that the source does not have at all, such as a router, counts as grown from what its nearest neighbour in the
    model grew from: the experts of its layer. A vector of the first layers of a model without any counts as grown from
    its final norm, and a matrix as from its embedding.
    """
    own = {file: name for name, stored in before.items() for file in stored.files}
    of = {tensor_map.target: own.get(tensor_map.source.name) for tensor_map in plan.tensors}
    found = {name: list(dict.fromkeys(filter(None, map(of.get, stored.files)))) for name, stored in after.items()}
    known = [name for name, sources in found.items() if sources]
    paths = {name: name.replace(".", "/") for name in after}

    def nearness(name: str, other: str) -> tuple[int, bool]:
        return len(commonpath([paths[name], paths[other]])), len(after[name].shape) == len(after[other].shape)

    for name in found.keys() - known:
        nearest = max(known, key=partial(nearness, name))
        found[name] = found[nearest][:1]
    return found


def _check_together(groups: Iterable[Sequence[str]], sources: Mapping[str, Sequence[str]]) -> None:
    """Refuse groups that part what the grown model keeps in one parameter."""
    group_of = {name: number for number, group in enumerate(groups) for name in group}
    for name, parts in sources.items():
        if len({group_of.get(part) for part in parts}) > 1:
            raise OptimizerError(
                f"'{name}' of the grown model is made from {', '.join(parts)}, which are in different groups of the "
                "optimizer. Put them into one group."
            )


def _is_ordered(group: Sequence[str], place: Mapping[str, int]) -> bool:
    places = [place[name] for name in group]
    return places == sorted(places)


def numbered(named: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a named state dict for load_state_dict: numbers for names, and names as `param_names` where groups do."""
    number = {name: at for at, name in enumerate(name for group in named["param_groups"] for name in group["params"])}
    groups = []
    for group in named["param_groups"]:
        names = {"param_names": group["params"]} if "param_names" in group else {}
        groups.append({**group, **names, "params": [number[name] for name in group["params"]]})
    state = {number[name]: named["state"][name] for name in number if name in named["state"]}
    return {**named, "state": state, "param_groups": groups}
