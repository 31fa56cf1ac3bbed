"""Preparation: from a recipe, a source, a dtype and a seed to a plan and the opened source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from growth.architectures import architecture
from growth.architectures.base import Architecture
from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.hub import resolve
from growth.checkpoints.open import open_checkpoint
from growth.errors import CheckpointError, ConfigError, RecipeError
from growth.operators import Operator
from growth.operators.base import Growth
from growth.planning.plan import Plan, make_plan
from growth.planning.recipe import Recipe, load_recipe

RecipeLike = Recipe | Operator | str | Path


DTYPES = {
    "float16": "F16", "fp16": "F16", "bfloat16": "BF16", "bf16": "BF16",
    "float32": "F32", "fp32": "F32", "float64": "F64", "fp64": "F64",
}  # fmt: skip


def growth_of(recipe: RecipeLike, config: Mapping[str, Any]) -> tuple[Growth, int]:
    """Return what a recipe does to any model of a config, and its random seed, without reading weights.

    Raises:
        GrowthError: an unknown family, or a recipe that does not apply.
    """
    recipe = load_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    seed = seed_of(recipe, None)
    return apply_recipe(recipe, architecture(config), seed), seed


def plan_next(recipe: RecipeLike, plan: Plan, seed: int | None = None) -> Plan:
    """Plan a further growth of the model that a plan results in, from the headers that it will have."""
    recipe = load_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    headers = {row.target: TensorInfo(row.target, row.dtype, row.shape) for row in plan.tensors}
    return _made(recipe, plan.target, headers, seed_of(recipe, seed))


def planned(
    recipe: RecipeLike,
    source: str | Path | Checkpoint | None,
    dtype: str | None,
    seed: int | None,
    *,
    headers_only: bool = False,
) -> tuple[Plan, Checkpoint, dict[str, Any]]:
    """Return the plan, the opened source, and the recipe as growth.json records it.

    headers_only: as for `open_checkpoint`.

    Raises:
        GrowthError: no source, a quantised one, or a plan that is impossible.
    """
    recipe = load_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    if source is None:
        source = recipe.source if isinstance(recipe, Recipe) else None
        if source is None:
            raise RecipeError("The recipe names no source: pass the checkpoint to grow (--source).")
    checkpoint = source
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(resolve(checkpoint), headers_only=headers_only)
    if checkpoint.config.get("quantization_config"):
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} has a quantization_config, and only plain floats can grow. Save the "
            "model dequantised, or remove the key if its weights are plain."
        )
    built = architecture(checkpoint.config)
    seed = seed_of(recipe, seed)
    result = _made(recipe, built, checkpoint.tensors, seed, _dtype(dtype))
    result = replace(result, dropped=checkpoint.dropped, notes=checkpoint.notes)
    recorded = recipe.to_dict() if isinstance(recipe, Recipe) else {"description": "operators given in Python"}
    return result, checkpoint, recorded


def _made(
    recipe: Recipe | Operator,
    source: Architecture,
    headers: Mapping[str, TensorInfo],
    seed: int,
    dtype: str | None = None,
) -> Plan:
    result = make_plan(source, apply_recipe(recipe, source, seed), headers, dtype=dtype, seed=seed)
    if isinstance(recipe, Recipe):
        recipe.check(result.config)
    return result


def seed_of(recipe: Recipe | Operator, seed: int | None) -> int:
    """Return the given seed, else the recipe's own.

    Raises:
        ConfigError: the seed is not between 0 and 2**64 - 1.
    """
    if seed is not None:
        if not 0 <= seed < 2**64:
            raise ConfigError(f"The seed {seed} is not between 0 and 2**64 - 1.")
        return seed
    return recipe.seed if isinstance(recipe, Recipe) else 0


def apply_recipe(recipe: Recipe | Operator, source: Architecture, seed: int) -> Growth:
    """Apply a recipe or an operator to a source."""
    return recipe.grow(source, seed) if isinstance(recipe, Recipe) else recipe(Growth.start(source))


def _dtype(name: str | None) -> str | None:
    if name is None or name in DTYPES.values():
        return name
    if name not in DTYPES:
        raise ConfigError(f"Unknown dtype '{name}': use one of {', '.join(DTYPES)}.")
    return DTYPES[name]
