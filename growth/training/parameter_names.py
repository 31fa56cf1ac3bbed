"""The names of a model's parameters, in files and in the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Names = Mapping[str, str]  # a model's parameters in the order of model.parameters(): name in files -> name in the model


def parameters_by_file_name(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """A model's parameters by their names in files, in the order of model.parameters().

    A tied parameter appears under each of its names, in its first place.
    """
    from transformers.core_model_loading import revert_weight_conversion

    named = dict(model.named_parameters(remove_duplicate=False))
    place = {id(parameter): index for index, parameter in enumerate(model.parameters())}  # a tied one once
    found = [(name, p) for name, p in revert_weight_conversion(model, named).items() if id(p) in place]
    return dict(sorted(found, key=lambda item: place[id(item[1])]))


def parameter_names(model: PreTrainedModel, known: Iterable[str]) -> dict[str, str]:
    """The names of a model's parameters: name in files -> name in the model, in the order of model.parameters().

    known: the names that a plan has, which decide the name of a tied parameter.
    """
    known = set(known)
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: own[id(p)] for name, p in parameters_by_file_name(model).items() if name in known}


def misfit(parameters: Mapping[str, nn.Parameter], shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Name the first parameter that does not have the shape that it should have; None if all have theirs."""
    for name, shape in shapes.items():
        has = list(parameters[name].shape) if name in parameters else "no such parameter"
        if has != list(shape):
            return f"'{name}' should have shape {list(shape)}, and it has {has}"
    return None
