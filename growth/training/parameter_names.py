"""The parameters of a model, and where the tensors that files hold lie in them.

Most parameters are one tensor of a file. The class of a mixture stacks the tensors of all experts of a layer in one
parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Index = tuple[Any, ...]  # of a tensor in a parameter; () for the whole of it


@dataclass(frozen=True)
class StoredParameter:
    """A parameter of a model, and the tensors of files that make it.

    files: the index of each tensor in the parameter, by the tensor's name in files.
    """

    shape: tuple[int, ...]
    files: Mapping[str, Index]

    def shape_of(self, file: str) -> tuple[int, ...]:
        """The shape of one of its tensors."""
        index = self.files[file]
        sizes = (part.stop - part.start for part in index if isinstance(part, slice))
        return (*sizes, *self.shape[len(index) :])


Names = Mapping[str, StoredParameter]  # by name in the model, in the order of model.parameters()


def parameter_names(model: PreTrainedModel, known: Iterable[str] | None = None) -> dict[str, StoredParameter]:
    """The parameters of a model by their names in the model, in the order of model.parameters(); tied ones once.

    known: the names in files that a plan has, which decide the name of a tied parameter; by default all.
    """
    known = None if known is None else set(known)
    places = _places(model)
    result = {}
    for name, parameter in model.named_parameters():
        files = {file: index for file, index in places.get(id(parameter), {}).items() if known is None or file in known}
        if files:
            result[name] = StoredParameter(tuple(parameter.shape), files)
    return result


def parameters_by_file_name(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """A model's parameters by their names in files, in the order of model.parameters(); without stacks of experts.

    A tied parameter appears under each of its names, in its first place.
    """
    places = _places(model)
    return {
        file: parameter
        for parameter in model.parameters()
        for file, index in places.get(id(parameter), {}).items()
        if index == ()
    }


def buffer_names(model: PreTrainedModel) -> set[str]:
    """The names in files of the buffers of a model, which no optimizer has."""
    from transformers.core_model_loading import revert_weight_conversion

    return set(revert_weight_conversion(model, dict(model.named_buffers())))


def by_file(names: Names, values: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of files in what is given by the names of parameters: tensors of their shapes, as views."""
    return {file: values[name][index] for name, stored in names.items() for file, index in stored.files.items()}


def shapes_by_file(names: Names) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of files."""
    return {file: stored.shape_of(file) for stored in names.values() for file in stored.files}


def misfit(found: Mapping[str, Sequence[int]], shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Name the first tensor whose shape is not the one that it should have; None if all have theirs."""
    for name, shape in shapes.items():
        has = list(found[name]) if name in found else "no such parameter"
        if has != list(shape):
            return f"'{name}' should have shape {list(shape)}, and it has {has}"
    return None


def _places(model: PreTrainedModel) -> dict[int, dict[str, Index]]:
    """The index in each parameter, by its id, of each tensor that files hold of it.

    Every row of a parameter is filled with a number of its own, so that the conversion of transformers shows where it
    goes in files. Tensors that are converted in another way than by taking rows are left out.
    """
    from transformers.core_model_loading import revert_weight_conversion

    numbered, parameters, starts, end = {}, [], [], 0
    for name, parameter in model.named_parameters(remove_duplicate=False):
        rows = parameter.shape[:-1] if parameter.ndim > 1 else parameter.shape
        numbers = torch.arange(end, end + rows.numel()).reshape(rows)
        numbered[name] = numbers[..., None].expand(parameter.shape) if parameter.ndim > 1 else numbers
        parameters.append(parameter)
        starts.append(end)
        end += rows.numel()
    found: dict[int, dict[str, Index]] = {}
    for file, tensor in revert_weight_conversion(model, dict(numbered)).items():
        first = int(tensor[(0,) * tensor.ndim])
        at = int(np.searchsorted(starts, first, side="right")) - 1
        index = _index(list(numbered.values())[at], tensor, first - starts[at])
        if index is not None:
            found.setdefault(id(parameters[at]), {})[file] = index
    return found


def _index(numbers: Tensor, tensor: Tensor, row: int) -> Index | None:
    """Where a tensor lies in the numbers of a parameter's rows, of which it begins at the given one."""
    if numbers.shape == tensor.shape:
        return () if _same_rows(numbers, tensor) else None
    start = [int(place) for place in np.unravel_index(row, numbers.shape[:-1])]
    lacking = numbers.ndim - tensor.ndim
    slices = (slice(a, a + size) for a, size in zip([*start[lacking:], 0], tensor.shape, strict=True))
    index: Index = (*start[:lacking], *slices)
    return index if lacking >= 0 and _same_rows(numbers[index], tensor) else None


def _same_rows(numbers: Tensor, tensor: Tensor) -> bool:
    """Whether two tensors of one shape have the same number in each row."""
    return torch.equal(*(each[..., 0] if each.ndim > 1 else each for each in (numbers, tensor)))
