"""From a checkpoint and a target config to the recipe that leads from one to the other."""

from __future__ import annotations

import math
from typing import Any

from growth.architecture import Architecture
from growth.architectures import architecture
from growth.config import NEUTRAL, Config, number
from growth.errors import RecipeError
from growth.planning import make_plan
from growth.recipe import Recipe, dump_recipe
from growth.rotary import rope

ROTARY = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")


def derive_recipe(source: Config, target: Config, *, name: str = "source") -> tuple[Recipe, list[str]]:
    """The exact recipe from one config to another of its family, and remarks on what it leaves different.

    Raises:
        RecipeError: no preserving recipe leads there; the message says why.
        ConfigError: a config that is not of a known family.
    """
    before, after = architecture(source), architecture(target)
    if before.model_type != after.model_type:
        raise RecipeError(f"A {before.model_type} does not grow into a {after.model_type}: the families differ.")
    _check_rotary(before, after)
    recipe = Recipe.model_validate(
        {
            "description": f"{name} to {_summary(after)}, exact",
            "steps": _steps(before, after) or [{"op": "deepen", "to": before.depth}],
            "expect": {key: _product(after, axes) for key, axes in after.sizes.items() if key in target}
            | dict.fromkeys(after.layers, after.depth),
            "name": "derived recipe",
        }
    )
    growth = recipe.grow(before, recipe.seed)
    headers = _headers(before)
    result = make_plan(before, growth, headers).target
    return recipe, _differences(result, after)


def recipe_text(recipe: Recipe, remarks: list[str]) -> str:
    """The recipe as a YAML file, with its remarks as comments."""
    return "".join(f"# {remark}\n" for remark in remarks) + dump_recipe(recipe)


def _headers(before: Architecture) -> dict[str, Any]:
    from growth.checkpoint import TensorInfo

    return {name: TensorInfo(name, "F32", shape) for name, shape in before.shapes().items()}


def _product(built: Architecture, axes: str) -> int:
    return math.prod(built.axes[axis].size for axis in axes.split())


def _summary(built: Architecture) -> str:
    return f"{built.depth} layers of {built.axes['residual'].size}"


def _check_rotary(before: Architecture, after: Architecture) -> None:
    if before.rotary != after.rotary:
        raise RecipeError(
            f"The source turns {before.rotary} channels of each head and the target {after.rotary}: their number sets "
            "the rotary frequencies, so no recipe preserves the function. Grow the number of heads instead of the "
            "rotary channels."
        )


def _steps(before: Architecture, after: Architecture) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    for name, axis in before.axes.items():
        old, new = axis.size, after.axes[name].size
        if new < old:
            raise RecipeError(f"The target has {name} {new}, the source {old}: growth only makes models larger.")
        if new > old:
            steps.append(_widen(before, after, name))
    if after.depth < before.depth:
        raise RecipeError(f"The target has {after.depth} layers, the source {before.depth}: growth only adds layers.")
    if after.depth > before.depth:
        steps.append({"op": "deepen", "to": after.depth, "order": "interleave", "init": "identity"})
    return steps


def _widen(before: Architecture, after: Architecture, name: str) -> dict[str, Any]:
    axis, new = before.axes[name], after.axes[name].size
    # heads are counted in query heads, of which a KV group still has the source's number at this step
    to = new * before.axes["queries"].size if name == "heads" else new
    step: dict[str, Any] = {"op": "widen", "axis": name, "to": to}
    step["init"] = "pad" if axis.fixed == axis.size or axis.outer else "tile"
    if step["init"] == "tile":
        step["shares"] = "random"
    if name == "residual" and axis.norm and _eps_is_rescaled(before, after):
        step["norm_eps"] = "rescale"
    return step


def _eps_is_rescaled(before: Architecture, after: Architecture) -> bool:
    if before.eps is None:
        return False
    old, new = (number(built.config, before.eps, built.eps_default) for built in (before, after))
    ratio = before.axes["residual"].size / after.axes["residual"].size
    return old != new and math.isclose(new, old * ratio, rel_tol=1e-3)


def _differences(result: Architecture, target: Architecture) -> list[str]:
    """Remarks on neutral keys that differ.

    Raises:
        RecipeError: a key that changes the function differs.
    """
    if {w.name for w in result.weights} != {w.name for w in target.weights}:
        ours, theirs = ({weight.name for weight in built.weights} for built in (result, target))
        raise RecipeError(
            f"The target has weights that the source does not have or lacks some: {sorted(ours ^ theirs)[:4]}. "
            "No preserving recipe adds or removes them."
        )
    for key in ("rope_theta",):
        ours, theirs = (rope(built.config, key, 10000.0, built.rope_names.get(key)) for built in (result, target))
        if not _same_bases(ours, theirs):
            _refuse_difference(key, ours, theirs)
    remarks = []
    rotary = {*ROTARY, *target.rope_names.values()}
    for key in sorted(result.config.keys() & target.config.keys() - rotary):
        ours, theirs = result.config[key], target.config[key]
        if (
            ours is None
            or theirs is None
            or ours == theirs
            or (key == result.eps and math.isclose(ours, theirs, rel_tol=1e-3))
        ):
            continue
        if key not in NEUTRAL:
            _refuse_difference(key, ours, theirs)
        if key in ("max_position_embeddings", "resid_pdrop", "embd_pdrop", "attention_dropout"):
            remarks.append(f"the result keeps {key}: {ours}; the target has {theirs}")
    return remarks


def _same_bases(ours: Any, theirs: Any) -> bool:
    """Whether rotary bases, one or one a layer type, agree but for the rounding of a power."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return all(_same_bases(ours[kind], theirs[kind]) for kind in ours)
    return isinstance(ours, int | float) and isinstance(theirs, int | float) and math.isclose(ours, theirs)


def _refuse_difference(key: str, ours: Any, theirs: Any) -> None:
    if ours != theirs:
        raise RecipeError(
            f"The source has {key} = {ours!r} and the target {theirs!r}: no growth turns one into the other and keeps "
            "the function. Correct the target config, or accept another start than this source."
        )
