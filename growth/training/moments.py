"""Gradients and the moments of gradients grow by the dual map (docs/training.md).

A gradient grows as its weight does, with the roles of reading and writing exchanged. Adam's first moment and SGD's
momentum are sums of gradients and grow alike; Adam's second moment is a sum of their squares and grows by the squares
of the coefficients (Shen et al. 2022, Staged Training for Transformer Language Models).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from torch import Tensor

from growth.algebra.arithmetic import mean
from growth.algebra.expansion import FRESH
from growth.arrays.tensor_info import TensorInfo
from growth.arrays.torch_interop import as_array, as_tensor, dtype_name
from growth.engine.grow_tensor import MemorySource, grow_tensor
from growth.errors import OptimizerError
from growth.planning.plan import Plan, plan_dual
from growth.planning.tensor_map import DimensionMap, TensorMap
from growth.training.optimizer_state import MOMENTS, State, check_entry, moments

Fresh = Literal["mean", "zero", "reset"]
T = TypeVar("T")


def grow_gradients(gradients: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """Grow the gradients of the source's parameters into those of the grown model's, by name; zero where fresh.

    Exact where docs/training.md says so.

    Raises:
        OptimizerError: the model has experts.
    """
    maps = _dual_maps(plan, {name: _info(name, tensor) for name, tensor in gradients.items()})
    gradients = _with_sums(gradients, plan, add)
    return {
        target: _grown(_of_power(tensor_map, 1, "zero"), gradients[tensor_map.source.name])
        for target, tensor_map in maps.items()
    }


def grow_state(state: State, plan: Plan, *, fresh: Fresh = "mean") -> dict[str, dict[str, Any]]:
    """Grow an optimizer's state, by the names of the tensors.

    fresh: as for `grow_optimizer`.

    Raises:
        OptimizerError: an entry that is not a moment of gradients, or not of its tensor's shape.
    """
    if fresh not in get_args(Fresh):
        raise OptimizerError(f"Unknown fresh='{fresh}': use one of {', '.join(get_args(Fresh))}.")
    shapes = {name: info.shape for name, info in plan.sources.items()}
    state = {name: entry for name, entry in state.items() if entry}
    for name, entry in state.items():
        if name not in shapes:
            raise OptimizerError(
                f"The optimizer keeps state of '{name}', which the plan does not have. Plan the growth of the model "
                "that the optimizer trains."
            )
        check_entry(name, entry, shapes[name])
    state = _with_sums(state, plan, _sum_of_entries)
    kept = {name: moments(entry) for name, entry in state.items()}
    duals = _dual_maps(plan, {name: _info(name, next(iter(found.values()))) for name, found in kept.items() if found})
    grown: dict[str, dict[str, Any]] = {}
    for tensor_map in plan.tensors:
        name = tensor_map.source.name
        if name not in state or (tensor_map.new_layer and fresh != "mean"):
            continue  # torch starts such a parameter at step 0
        grown[tensor_map.target] = {
            key: _grown(_of_power(duals[tensor_map.target], MOMENTS[key], fresh), value)
            if key in kept[name]
            else copy.deepcopy(value)
            for key, value in state[name].items()
        }
    return grown


def _with_sums(found: Mapping[str, T], plan: Plan, add: Callable[[T, T], T]) -> Mapping[str, T]:
    """What is kept of each parameter, with that of a head that the grown model ties added to the embedding's.

    The gradient of a tied matrix is the sum of those of its two uses.
    """
    for head, embedding in plan.repeated:
        both = [found[name] for name in (embedding.name, head.name) if name in found]
        found = {name: one for name, one in found.items() if name != head.name}
        found |= {embedding.name: reduce(add, both)} if both else {}
    return found


def _sum_of_entries(one: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """The optimizer's entry of a parameter whose gradient is the sum of two, taken as uncorrelated; steps stay."""
    added = {key: value + moments(one)[key] for key, value in moments(other).items() if key in moments(one)}
    return {**other, **one, **added}


def step_scales(plan: Plan) -> dict[str, float | None]:
    """The factor on the learning rate with which each tensor's next Adam step is the growth of the source's step.

    Adam's update does not depend on the size of gradients, and a tensor that is read in shares of 1/2 should move half
    as far as its source. Divide weight decay by the same factor, so that their product stays. None: the tensor is in a
    new layer, or its parts need different factors.

    Raises:
        OptimizerError: the model has experts.

    >>> import growth
    >>> from growth.operators import widen
    >>> from growth.training.moments import step_scales
    >>> scales = step_scales(growth.plan(widen("ffn", factor=2, init="tile"), "examples/phi-mini"))
    >>> scales["model.layers.0.mlp.fc1.weight"], scales["model.layers.0.mlp.fc2.weight"]
    (1.0, 0.5)
    """
    duals = _dual_maps(plan, {tensor_map.source.name: tensor_map.source for tensor_map in plan.tensors})
    return {tensor_map.target: _step_scale(tensor_map, duals[tensor_map.target]) for tensor_map in plan.tensors}


def check_plan(plan: Plan) -> None:
    """Refuse a plan by which no training state can grow.

    Raises:
        OptimizerError: the model has experts.
    """
    if plan.growth.mixing is not None or "experts" in plan.growth.expansions:
        raise OptimizerError(
            f"Cannot grow the training state of a model with experts ({plan.target.model_type}): its parameters are "
            "fused in memory. Start a new optimizer over the grown model."
        )


def _dual_maps(plan: Plan, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorMap]:
    """The maps of gradients, by the names of the grown tensors."""
    check_plan(plan)
    return {tensor_map.target: tensor_map for tensor_map in plan_dual(plan, tensors)}


def _of_power(tensor_map: TensorMap, power: int, fresh: Fresh) -> TensorMap:
    """The map of a sum of gradients (power 1) or of their squares (power 2)."""
    return replace(
        tensor_map,
        weight=replace(tensor_map.weight, offset=0.0),
        dimensions=tuple(
            _dimension(dimension, power, tensor_map.new_layer, fresh) for dimension in tensor_map.dimensions
        ),
        zero=False,
        averaged=True,
    )


def _dimension(dimension: DimensionMap, power: int, new_layer: bool, state: Fresh) -> DimensionMap:
    """Coefficients to a power, and what indices without history get.

    These are fresh indices and unread copies, and with "reset" all copies but the first. With "mean" their second
    moment is the mean of the others', else it is zero. The square of a sum with a mean (`mean_correction`) does not
    follow from squares: the mean is left out.
    """
    scale = dimension.scale**power
    known = scale[~dimension.fresh & (scale != 0)]
    without = dimension.new if state == "reset" else dimension.fresh
    fresh = np.ones(len(scale), bool) if new_layer else without
    filling = mean(known) if power == 2 and state == "mean" and len(known) else 0.0
    correction = None if power == 2 or new_layer else dimension.mean_correction
    if correction is not None:
        correction = replace(correction, coefficient=np.where(fresh, 0.0, correction.coefficient))
    source = np.where(fresh, FRESH, dimension.source)
    unseen = fresh | (dimension.scale == 0)
    return replace(dimension, source=source, scale=np.where(unseen, filling, scale), mean_correction=correction)


def _info(name: str, tensor: Tensor) -> TensorInfo:
    return TensorInfo(name, dtype_name(tensor.dtype), tuple(tensor.shape))


def _grown(tensor_map: TensorMap, tensor: Tensor) -> Tensor:
    info = _info(tensor_map.source.name, tensor)
    source = MemorySource({info.name: as_array(tensor.cpu())})
    return as_tensor(grow_tensor(replace(tensor_map, source=info, dtype=info.dtype), source, 0), info.dtype)


def _step_scale(tensor_map: TensorMap, dual: TensorMap) -> float | None:
    if tensor_map.new_layer or any(
        dimension.mean_correction is not None for dimension in (*tensor_map.dimensions, *dual.dimensions)
    ):
        return None
    factor = 1.0
    for forward, backward in zip(tensor_map.dimensions, dual.dimensions, strict=True):
        copied = ~forward.fresh
        parts = 1 if forward.split is None else forward.split.parts[copied]
        sizes = forward.scale[copied] / parts * np.sign(backward.scale[copied])
        if not len(sizes) or np.ptp(sizes) > 1e-12 * np.abs(sizes).max():
            return None
        factor *= mean(sizes)
    return None if tensor_map.offset and not math.isclose(factor, 1.0) else factor
