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
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from growth.algebra.arithmetic import mean
from growth.algebra.expansion import FRESH
from growth.arrays.tensor_info import TensorInfo
from growth.arrays.torch_interop import as_array, as_tensor, dtype_name
from growth.engine.grow_tensor import MemorySource, grow_tensor
from growth.planning.manifest import manifest
from growth.planning.plan import Plan, plan_dual
from growth.planning.tensor_map import DimensionMap, TensorMap
from growth.training.optimizer_kinds import MOMENTS, Entry, Kind, is_moment
from growth.training.value_kinds import OLD, tensor_kinds

Fresh = Literal["mean", "zero", "reset", "all"]
State = Mapping[str, Entry]  # by the name of a tensor or parameter
T = TypeVar("T")


def grow_gradients(gradients: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """Grow the gradients of the source's parameters into those of the grown model's, by name; zero where fresh.

    Exact where docs/training.md says so.
    """
    maps = _dual_maps(plan, {name: _info(name, tensor) for name, tensor in gradients.items()})
    blank = {one.target: torch.zeros(one.shape) for one in plan.tensors if plan.growth.blank and not one.source.name}
    gradients = with_sums(gradients, plan, add)
    return blank | {
        target: _grown(_of_moment(tensor_map, "gradients", plan, "zero"), gradients[tensor_map.source.name])
        for target, tensor_map in maps.items()
    }


def grow_state(
    state: State, kinds: Mapping[str, Kind], plan: Plan, *, fresh: Fresh = "mean"
) -> dict[str, dict[str, Any]]:
    """Grow an optimizer's state, by the names of tensors in files, second moments decoded (`Kind.decoded`).

    kinds: of the optimizer that has a tensor, by its name; one for both matrices of a head that the growth ties.
    fresh: as for `grow_optimizer`.
    """
    state = with_sums(state, plan, _sum_of_entries)
    kept = {name: {key: value for key, value in entry.items() if is_moment(value)} for name, entry in state.items()}
    infos = {name: {key: _info(name, value) for key, value in found.items()} for name, found in kept.items()}
    maps = moment_maps(plan, infos, kinds, fresh)
    sources = {tensor_map.target: tensor_map.source.name for tensor_map in plan.tensors if tensor_map.target in maps}
    return {
        target: {
            key: _grown(maps[target][key], value) if key in kept[name] else copy.deepcopy(value)
            for key, value in state[name].items()
        }
        for target, name in sources.items()
    }


def moment_maps(
    plan: Plan, kept: Mapping[str, Mapping[str, TensorInfo]], kinds: Mapping[str, Kind], fresh: Fresh
) -> dict[str, dict[str, TensorMap]]:
    """How moments grow, by the names of the grown tensors and of the moments.

    Left out are tensors without state, and those of new layers unless `fresh` is "mean": torch starts these at step 0.

    kept: the moments of each tensor of the source that has state; kinds, fresh: as for `grow_state`.
    """
    duals = _dual_maps(plan, {name: next(iter(found.values())) for name, found in kept.items() if found})
    kinds_of_values = tensor_kinds(manifest(plan, {}, {})) if fresh == "reset" else {}
    maps: dict[str, dict[str, TensorMap]] = {}
    for tensor_map in plan.tensors:
        name, target = tensor_map.source.name, tensor_map.target
        if name not in kept or (tensor_map.new_layer and fresh != "mean"):
            continue
        is_copy = any((kind != OLD).all() for kind in kinds_of_values.get(target, ()))  # of an expert, or of a layer
        maps[target] = {
            key: replace(
                _of_moment(duals[target], kinds[name].moments[key], plan, fresh),
                source=info,
                dtype=info.dtype,
                zero=is_copy,
            )
            for key, info in kept[name].items()
        }
    return maps


def with_sums(found: Mapping[str, T], plan: Plan, add: Callable[[T, T], T]) -> Mapping[str, T]:
    """What is kept of each parameter, with that of a head that the grown model ties added to the embedding's.

    The gradient of a tied matrix is the sum of those of its two uses.
    """
    for head, embedding in plan.repeated:
        both = [found[name] for name in (embedding.name, head.name) if name in found]
        found = {name: one for name, one in found.items() if name != head.name}
        found |= {embedding.name: reduce(add, both)} if both else {}
    return found


def _sum_of_entries(one: Entry, other: Entry) -> Entry:
    """The optimizer's entry of a parameter whose gradient is the sum of two, taken as uncorrelated; steps stay."""
    moments = [key for key, value in one.items() if is_moment(value) and is_moment(other.get(key))]
    return {**other, **one, **{key: other[key] + one[key] for key in moments}}


def step_scales(plan: Plan) -> dict[str, float | None]:
    """The factor on the learning rate with which each tensor's next Adam step is the growth of the source's step.

    Adam's update does not depend on the size of gradients, and a tensor that is read in shares of 1/2 should move half
    as far as its source. Divide weight decay by the same factor, so that their product stays. None: the tensor is in a
    new layer, or its parts need different factors.

    >>> import growth
    >>> from growth.operators import widen
    >>> from growth.training.moments import step_scales
    >>> scales = step_scales(growth.plan(widen("ffn", factor=2, init="tile"), "examples/phi-mini"))
    >>> scales["model.layers.0.mlp.fc1.weight"], scales["model.layers.0.mlp.fc2.weight"]
    (1.0, 0.5)
    """
    duals = _dual_maps(plan, {tensor_map.source.name: tensor_map.source for tensor_map in plan.tensors})
    return {tensor_map.target: _step_scale(tensor_map, duals[tensor_map.target]) for tensor_map in plan.tensors}


def _dual_maps(plan: Plan, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorMap]:
    """The maps of gradients, by the names of the grown tensors."""
    return {tensor_map.target: tensor_map for tensor_map in plan_dual(plan, tensors)}


def _of_moment(tensor_map: TensorMap, averages: str, plan: Plan, fresh: Fresh) -> TensorMap:
    """The map of an average of gradients, or of something else that follows from them (a key of `MOMENTS`)."""
    first, *others = tensor_map.dimensions
    if averages in ("squares", "magnitudes"):
        first = first.scaled(_spread(tensor_map, plan))
    return replace(
        tensor_map,
        weight=replace(tensor_map.weight, offset=0.0),
        dimensions=tuple(
            _dimension(dimension, averages, tensor_map.new_layer, fresh) for dimension in (first, *others)
        ),
        zero=False,
        averaged=True,
    )


def _spread(tensor_map: TensorMap, plan: Plan) -> float:
    """Root mean square of the gradient of an upcycled expert over its mean; 1 for other tensors (docs/training.md).

    One in E / k tokens goes to an expert, with weight 1 / k. Its mean gradient is 1 / E of the dense MLP's. If the
    tokens' gradients are independent, its mean square is 1 / (E k) of the dense one's.
    """
    if plan.growth.mixing is None or not tensor_map.weight.of_experts:
        return 1.0
    return math.sqrt(len(plan.growth.expansions["experts"]) / plan.target.chosen)


def _dimension(dimension: DimensionMap, averages: str, new_layer: bool, fresh: Fresh) -> DimensionMap:
    """The coefficients of a moment, and what indices without history get.

    These are fresh indices and unread copies, and with "reset" all copies but the first. With "mean" their second
    moment is the mean of the others', else it is zero. The square of a sum with a mean (`mean_correction`) does not
    follow from squares: the mean is left out.
    """
    scale = MOMENTS[averages](dimension.scale)
    known = scale[~dimension.fresh & (scale != 0)]
    without = np.ones(len(scale), bool) if new_layer else dimension.new if fresh == "reset" else dimension.fresh
    is_sum = averages == "gradients"
    filling = mean(known) if averages in ("squares", "magnitudes") and fresh == "mean" and len(known) else 0.0
    correction = dimension.mean_correction if is_sum and not new_layer else None
    if correction is not None:
        correction = replace(correction, coefficient=np.where(without, 0.0, correction.coefficient))
    source = np.where(without, FRESH, dimension.source)
    unseen = without | (dimension.scale == 0)
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
