"""Parameter groups for a grown model: new and old values at their own learning rates, or frozen.

Every value is of one kind: in a new layer, fresh, a copy beside the first copy of its unit, or old. A parameter is in
one group of an optimizer and has one learning rate, so a tensor has the rate of its newest values. Single values are
frozen by zero gradients: LLaMA-Pro trains its new layers alone (Wu et al. 2024), and fresh units can be trained alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from growth.algebra.expansion import ordinal
from growth.errors import CheckpointError, ConfigError
from growth.planning.manifest import MANIFEST, expansion_from, manifest, read_manifest
from growth.planning.plan import Plan
from growth.training.parameter_names import misfit, parameters_by_file_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = ("old", "copies", "fresh", "new_layers")  # by age
OLD, COPY, FRESH_UNIT, NEW_LAYER = range(4)
Kinds = NDArray[np.uint8]  # of the indices of an axis or of a stored dimension

# names of parameters without weight decay in a transformers Trainer, beside those of a LayerNorm
_NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)", re.IGNORECASE)

# parameter -> the handle of its hook, or None where all of it is frozen: what a later call undoes
_FROZEN: Any = WeakTensorKeyDictionary()


def param_groups(
    model: PreTrainedModel,
    origin: Plan | Mapping[str, Any] | str | Path,
    *,
    lr: float,
    weight_decay: float = 0.0,
    old: float = 1.0,
    copies: float = 1.0,
    fresh: float = 1.0,
    new_layers: float = 1.0,
) -> list[dict[str, Any]]:
    """Make the parameter groups of a grown model for a new optimizer: one per kind, with and without weight decay.

    origin: the Plan of the growth, the content of growth.json, or the folder that holds it.
    lr: the learning rate; each group has lr times the rate of its kind.
    weight_decay: for everything but norms and biases, as in a transformers Trainer.
    old, copies, fresh, new_layers: the rates. A tensor is trained at the rate of its newest values. Rate 0 freezes all
        values of a kind. A tensor that holds only frozen values is in no group and gets no gradient. In a tensor that
        also holds other values, the gradients of the frozen ones are set to zero and the tensor has no weight decay,
        since decay would change every value.

    Frozen values keep every bit under any optimizer whose updates are zero where all gradients were: do not give it
    earlier momentum. Gradients are masked by hooks on the parameters: move the model to its device first, and do not
    shard it later. Another call unfreezes what the one before froze.

    Raises:
        CheckpointError: the model is not the grown one.
        ConfigError: negative rates, all rates 0, nothing left to train, or a model with experts.

    >>> import growth, transformers
    >>> model = transformers.AutoModelForCausalLM.from_pretrained("examples/phi-mini")
    >>> plan = growth.plan("double-depth", model)
    >>> groups = growth.param_groups(growth.grow_model(model, plan), plan, lr=1e-3, weight_decay=0.1, old=0.1)
    >>> [(group["kind"], group["lr"], group["weight_decay"]) for group in groups]
    [('old', 0.0001, 0.1), ('old', 0.0001, 0.0), ('new_layers', 0.001, 0.1), ('new_layers', 0.001, 0.0)]
    """
    rates = (old, copies, fresh, new_layers)
    if min(rates) < 0 or max(rates) == 0:
        given = ", ".join(f"{kind}={rate}" for kind, rate in zip(KINDS, rates, strict=True))
        raise ConfigError(f"The rates are {given}: use 0 (frozen) or more for each, and more than 0 for at least one.")
    kinds = tensor_kinds(_content(origin))
    parameters = _checked(model, kinds)
    frozen_kinds = [kind for kind, rate in enumerate(rates) if rate == 0]
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    members: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        _unfreeze(parameter)
        if not parameter.requires_grad:
            continue
        newest, has_frozen = _freeze(parameter, kinds[name], frozen_kinds)
        if parameter.requires_grad:
            decays = not (has_frozen or id(parameter) in norms or _NOT_DECAYED.search(name))
            members.setdefault((newest, decays), []).append(parameter)
    if not members:
        raise ConfigError("Nothing is left to train: no value of the model is of a kind with a rate above 0.")
    return [
        {"params": own, "lr": lr * rates[kind], "weight_decay": weight_decay * decays, "kind": KINDS[kind]}
        for (kind, decays), own in sorted(members.items(), key=lambda member: (member[0][0], not member[0][1]))
    ]


# ------------------------------------------------- kinds


def tensor_kinds(content: Mapping[str, Any]) -> dict[str, tuple[Kinds, ...]]:
    """The kinds along each dimension of each tensor of growth.json; a value is of the newest of its indices' kinds."""
    axes = {name: np.zeros(size, np.uint8) for name, size in content["sizes"]["after"].items()}
    axes |= {name: axis_kinds(entry) for name, entry in content["axes"].items()}
    return {name: _dimensions(name, entry, axes) for name, entry in content["tensors"].items()}


def axis_kinds(entry: dict[str, Any]) -> Kinds:
    """The kinds of the units of an axis: old, a copy, or fresh.

    >>> axis_kinds({"before": 2, "after": 4, "runs": [[0, 2, 0, 1.0, 1.0], [2, 3, 0, 1.0, 1.0], [3, 4, None, 0, 1]]})
    array([0, 0, 1, 2], dtype=uint8)
    """
    expansion = expansion_from(entry)
    kinds = np.where(ordinal(expansion.source) > 0, COPY, OLD)
    return np.where(expansion.fresh, FRESH_UNIT, kinds).astype(np.uint8)


def _dimensions(name: str, entry: Mapping[str, Any], axes: Mapping[str, Kinds]) -> tuple[Kinds, ...]:
    for axis in entry.get("units", ()):
        if axes[axis].any() or axis == "experts":
            raise ConfigError(
                f"Cannot group the parameters of a model whose units along '{axis}' are separate tensors, such as "
                f"'{name}'. Make the groups by hand."
            )
    found = [kinds_along(names, axes) for names in entry["axes"]]
    if fused := entry.get("fused"):
        beside = np.concatenate([kinds_along(names, axes) for names in fused["parts"]])
        found[fused["dimension"]] = np.maximum.outer(kinds_along(fused["within"], axes), beside).ravel()
    if entry["new_layer"]:
        found = [np.full_like(kinds, NEW_LAYER) for kinds in found]
    return tuple(found)


def kinds_along(names: Sequence[str], axes: Mapping[str, Kinds]) -> Kinds:
    """The kinds of the units that several axes span, the last of them innermost: each of the newest of its parts."""
    one = np.zeros(1, np.uint8)
    return reduce(lambda outer, inner: np.maximum.outer(outer, inner).ravel(), (axes[name] for name in names), one)


# ------------------------------------------------- freezing


def _freeze(parameter: nn.Parameter, kinds: tuple[Kinds, ...], frozen_kinds: list[int]) -> tuple[int, bool]:
    """Freeze the values of some kinds; return the newest kind of the parameter, and whether any value is frozen."""
    values = torch.from_numpy(reduce(np.maximum.outer, kinds)).to(parameter.device)
    mask = torch.isin(values, torch.tensor(frozen_kinds, dtype=values.dtype, device=values.device))
    if bool(mask.all()):
        parameter.requires_grad_(False)
        _FROZEN[parameter] = None
    elif bool(mask.any()):
        hook: Any = parameter.register_hook
        _FROZEN[parameter] = hook(lambda gradient: gradient.masked_fill(mask, 0.0))
    return int(values.max()), bool(mask.any())


def _unfreeze(parameter: nn.Parameter) -> None:
    """Undo `_freeze`."""
    if parameter not in _FROZEN:
        return
    handle = _FROZEN.pop(parameter)
    if handle is None:
        parameter.requires_grad_(True)
    else:
        handle.remove()


# ------------------------------------------------- arguments


def _content(origin: Plan | Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    if isinstance(origin, Plan):
        return manifest(origin, {}, {})
    if isinstance(origin, Mapping):
        return origin
    content = read_manifest(Path(origin))
    if content is None:
        raise CheckpointError(f"{origin} has no {MANIFEST}: give the folder that growth wrote, or the plan.")
    return content


def _checked(model: PreTrainedModel, kinds: Mapping[str, tuple[Kinds, ...]]) -> dict[str, nn.Parameter]:
    """The model's parameters by the names of the grown tensors, tied ones once."""
    found = {name: p for name, p in parameters_by_file_name(model).items() if name in kinds}
    known = {id(parameter) for parameter in found.values()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in known:
            raise CheckpointError(
                f"The model has '{name}', which is not a tensor of the growth. Give the grown model, and the plan or "
                "growth.json of its last growth."
            )
    wrong = misfit(found, {name: tuple(map(len, dimensions)) for name, dimensions in kinds.items()})
    if wrong is not None:
        raise CheckpointError(
            f"The model is not the grown one: {wrong}. Give the grown model, and the plan or growth.json of its last "
            "growth."
        )
    return found
