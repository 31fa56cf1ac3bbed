"""How much rounding to the stored type is expected to change the logits, before any byte is written.

Rounding to a type of p significant bits makes a relative error whose root mean square is `rounding`. The errors of
single values are independent, so a weight whose values are all rounded changes its output by as much, relative to the
output. Copies that share a signal are rounded alike, so sharing does not reduce the error. Values that are multiplied
by powers of two are exact, and so are the parts of a split. A residual stream is the sum of its branches, about half of
which come from attention and half from MLPs. So the squared error of the logits is about

    embedding + final norm + head + (sum of the weights of a layer) / 2

where a tied matrix counts as embedding and as head. A model may amplify these errors; docs/copies.md has measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from growth.algebra.arithmetic import mean
from growth.algebra.expansion import Booleans, Expansion
from growth.architectures.base import Architecture, Weight, spaces_in
from growth.arrays.tensor_info import ITEM_SIZE
from growth.errors import GrowthError
from growth.operators.base import Growth
from growth.operators.widen import widen
from growth.planning.norms import mean_factors, with_one_eps
from growth.planning.plan import Plan, make_plan
from growth.planning.tensor_map import DimensionMap, TensorMap
from growth.planning.tensor_planner import TensorPlanner

BITS = {"F16": 11, "BF16": 8, "F32": 24, "F64": 53}  # significant bits
ALTERNATIVES: tuple[dict[str, Any], ...] = (  # arguments of `widen`
    {"init": "pad"},
    {"init": "pad", "norm_eps": "rescale"},
    {"init": "tile", "shares": "first"},
    {"init": "tile", "shares": "random"},
)
SPREAD = math.sqrt(3 / 8 / math.log(2) / 12)  # of errors of 1 ulp, relative to values with evenly spread logarithms


def rounding(dtype: str) -> float:
    """Return the root mean square of the relative error of values rounded to a type.

    >>> round(rounding("BF16"), 5)
    0.00166
    """
    return SPREAD * 2.0 ** (1 - BITS[dtype])


def expected_error(plan: Plan) -> float:
    """Return the expected relative error of the logits from storing a grown model, a cast to another type included."""
    return math.hypot(cast_error(plan), *stored_errors(plan).values())


def cast_error(plan: Plan) -> float:
    """Return that of casting the source to a type with fewer bits; 0 where it keeps its type or gets a larger one."""
    same = {name: Expansion.identity(one.size) for name, one in plan.growth.axes.items()}
    return _error(plan.source, replace(plan.growth, expansions=same, query_heads=None), _dtypes(plan))


def stored_errors(plan: Plan) -> dict[str, float]:
    """Return the expected relative error of the logits from storing the growth of each axis; 0 where it is exact.

    Only axes that grow are named. The error of several axes is the root of the sum of squares. Of tensors that are cast
    to a type with fewer bits, `cast_error` counts every value.
    """
    grown = [name for name, one in plan.growth.expansions.items() if not one.is_identity]
    counted_with_heads = {"queries"} if plan.growth.query_heads is not None else set()
    return {name: _error_of(plan, plan.growth, name) for name in grown if name not in counted_with_heads}


def better_init(plan: Plan, axis: str) -> str:
    """Return arguments of `widen` with which the growth of an axis is stored more exactly; empty if there are none."""
    found, regrouped = _error_of(plan, plan.growth, axis), plan.growth.query_heads is not None and axis == "heads"
    errors = dict(_alternatives(plan, axis)) if found and not regrouped and not is_rescaled(plan, axis) else {}
    best = min(errors, key=lambda words: errors[words], default="")
    if not best or errors[best] >= 0.9 * found:
        return ""
    return f"{best} ({errors[best]:.1e})" if errors[best] else f"{best} (exact)"


def is_rescaled(plan: Plan, axis: str) -> bool:
    """Whether a step other than `widen` has decided the eps of the norms over an axis."""
    expansion = plan.growth.expansions[axis]
    energy = mean(expansion.per_unit(expansion.write**2))
    factors = (len(expansion) / expansion.size, len(expansion) // expansion.size, 1.0)  # of pad and of whole copies
    return bool(plan.source.axes[axis].norm) and not any(math.isclose(energy, factor) for factor in factors)


def _alternatives(plan: Plan, axis: str) -> Iterator[tuple[str, float]]:
    """Yield arguments of `widen` for the size that an axis has grown to, and their error; what trains best first."""
    start = Growth.start(plan.source)
    to = len(plan.growth.expansions[axis]) * (start.sizes["queries"] if axis == "heads" else 1)
    for arguments in ALTERNATIVES:
        try:
            growth = _with_axis_of(plan.growth, widen(axis, to=to, **arguments)(start), axis)
            error = _error_of(plan, make_plan(plan.stored, growth, plan.sources).growth, axis)
        except GrowthError:
            continue
        yield ", ".join(f"{key}: {value}" for key, value in arguments.items()), error


def _with_axis_of(growth: Growth, other: Growth, axis: str) -> Growth:
    """Return a growth whose one axis grows as in another."""
    splits = {name: kind for name, kind in growth.splits.items() if name != axis}
    expansions = {**growth.expansions, axis: other.expansions[axis]}
    return replace(growth, expansions=expansions, splits={**splits, **other.splits})


def stream_factor(plan: Plan) -> float:
    """Return by how much the residual stream is written larger, where the model is stored in fp16; else 1.

    Activations of fp16 overflow above 65,504, and those of trained models can be close.
    """
    factor = float(np.abs(plan.growth.expansions["residual"].write).max())
    return factor if any(tensor.dtype == "F16" for tensor in plan.tensors) else 1.0


def warnings(plan: Plan) -> list[str]:
    """Return that a recipe grows nothing, or what may go wrong where the model runs in the type it is stored in."""
    if plan.preserving and plan.stored.whole_config.items() <= plan.config.items():
        return ["this recipe grows nothing: the result would be a copy of the source."]
    factor = stream_factor(plan)
    if factor <= 1 or not plan.keeps_logits:
        return []
    kept = "Use norm_eps: rescale, which leaves the stream as it is, or run the model in bf16."
    remedy = "Run the model in bf16." if is_rescaled(plan, "residual") else kept
    return [f"the residual stream grows by a factor of {factor:.3g}, and fp16 activations may overflow. {remedy}"]


def _error_of(plan: Plan, growth: Growth, axis: str) -> float:
    """Return the error of growing one axis alone, in the types of a plan."""
    kept = {name: types for name, types in _dtypes(plan).items() if not _is_narrowed(*types)}
    others = {name: Expansion.identity(one.size) for name, one in plan.growth.axes.items()}
    query_heads = growth.query_heads if axis == "heads" else None
    alone = replace(growth, expansions={**others, axis: growth.expansions[axis]}, query_heads=query_heads)
    return _error(plan.source, alone, kept)


def _dtypes(plan: Plan) -> dict[str, tuple[str, str]]:
    """Return for each weight of the table the type that it is read in and the type that it is stored in."""
    return {tensor.weight.name: (tensor.source.dtype, tensor.dtype) for tensor in plan.tensors}


def _is_narrowed(stored: str, dtype: str) -> bool:
    return BITS[dtype] < BITS[stored]


def _error(source: Architecture, growth: Growth, dtypes: Mapping[str, tuple[str, str]]) -> float:
    growth, eps_factor = with_one_eps(growth, source)
    planner = TensorPlanner(source, growth, mean_factors(growth), math.sqrt(eps_factor))
    matrices = [weight for weight in source.weights if len(weight.parts[0].dimensions) > 1]
    tied = sum("vocab" in spaces_in(weight.parts[0].pattern) for weight in matrices) == 1
    total = 0.0
    for weight in source.weights:
        if weight.name in dtypes and (weight in matrices or weight.norm_inputs is not None):
            twice = tied and "vocab" in spaces_in(weight.parts[0].pattern)
            share = 0.5 if weight.per_layer else 1.0 + twice
            total += share * len(weight.parts) * _squared(planner, weight, *dtypes[weight.name])
    return math.sqrt(total)


def _squared(planner: TensorPlanner, weight: Weight, stored: str, dtype: str) -> float:
    """Return the mean square of the relative error of what a weight computes."""
    if _is_narrowed(stored, dtype):
        return rounding(dtype) ** 2
    dimensions = planner.axis_maps(weight, 1.0)
    exact = math.prod(_exact(dimension, offset=weight.offset != 0) for dimension in dimensions)
    means = sum(_means(dimension) for dimension in dimensions)
    return (1 - exact + means) * rounding(dtype) ** 2


def _exact(dimension: DimensionMap, *, offset: bool) -> float:
    """Return the part of a dimension's signal that passes through values whose product is representable.

    Copies share the signal of their old index in proportion to their coefficients.
    """
    size = np.where(dimension.fresh, 0.0, np.abs(dimension.scale))
    of_unit = np.bincount(dimension.source[~dimension.fresh], size[~dimension.fresh], minlength=dimension.size)
    signal = size / np.where(size > 0, of_unit[dimension.source], 1.0)
    return float(signal[_representable(dimension, offset=offset)].sum()) / dimension.size


def _representable(dimension: DimensionMap, *, offset: bool) -> Booleans:
    """Return which coefficients round nothing: powers of two, or only 1 where the model adds an offset."""
    exact = dimension.scale == 1 if offset else np.abs(np.frexp(dimension.scale)[0]) == 0.5
    if dimension.mean_correction is not None:
        exact &= dimension.mean_correction.coefficient == 0
    return np.asarray(exact)


def _means(dimension: DimensionMap) -> float:
    """Return the squares of what fresh indices hold, relative to all others: each is the mean over the old ones."""
    if dimension.mean_correction is None:
        return 0.0
    return float(np.count_nonzero(dimension.mean_correction.coefficient[dimension.fresh])) / dimension.size**2


# ------------------------------------------------- tensors that are stored without rounding


def stored_exactly(plans: Sequence[Plan]) -> frozenset[str]:
    """Return the tensors of the first source that no growth rounds: copies of them hold its values or exact parts.

    The experts of a model count together, because a class may stack them in one parameter.

    plans: of one growth, or of several, each of the result of the one before.
    """
    rounded: set[str] = set()
    for plan in reversed(plans):
        found = [tensor for tensor in plan.tensors if tensor.target in rounded or _rounds(tensor)]
        rounded = {tensor.source.name for tensor in found}
        if any(tensor.weight.of_experts for tensor in found):
            rounded |= {tensor.source.name for tensor in plan.tensors if tensor.weight.of_experts}
    return frozenset(plans[0].sources) - rounded if plans else frozenset()


def _rounds(tensor: TensorMap) -> bool:
    """Return whether rounding may change a value of a tensor that the function depends on.

    Powers of two below 1 may lead to subnormal values of fp16, which have fewer bits. Where the model adds an offset,
    the engine adds and subtracts it.
    """
    if tensor.zero or tensor.init_std is not None or tensor.is_copy:
        return False
    if tensor.dtype != tensor.source.dtype and ITEM_SIZE[tensor.dtype] <= ITEM_SIZE[tensor.source.dtype]:
        return True
    used = [(one.scale != 0) & ~one.fresh for one in tensor.dimensions]
    scales = [np.abs(one.scale[some]) for one, some in zip(tensor.dimensions, used, strict=True)]
    if tensor.dtype == "F16" and any((scale < 1).any() for scale in scales):
        return True
    if tensor.offset or math.frexp(tensor.replicas)[0] != 0.5:
        return True
    exact = [_representable(one, offset=False) for one in tensor.dimensions]
    corrected = any(one.mean_correction is not None and one.mean_correction.ranges for one in tensor.dimensions)
    return corrected or not all(one[some].all() for one, some in zip(exact, used, strict=True))
