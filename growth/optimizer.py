"""The training state grows too: gradients by the dual map, and what an optimizer remembers of them.

A gradient grows as its weight does, with what reads and what writes exchanged (docs/training.md). Adam's first
moment and SGD's momentum are sums of gradients and grow alike; Adam's second moment is a sum of their squares and
grows by the squares of the coefficients (Shen et al. 2022, Staged Training for Transformer Language Models).
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from growth.checkpoint import TensorInfo
from growth.errors import OptimizerError
from growth.execution import Memory, grow_tensor
from growth.expansion import FRESH, Booleans
from growth.planning import Plan, dual_rows
from growth.row import Dimension, Level, Row
from growth.tensors import as_array, as_tensor, dtype_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Fresh = Literal["seed", "zero"]
State = Mapping[str, Mapping[str, Any]]  # by the name of a tensor, what an optimizer remembers of it

_ADAM = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}
REMEMBERED: Mapping[type[torch.optim.Optimizer], Mapping[str, int]] = {
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.SGD: {"momentum_buffer": 1},
}
MOMENTS = {key: power for keys in REMEMBERED.values() for key, power in keys.items()}


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
    big: `growth.grow_model(small, plan)`.
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
    kind = type(optimizer)
    if kind not in REMEMBERED:
        raise OptimizerError(
            f"Cannot grow the state of {kind.__module__}.{kind.__qualname__}: only torch.optim's "
            f"{', '.join(known.__name__ for known in REMEMBERED)} can. Start a new optimizer over the grown model."
        )
    old = _parameters(small, {row.source.name: row.source.shape for row in plan.rows}, "small")
    new = _parameters(big, {row.target: row.shape for row in plan.rows}, "big")
    names = {id(parameter): name for name, parameter in old.items()}
    groups = [[_name(parameter, names) for parameter in group["params"]] for group in optimizer.param_groups]
    state = {names[id(parameter)]: remembered for parameter, remembered in optimizer.state.items() if remembered}
    grown_state = grow_state(state, plan, fresh=fresh)
    placed = grown_groups(groups, plan, list(new))
    options = [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in optimizer.param_groups]
    named = "param_names" in optimizer.param_groups[0]
    members = [[(name, new[name]) if named else new[name] for name in group] for group in placed]
    accepted = inspect.signature(kind).parameters
    grown = kind(
        [{"params": params, **copy.deepcopy(option)} for params, option in zip(members, options, strict=True)],
        **{key: value for key, value in optimizer.defaults.items() if key in accepted},
    )
    for name, remembered in grown_state.items():
        parameter = new[name]
        grown.state[parameter] = {key: _placed(key, value, parameter) for key, value in remembered.items()}
    return grown


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
    shapes = {row.source.name: row.source.shape for row in plan.rows}
    for name, values in state.items():
        _check(name, values, shapes)
    moments = {name: tensors for name, values in state.items() if (tensors := _moments(values))}
    grown: dict[str, dict[str, Any]] = {}
    rows = {row.target: row for row in _dual({name: next(iter(t.values())) for name, t in moments.items()}, plan)}
    for row in plan.rows:
        remembered = state.get(row.source.name)
        if remembered is None or (row.new_layer and fresh == "zero"):
            continue  # torch begins such a parameter at step 0
        kept = {key: copy.deepcopy(value) for key, value in remembered.items() if key not in MOMENTS or value is None}
        for key, tensor in moments.get(row.source.name, {}).items():
            kept[key] = _grown(_powered(rows[row.target], MOMENTS[key], fresh), tensor)
        grown[row.target] = {key: kept[key] for key in remembered}
    return grown


def grown_groups(groups: Iterable[Iterable[str]], plan: Plan, order: Iterable[str]) -> list[list[str]]:
    """The grown model's parameters in the groups of what they grew from, each group in the model's own order."""
    of = {row.target: row.source.name for row in plan.rows}
    order = list(order)
    return [[name for name in order if of[name] in members] for members in map(set, groups)]


def step_scales(plan: Plan) -> dict[str, float | None]:
    """By which factor of the old learning rate each tensor's next Adam step is the growth of the source's.

    Adam's update does not know the size of gradients, and a tensor that is read in shares of 1/2 should move by
    half of what its source moves. Divide weight decay by the same factor, so that their product stays. None: the
    tensor is a new layer's, or its parts need different factors.

    Raises:
        OptimizerError: a model with experts.

    >>> import growth
    >>> from growth.operators import widen
    >>> from growth.optimizer import step_scales
    >>> scales = step_scales(growth.plan(widen("ffn", factor=2), "examples/phi-mini"))
    >>> scales["model.layers.0.mlp.fc1.weight"], scales["model.layers.0.mlp.fc2.weight"]
    (1.0, 0.5)
    """
    duals = {row.target: row for row in _dual_rows(plan, {row.source.name: row.source for row in plan.rows})}
    return {row.target: _step_scale(row, duals[row.target]) for row in plan.rows}


# ------------------------------------------------- rows


def _dual_rows(plan: Plan, tensors: Mapping[str, TensorInfo]) -> tuple[Row, ...]:
    if plan.growth.mixing is not None or "experts" in plan.growth.expansions:
        raise OptimizerError(
            f"Cannot grow the training state of a model with experts ({plan.target.model_type}): its parameters are "
            "fused in memory. Start a new optimizer over the grown model."
        )
    return dual_rows(plan, tensors)


def _dual(tensors: Mapping[str, Tensor], plan: Plan) -> tuple[Row, ...]:
    infos = {name: TensorInfo(name, dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}
    return _dual_rows(plan, infos)


def _powered(row: Row, power: int, fresh: Fresh) -> Row:
    """The row that grows a sum of gradients (power 1) or of their squares (2)."""
    seeded = power == 2 and fresh == "seed"
    return replace(
        row,
        weight=replace(row.weight, offset=0.0),
        dimensions=tuple(_dimension(dimension, power, row.new_layer, seeded) for dimension in row.dimensions),
        zero=False,
        averaged=True,
    )


def _dimension(dimension: Dimension, power: int, new_layer: bool, seeded: bool) -> Dimension:
    """Coefficients to a power; fresh indices are as large as the copies on the mean, or nothing.

    The square of a sum with a mean (`level`) is not known from squares: the mean is left out.
    """
    scale = dimension.scale**power
    known = scale[~dimension.fresh]
    fresh = np.ones(len(scale), bool) if new_layer else dimension.fresh
    filling = float(known.mean()) if seeded and len(known) else 0.0
    level = None if power == 2 or new_layer else _silent_where(dimension.level, fresh)
    source = np.where(fresh, FRESH, dimension.source)
    return replace(dimension, source=source, scale=np.where(fresh, filling, scale), level=level)


def _silent_where(level: Level | None, fresh: Booleans) -> Level | None:
    return level and replace(level, coefficient=np.where(fresh, 0.0, level.coefficient))


def _grown(row: Row, tensor: Tensor) -> Tensor:
    dtype = dtype_name(tensor.dtype)
    info = TensorInfo(row.source.name, dtype, tuple(tensor.shape))
    source = Memory({info.name: as_array(tensor.cpu())})
    return as_tensor(grow_tensor(replace(row, source=info, dtype=dtype), source, 0), dtype)


def _step_scale(row: Row, dual: Row) -> float | None:
    if row.new_layer or any(dimension.level is not None for dimension in (*row.dimensions, *dual.dimensions)):
        return None
    factor = 1.0
    for forward, backward in zip(row.dimensions, dual.dimensions, strict=True):
        copied = ~forward.fresh
        sizes = forward.scale[copied] * np.sign(backward.scale[copied])
        if not len(sizes) or np.ptp(sizes) > 1e-12 * np.abs(sizes).max():
            return None
        factor *= float(sizes.mean())
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


def parameters_by_file_name(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """A model's parameters under the names that its files have for them, in the model's order."""
    from transformers.core_model_loading import revert_weight_conversion

    named = dict(model.named_parameters(remove_duplicate=False))
    place = {id(parameter): index for index, parameter in enumerate(named.values())}
    found = [(name, p) for name, p in revert_weight_conversion(model, named).items() if id(p) in place]
    return dict(sorted(found, key=lambda item: place[id(item[1])]))


def _name(parameter: Tensor, names: Mapping[int, str]) -> str:
    if id(parameter) not in names:
        raise OptimizerError(
            f"The optimizer holds a parameter of shape {list(parameter.shape)} that is none of `small`'s. Give the "
            "model that the optimizer trains."
        )
    return names[id(parameter)]


def _check(name: str, remembered: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    if name not in shapes:
        raise OptimizerError(f"The optimizer remembers '{name}', which the plan does not have.")
    unknown = sorted(remembered.keys() - MOMENTS.keys() - {"step"})
    if unknown:
        known = ", ".join(MOMENTS)
        raise OptimizerError(f"The optimizer remembers '{unknown[0]}' of '{name}': only {known} can grow.")
    for key, tensor in _moments(remembered).items():
        if type(tensor) is not Tensor:
            raise OptimizerError(
                f"'{key}' of '{name}' is a {type(tensor).__name__}, in parts or in a form of its own: only plain "
                "tensors can grow. Gather it first (torch.distributed.checkpoint.state_dict, full_state_dict=True)."
            )
        if tuple(tensor.shape) != shapes[name]:
            raise OptimizerError(
                f"'{key}' of '{name}' has shape {list(tensor.shape)} and the tensor {list(shapes[name])}: the "
                "optimizer's state is of another model."
            )


def _moments(remembered: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in remembered.items() if key in MOMENTS and value is not None}


def _placed(key: str, value: Any, parameter: nn.Parameter) -> Any:
    return value.to(parameter.device) if key in MOMENTS and isinstance(value, Tensor) else value
