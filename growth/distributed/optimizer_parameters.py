"""The grown state of an optimizer as entries of a checkpoint, by the names of `get_optimizer_state_dict`.

Entries are named `state.PARAMETER.MOMENT`, `state.PARAMETER.step`, and for options `param_groups.N.OPTION` or, as with
`flatten_optimizer_state_dict`, `param_groups.PARAMETER.OPTION`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from growth.arrays.torch_interop import TORCH_DTYPES
from growth.distributed.parameter_boxes import Parameter
from growth.errors import OptimizerError
from growth.planning.tensor_map import TensorMap
from growth.training.stored_state import GrownState


def moment_parameters(parameters: Mapping[str, Parameter], state: GrownState) -> dict[str, Parameter]:
    """The moments by their names, each as a parameter that grows from the source's moment; zero where it has none.

    A tied parameter's are under each of its names.
    """
    dtypes = {key: tensor_map.dtype for found in state.maps.values() for key, tensor_map in found.items()}
    result = {}
    for name, parameter in parameters.items():
        for key, dtype in dtypes.items():
            maps = {offsets: _moment(weight, key, dtype, state) for offsets, weight in parameter.tensors.items()}
            result[f"state.{name}.{key}"] = Parameter(parameter.shape, TORCH_DTYPES[dtype], maps)
    return result


def _moment(weight: TensorMap, key: str, dtype: str, state: GrownState) -> TensorMap:
    """How a moment of a tensor grows, under a name of its own."""
    found = state.maps.get(weight.target, {}).get(key)
    if found is None:
        found = replace(weight, weight=replace(weight.weight, offset=0.0), zero=True, dtype=dtype)
    return replace(found, target=f"state.{weight.target}.{key}")


def refuse_negative(tensor_map: TensorMap, values: Tensor) -> None:
    """Refuse values of a moment that averages squares or magnitudes.

    Raises:
        OptimizerError: a value is negative.
    """
    if bool((values < 0).any()):
        raise OptimizerError(
            f"'{tensor_map.source.name}' in {tensor_map.source.path} is a mean of squares and holds negative "
            "values. Go back to a checkpoint from before it was damaged."
        )


def plain_entries(parameters: Mapping[str, Parameter], state: GrownState) -> dict[str, Any]:
    """Step counts and the options of groups by their names."""
    return dict([*steps(parameters, state), *_options(state)])


def steps(parameters: Mapping[str, Parameter], state: GrownState) -> Iterator[tuple[str, Any]]:
    """Step counts by their names; 0 for a parameter without state."""
    kept = {key: value for entry in state.scalars.values() for key, value in entry.items()}
    nothing = {key: torch.zeros_like(value) if isinstance(value, torch.Tensor) else 0 for key, value in kept.items()}
    for name, parameter in parameters.items():
        target = next(iter(parameter.tensors.values())).target
        for key, value in (nothing | dict(state.scalars.get(target, {}))).items():
            yield f"state.{name}.{key}", value


class UnknownGroup:
    """An option of a group that a flattened state does not tell apart from one of equal options."""


def _options(state: GrownState) -> Iterator[tuple[str, Any]]:
    for number, group in enumerate(state.groups):
        for key, value in group.items():
            yield f"param_groups.{number}.{key}", value
            if key != "params":
                yield from ((f"param_groups.{name}.{key}", value) for name in group["params"])
    if state.flattened:
        most = sum(len(group["params"]) for group in state.groups)
        keys = {key for group in state.groups for key in group}
        yield from ((f"param_groups.{n}.{key}", UnknownGroup()) for n in range(len(state.groups), most) for key in keys)
