"""The training state grows too: gradients by the dual map, and what an optimizer remembers of them.

A gradient grows as its weight does, with what reads and what writes exchanged (docs/training.md). Adam's first
moment and SGD's momentum are sums of gradients and grow alike; Adam's second moment is a sum of their squares and
grows by the squares of the coefficients (Shen et al. 2022, Staged Training for Transformer Language Models).
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from growth.algebra.arithmetic import mean
from growth.algebra.expansion import FRESH, Booleans
from growth.arrays.tensor_info import TensorInfo
from growth.arrays.torch_interop import as_array, as_tensor, dtype_name
from growth.engine.grow_tensor import MemorySource, grow_tensor
from growth.errors import OptimizerError
from growth.planning.plan import Plan, plan_dual
from growth.planning.tensor_map import DimensionMap, MeanCorrection, TensorMap
from growth.training.optimizer_state import (
    MOMENTS,
    Names,
    State,
    check_class,
    check_entry,
    check_groups,
    check_options,
    check_order,
    grown_groups,
    moments,
    numbered,
    parameter_names,
    parameters_by_file_name,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Fresh = Literal["seed", "zero"]


def grow_optimizer(
    optimizer: torch.optim.Optimizer,
    small: PreTrainedModel,
    big: PreTrainedModel,
    plan: Plan,
    *,
    fresh: Fresh = "seed",
) -> torch.optim.Optimizer:
    """An optimizer of the same class over the grown model's parameters, which remembers what the old one did.

    optimizer: torch's Adam, AdamW (amsgrad too) or SGD, over parameters of `small`.
    big: `growth.grow_model(small, plan)`. Every value of both models is compared with the plan, so grow the optimizer
        before either is trained further.
    plan: `growth.plan(recipe, small)`.
    fresh: what is remembered of units and layers that the source does not have. "seed": no momentum, the mean of the
        source tensor's squared gradients, and the old step count, so that the first update of a fresh unit is no
        larger than others. "zero": nothing; tensors that are new as a whole start at step 0, but fresh units of
        old tensors share the old count, and their first updates are 3 to 7 times the learning rate.

    A parameter joins the group of the one that it grew from; groups keep their options, a scheduler's too. A
    scheduler goes on over the result: `scheduler.optimizer = result`.

    Raises:
        OptimizerError: another class of optimizer, a model with experts, or models that are not the plan's.

    >>> import growth, torch, transformers
    >>> model = transformers.AutoModelForCausalLM.from_pretrained("examples/phi-mini")
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> plan = growth.plan("phi-mini", model)
    >>> larger = growth.grow_model(model, plan)
    >>> grown = growth.grow_optimizer(optimizer, model, larger, plan)
    >>> type(grown).__name__, grown.param_groups[0]["lr"], len(grown.param_groups[0]["params"])
    ('AdamW', 0.001, 117)
    """
    check_class(optimizer)
    old = _parameters(small, {row.source.name: row.source.shape for row in plan.tensors}, "small")
    new = _parameters(big, {row.target: row.shape for row in plan.tensors}, "big")
    before, after = parameter_names(small, old), parameter_names(big, new)
    named = grow_named_state_dict(_named(optimizer, old), plan, before, after, fresh=fresh)
    _check_made(old, new, plan)
    members = [
        [(after[name], new[name]) if "param_names" in group else new[name] for name in group["params"]]
        for group in named["param_groups"]
    ]
    accepted = inspect.signature(type(optimizer)).parameters
    options = {key: value for key, value in optimizer.defaults.items() if key in accepted}
    grown = type(optimizer)([{"params": params} for params in members], **options)
    grown.load_state_dict(numbered(named, after))  # puts moments and steps where this optimizer wants them
    return grown


def check_optimizer(optimizer: torch.optim.Optimizer, model: PreTrainedModel, plan: Plan) -> None:
    """Refuses, before anything is grown, an optimizer whose state cannot grow by a plan.

    plan: of `model`, or of a model that it has grown to.

    Raises:
        OptimizerError: as for `grow_optimizer`, except for what only the state's values show.
    """
    check_class(optimizer)
    check_plan(plan)
    parameters = parameters_by_file_name(model)
    named = _named(optimizer, parameters)
    check_groups(named["param_groups"], named["state"])
    check_order([group["params"] for group in named["param_groups"]], plan, parameters)


def grow_named_state_dict(
    named: Mapping[str, Any], plan: Plan, before: Names, after: Names, *, fresh: Fresh = "seed"
) -> dict[str, Any]:
    """An optimizer's state dict with names for numbers, as torch.distributed.checkpoint gathers it, grown.

    named: `state` by the names of parameters, and `param_groups` whose `params` are names.
    before, after: the parameters of the source and of the grown model, as `parameter_names` gives them.
    fresh: as for `grow_optimizer`.

    Raises:
        OptimizerError: as for `grow_optimizer`.
    """
    groups, state = named["param_groups"], named["state"]
    check_groups(groups, state)
    check_options(groups, state)
    grown = grow_state(state, plan, fresh=fresh)
    placed = grown_groups([group["params"] for group in groups], plan, before, after)
    options = [{k: copy.deepcopy(v) for k, v in group.items() if k != "params"} for group in groups]
    return {
        **named,
        "state": grown,
        "param_groups": [{**kept, "params": names} for kept, names in zip(options, placed, strict=True)],
    }


def grow_gradients(gradients: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
    """Gradients of the grown model's parameters from those of its source's, by name; zero where fresh.

    Exact where docs/training.md says so.

    Raises:
        OptimizerError: a model with experts.
    """
    rows = _dual(gradients, plan)
    return {row.target: _grown(_powered(row, 1, "zero"), gradients[row.source.name]) for row in rows}


def grow_state(state: State, plan: Plan, *, fresh: Fresh = "seed") -> dict[str, dict[str, Any]]:
    """What an optimizer remembers, by the names of the grown model's tensors; see `grow_optimizer`.

    Raises:
        OptimizerError: something remembered that is no moment of gradients, or not of its tensor's shape.
    """
    if fresh not in get_args(Fresh):
        raise OptimizerError(f"There is no fresh='{fresh}': use one of {', '.join(get_args(Fresh))}.")
    shapes = {row.source.name: row.source.shape for row in plan.tensors}
    state = {name: entry for name, entry in state.items() if entry}
    for name, entry in state.items():
        if name not in shapes:
            raise OptimizerError(f"The optimizer keeps state of '{name}', which the plan does not have.")
        check_entry(name, entry, shapes[name])
    kept = {name: moments(entry) for name, entry in state.items()}
    first = {name: next(iter(tensors.values())) for name, tensors in kept.items() if tensors}
    duals = {row.target: row for row in _dual(first, plan)}
    grown: dict[str, dict[str, Any]] = {}
    for row in plan.tensors:
        name = row.source.name
        if name not in state or (row.new_layer and fresh == "zero"):
            continue  # torch begins such a parameter at step 0
        entry = {key: copy.deepcopy(value) for key, value in state[name].items() if key not in kept[name]}
        for key, tensor in kept[name].items():
            entry[key] = _grown(_powered(duals[row.target], MOMENTS[key], fresh), tensor)
        grown[row.target] = {key: entry[key] for key in state[name]}
    return grown


def step_scales(plan: Plan) -> dict[str, float | None]:
    """By which factor of the old learning rate each tensor's next Adam step is the growth of the source's.

    Adam's update does not know the size of gradients, and a tensor that is read in shares of 1/2 should move by
    half of what its source moves. Divide weight decay by the same factor, so that their product stays. None: the
    tensor is a new layer's, or its parts need different factors.

    Raises:
        OptimizerError: a model with experts.

    >>> import growth
    >>> from growth.operators import widen
    >>> from growth.training.optimizer import step_scales
    >>> scales = step_scales(growth.plan(widen("ffn", factor=2), "examples/phi-mini"))
    >>> scales["model.layers.0.mlp.fc1.weight"], scales["model.layers.0.mlp.fc2.weight"]
    (1.0, 0.5)
    """
    duals = {row.target: row for row in _dual_rows(plan, {row.source.name: row.source for row in plan.tensors})}
    return {row.target: _step_scale(row, duals[row.target]) for row in plan.tensors}


# ------------------------------------------------- rows


def check_plan(plan: Plan) -> None:
    """Refuses a plan by which no training state can grow.

    Raises:
        OptimizerError: a model with experts.
    """
    if plan.growth.mixing is not None or "experts" in plan.growth.expansions:
        raise OptimizerError(
            f"Cannot grow the training state of a model with experts ({plan.target.model_type}): its parameters are "
            "fused in memory. Start a new optimizer over the grown model."
        )


def _dual_rows(plan: Plan, tensors: Mapping[str, TensorInfo]) -> tuple[TensorMap, ...]:
    check_plan(plan)
    return plan_dual(plan, tensors)


def _dual(tensors: Mapping[str, Tensor], plan: Plan) -> tuple[TensorMap, ...]:
    infos = {name: TensorInfo(name, dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}
    return _dual_rows(plan, infos)


def _powered(row: TensorMap, power: int, fresh: Fresh) -> TensorMap:
    """The row that grows a sum of gradients (power 1) or of their squares (2)."""
    seeded = power == 2 and fresh == "seed"
    return replace(
        row,
        weight=replace(row.weight, offset=0.0),
        dimensions=tuple(_dimension(dimension, power, row.new_layer, seeded) for dimension in row.dimensions),
        zero=False,
        averaged=True,
    )


def _dimension(dimension: DimensionMap, power: int, new_layer: bool, seeded: bool) -> DimensionMap:
    """Coefficients to a power; fresh indices are as large as the copies on the mean, or nothing.

    The square of a sum with a mean (`level`) is not known from squares: the mean is left out.
    """
    scale = dimension.scale**power
    known = scale[~dimension.fresh]
    fresh = np.ones(len(scale), bool) if new_layer else dimension.fresh
    filling = mean(known) if seeded and len(known) else 0.0
    level = None if power == 2 or new_layer else _silent_where(dimension.level, fresh)
    source = np.where(fresh, FRESH, dimension.source)
    return replace(dimension, source=source, scale=np.where(fresh, filling, scale), level=level)


def _silent_where(level: MeanCorrection | None, fresh: Booleans) -> MeanCorrection | None:
    return level and replace(level, coefficient=np.where(fresh, 0.0, level.coefficient))


def _grown(row: TensorMap, tensor: Tensor) -> Tensor:
    dtype = dtype_name(tensor.dtype)
    info = TensorInfo(row.source.name, dtype, tuple(tensor.shape))
    source = MemorySource({info.name: as_array(tensor.cpu())})
    return as_tensor(grow_tensor(replace(row, source=info, dtype=dtype), source, 0), dtype)


def _step_scale(row: TensorMap, dual: TensorMap) -> float | None:
    if row.new_layer or any(dimension.level is not None for dimension in (*row.dimensions, *dual.dimensions)):
        return None
    factor = 1.0
    for forward, backward in zip(row.dimensions, dual.dimensions, strict=True):
        copied = ~forward.fresh
        sizes = forward.scale[copied] * np.sign(backward.scale[copied])
        if not len(sizes) or np.ptp(sizes) > 1e-12 * np.abs(sizes).max():
            return None
        factor *= mean(sizes)
    return None if row.offset and not math.isclose(factor, 1.0) else factor


# ------------------------------------------------- parameters and what is remembered of them


def _parameters(model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]], which: str) -> dict[str, nn.Parameter]:
    """A model's parameters by the plan's names, in the model's order, tied ones once."""
    found = {name: parameter for name, parameter in parameters_by_file_name(model).items() if name in shapes}
    for name, shape in shapes.items():
        has = tuple(found[name].shape) if name in found else None
        if has != shape:
            raise OptimizerError(
                f"The model `{which}` is not the plan's: '{name}' should have shape {list(shape)}, and it has "
                f"{list(has) if has else 'no such parameter'}. Make plan = growth.plan(recipe, small), "
                "big = growth.grow_model(small, plan)."
            )
    return found


def _check_made(old: Mapping[str, nn.Parameter], new: Mapping[str, nn.Parameter], plan: Plan) -> None:
    """Refuses a grown model that the plan does not make: what is remembered would go to other layers or units.

    Shapes do not tell: many plans lead to the same ones.

    Raises:
        OptimizerError: a value differs.
    """
    arrays = {name: as_array(parameter.detach().cpu()) for name, parameter in old.items()}
    for row in plan.tensors:
        made = as_tensor(grow_tensor(row, MemorySource(arrays), plan.seed), row.dtype)
        found = new[row.target].detach().cpu()
        if not torch.equal(made.to(found.dtype), found):
            raise OptimizerError(
                f"The model `big` is not what the plan makes of `small`: '{row.target}' has other values. Either "
                "another plan made it, or one of the two has been trained or changed since. Make plan = "
                "growth.plan(recipe, small), big = growth.grow_model(small, plan), and grow the optimizer right after."
            )


def _named(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """An optimizer's state dict with the names of its parameters for their numbers."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    groups = [
        {**group, "params": [_name(parameter, names) for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    state = {_name(parameter, names): entry for parameter, entry in optimizer.state.items()}
    return {"state": state, "param_groups": groups}


def _name(parameter: Tensor, names: Mapping[int, str]) -> str:
    if id(parameter) not in names:
        raise OptimizerError(
            f"The optimizer holds a parameter of shape {list(parameter.shape)} that is none of `small`'s. Give the "
            "model that the optimizer trains."
        )
    return names[id(parameter)]
