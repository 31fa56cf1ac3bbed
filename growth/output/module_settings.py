"""Attributes of a model's modules that a user has set: they differ from what the class sets by the config."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

from growth.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


CARRIED = ("gradient_checkpointing", "_gradient_checkpointing_func")  # attributes of modules, copied as they are
# attributes that other rules carry over, reset or refuse
ELSEWHERE = ("forward", "generation_config", "hf_device_map", "model_tags", "name_or_path", *CARRIED)
MISSING = object()  # the value of an attribute that a module does not have
Settings = dict[str, dict[str, tuple[Any, Any]]]  # module -> attribute -> (value, value that the class sets)


def changed_settings(model: PreTrainedModel) -> Settings:
    """The attributes of modules that differ from what the class sets by the config."""
    from torch import nn

    stock = dict(stock_model(model).named_modules())
    of_torch = vars(nn.Module()).keys()
    found: Settings = {}
    for name, module in model.named_modules():
        expected = vars(stock[name]) if name in stock else {}
        for attribute, value in vars(module).items():
            if attribute in of_torch or attribute in ELSEWHERE or _is_private(attribute):
                continue
            default = expected.get(attribute, MISSING)
            if _was_set(value, default):
                found.setdefault(name, {})[attribute] = value, default
    return found


def stock_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model that the class builds from the config, on the meta device.

    Raises:
        CheckpointError: the class needs more than the config.
    """
    import torch

    try:
        with torch.device("meta"):
            return cast("PreTrainedModel", type(model)(copy.deepcopy(model.config)))
    except TypeError as error:
        raise CheckpointError(
            f"Cannot grow this {type_name(model)}: its class cannot be built from the config alone ({error}). Grow a "
            "model of the class that it is derived from."
        ) from None


def _is_private(attribute: str) -> bool:
    """Whether an attribute is internal to the library; a loss function set by a user has a private name too."""
    return attribute.startswith("_") and attribute != "_loss_function"


def _was_set(value: Any, default: Any) -> bool:
    """Whether an attribute differs from the default; tensors are compared as buffers."""
    import torch

    if isinstance(value, torch.Tensor):
        return False
    if type(value) is not type(default):
        return True
    if is_plain(value):
        return bool(value != default)
    return callable(value) and function_name(value) != function_name(default)


def is_plain(value: Any) -> bool:
    """Whether a value is None, a boolean, a number or a string."""
    return value is None or isinstance(value, bool | int | float | str)


def described(value: Any) -> str:
    """The name of a callable, or the type of another value."""
    return function_name(value) if callable(value) else f"a {type_name(value)}"


def function_name(value: Any) -> str:
    """The module and name of a callable: of the function, where it is a method or a partial."""
    function = getattr(value, "__func__", getattr(value, "func", value))
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(value).__qualname__)}"


def type_name(value: Any) -> str:
    """The module and name of a value's type."""
    return f"{type(value).__module__}.{type(value).__qualname__}"
