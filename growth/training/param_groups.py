"""Parameter groups for a grown model: new and old values at their own learning rates, or frozen.

Every value is of one kind: in a new layer, fresh, a copy beside the first copy of its unit, or old. A parameter is in
one group of an optimizer and has one learning rate, so a tensor has the rate of its newest values. Single values are
frozen by zero gradients: LLaMA-Pro trains its new layers alone (Wu et al. 2024), and fresh units can be trained alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from growth.architectures import architecture
from growth.errors import ConfigError
from growth.training.mup import Rule, hidden_matrices, mup_factors
from growth.training.parameter_names import parameter_names
from growth.training.value_kinds import KINDS, Origin, content_of, value_kinds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# names of parameters without weight decay in a transformers Trainer, beside those of a LayerNorm
_NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)", re.IGNORECASE)

# parameter -> the handle of its hook, or None where all of it is frozen: what a later call undoes
_FROZEN: Any = WeakTensorKeyDictionary()


def param_groups(
    model: PreTrainedModel,
    origin: Origin,
    *,
    lr: float,
    weight_decay: float = 0.0,
    old: float = 1.0,
    copies: float = 1.0,
    fresh: float = 1.0,
    new_layers: float = 1.0,
    mup: Rule | None = None,
    depth_mup: bool = False,
) -> list[dict[str, Any]]:
    """Make the parameter groups of a grown model for a new optimizer: one per kind, with and without weight decay.

    origin: the Plan of the growth, the content of growth.json, or the folder that holds it.
    lr: the learning rate; each group has lr times the rate of its kind.
    weight_decay: for everything but norms and biases, as in a transformers Trainer.
    old, copies, fresh, new_layers: the rates. A tensor is trained at the rate of its newest values. Rate 0 freezes all
        values of a kind. A tensor that holds only frozen values is in no group and gets no gradient. In a tensor that
        also holds other values, the gradients of the frozen ones are set to zero and the tensor has no weight decay,
        since decay would change every value.

    mup: "adam", "sgd", "muon" or "muon_match_rms_adamw" (for Muon's `adjust_lr_fn`): lr is right for the source, and
        each tensor's rate also has the factor that follows from the growth of its fan-in and fan-out
        (docs/training.md). Weight decay is divided by this factor, so that lr * weight_decay stays. With Muon, the
        groups have "optimizer": "muon" for hidden matrices, and "adamw" for all others, which have Adam's factors.
    depth_mup: whether rates in layers also shrink by the root of the growth in depth.

    Frozen values keep every bit under any optimizer whose updates are zero where all gradients were: do not give it
    earlier momentum. Gradients are masked by hooks on the parameters: move the model to its device first, and do not
    shard it later. Another call unfreezes what the one before froze.

    Raises:
        CheckpointError: the model is not the grown one.
        ConfigError: negative rates, all rates 0, nothing left to train, or depth_mup from a model without layers.

    >>> import growth, transformers
    >>> model = transformers.AutoModelForCausalLM.from_pretrained(growth.resolve("examples/phi-mini"))
    >>> plan = growth.plan("double-depth", model)
    >>> groups = growth.param_groups(growth.grow_model(model, plan), plan, lr=1e-3, weight_decay=0.1, old=0.1)
    >>> [(group["kind"], group["lr"], group["weight_decay"]) for group in groups]
    [('old', 0.0001, 0.1), ('old', 0.0001, 0.0), ('new_layers', 0.001, 0.1), ('new_layers', 0.001, 0.0)]
    """
    rates = (old, copies, fresh, new_layers)
    if min(rates) < 0 or max(rates) == 0:
        given = ", ".join(f"{kind}={rate}" for kind, rate in zip(KINDS, rates, strict=True))
        raise ConfigError(f"The rates are {given}: use 0 (frozen) or more for each, and more than 0 for at least one.")
    frozen_kinds = [kind for kind, rate in enumerate(rates) if rate == 0]
    factors, matrices = _mup(model, content_of(origin), mup, depth_mup)
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    members: dict[tuple[int, bool, float, str], list[nn.Parameter]] = {}
    for name, parameter, kinds in value_kinds(model, origin):
        _unfreeze(parameter)
        if not parameter.requires_grad:
            continue
        newest, has_frozen = _freeze(parameter, kinds, frozen_kinds)
        if parameter.requires_grad:
            decays = not (has_frozen or id(parameter) in norms or _NOT_DECAYED.search(name))
            by_muon = bool(mup and mup.startswith("muon"))
            uses = ("muon" if name in matrices else "adamw") if by_muon else ""
            members.setdefault((newest, decays, factors.get(name, 1.0), uses), []).append(parameter)
    if not members:
        raise ConfigError("Nothing is left to train: no value of the model is of a kind with a rate above 0.")
    ordered = sorted(members.items(), key=lambda member: (member[0][0], not member[0][1], *member[0][2:]))
    return [
        {
            "params": own,
            "lr": lr * rates[kind] * factor,
            "weight_decay": weight_decay * decays / factor,
            "kind": KINDS[kind],
            **({"optimizer": uses} if uses else {}),
        }
        for (kind, decays, factor, uses), own in ordered
    ]


def _mup(
    model: PreTrainedModel, content: Mapping[str, Any], rule: Rule | None, depth: bool
) -> tuple[dict[str, float], set[str]]:
    """The factors of muP by the names of parameters, and the matrices that Muon trains; empty without a rule."""
    if rule is None:
        if depth:
            raise ConfigError("depth_mup=True needs mup: rates in depth are a part of muP. Give mup, or leave it out.")
        return {}, set()
    stated = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    table = architecture(stated).named_as_in(content["tensors"])
    sizes = content["sizes"]
    own = mup_factors(table, sizes["before"], sizes["after"], rule, depth=depth)
    adam = mup_factors(table, sizes["before"], sizes["after"], "adam", depth=depth)
    names = parameter_names(model, own)
    matrices: set[str] = set()
    if rule.startswith("muon"):
        hidden = hidden_matrices(table)
        matrices = {name for name, one in names.items() if len(one.shape) == 2 and set(one.files) <= hidden}
    by_tensor = {name: own if rule == "sgd" or name in matrices else adam for name in names}
    factors = {name: min(by_tensor[name][file] for file in stored.files) for name, stored in names.items()}
    return factors, matrices


# ------------------------------------------------- freezing


def _freeze(parameter: nn.Parameter, values: Tensor, frozen_kinds: list[int]) -> tuple[int, bool]:
    """Freeze the values of some kinds; return the newest kind of the parameter, and whether any value is frozen."""
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
