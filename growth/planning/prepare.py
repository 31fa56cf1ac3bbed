"""Preparation: from a recipe, a source, a dtype and a seed to a plan and the opened source."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from growth.architectures import architecture
from growth.architectures.base import Architecture
from growth.arrays.tensor_info import DTYPES, FLOATS, TensorInfo
from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.hub import resolve
from growth.checkpoints.open import open_checkpoint
from growth.checkpoints.published import hash_of_tensor
from growth.errors import ConfigError, RecipeError
from growth.operators import Operator
from growth.operators.base import Growth
from growth.planning.plan import Plan, make_plan
from growth.planning.recipe import Recipe, RecipeLike, as_recipe

LOG = logging.getLogger(__name__)


def growth_of(recipe: RecipeLike, config: Mapping[str, Any]) -> tuple[Growth, int]:
    """Return what a recipe does to any model of a config, and its random seed, without reading weights.

    Raises:
        GrowthError: an unknown family, or a recipe that does not apply.
    """
    recipe = as_recipe(recipe)
    seed = seed_of(recipe, None)
    return apply_recipe(recipe, architecture(config), seed), seed


def plan_next(recipe: RecipeLike, plan: Plan, seed: int | None = None) -> Plan:
    """Plan a further growth of the model that a plan leads to, without having its weights."""
    recipe = as_recipe(recipe)
    headers = {
        tensor_map.target: TensorInfo(tensor_map.target, tensor_map.dtype, tensor_map.shape)
        for tensor_map in plan.tensors
    }
    return _made(recipe, plan.target, headers, seed, None)


def planned(
    recipe: RecipeLike,
    source: str | Path | Checkpoint | None,
    dtype: str | None,
    seed: int | None,
    *,
    headers_only: bool = False,
    dequantize: bool = False,
    config: Path | None = None,
) -> tuple[Plan, Checkpoint, dict[str, Any]]:
    """Return the plan, the opened source, and the recipe as growth.json records it.

    headers_only, dequantize, config: as for `open_checkpoint`; with `headers_only`, tensors that the grown model ties
        are not compared either.

    Raises:
        GrowthError: no source, a quantised one, or a plan that is impossible.
    """
    recipe = as_recipe(recipe)
    if source is None and isinstance(recipe, Recipe):
        source = recipe.source
    if source is None:
        raise RecipeError(
            "The recipe names no source: give the checkpoint to grow, as --source or plan(recipe, source)."
        )
    if not isinstance(source, Checkpoint):
        source = open_checkpoint(resolve(source), headers_only=headers_only, dequantize=dequantize, config=config)
    result = _made(recipe, architecture(source.config), source.tensors, seed, _dtype(dtype))
    if not headers_only:
        check_repeated(result, hash_of_tensor, str(source.folder))
    recorded = recipe.to_dict() if isinstance(recipe, Recipe) else {"description": "operators given in Python"}
    return replace(result, dropped=source.dropped, notes=source.notes), source, recorded


def check_repeated(plan: Plan, hash_of: Callable[[TensorInfo], str], where: str) -> None:
    """Compare the stored tensors that a grown model ties.

    hash_of: the xxh3_128 of a stored tensor.
    where: the source, for the message.

    Raises:
        RecipeError: they differ in values or type.
    """
    for head, embedding in plan.repeated:
        hashes = hash_of(head), hash_of(embedding)
        if (head.dtype, hashes[0]) != (embedding.dtype, hashes[1]):
            one, other = (
                f"'{info.name}' ({info.dtype} {list(info.shape)}, xxh3_128 {found})"
                for info, found in zip((head, embedding), hashes, strict=True)
            )
            raise RecipeError(
                f"retie: in {where}, {one} and {other} differ, and one matrix for both would change the function. "
                "Leave out retie."
            )


def _made(
    recipe: Recipe | Operator,
    source: Architecture,
    headers: Mapping[str, TensorInfo],
    seed: int | None,
    dtype: str | None,
) -> Plan:
    seed = seed_of(recipe, seed)
    result = make_plan(source, apply_recipe(recipe, source, seed), headers, dtype=dtype, seed=seed)
    if isinstance(recipe, Recipe):
        recipe.check(result.target.config)
    LOG.info("planned %s: %d tensors, %d parameters", source.model_type, len(result.tensors), result.parameters)
    return result


def seed_of(recipe: Recipe | Operator, seed: int | None) -> int:
    """Return the given seed, else the recipe's own.

    Raises:
        ConfigError: the seed is not between 0 and 2**64 - 1.
    """
    if seed is None:
        return recipe.seed if isinstance(recipe, Recipe) else 0
    if not 0 <= seed < 2**64:
        raise ConfigError(f"The seed {seed} is not between 0 and 2**64 - 1.")
    return seed


def apply_recipe(recipe: Recipe | Operator, source: Architecture, seed: int) -> Growth:
    """Apply a recipe or an operator to a source."""
    return recipe.grow(source, seed) if isinstance(recipe, Recipe) else recipe(Growth.start(source))


def _dtype(name: str | None) -> str | None:
    if name is None or name in FLOATS:
        return name
    if name not in DTYPES:
        raise ConfigError(f"Unknown dtype '{name}': use one of {', '.join(DTYPES)}.")
    return DTYPES[name]
