"""Grow a transformers model in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from growth.architectures import architecture
from growth.arrays.casting import bytes_view
from growth.arrays.tensor_info import TensorInfo
from growth.errors import CheckpointError, ConfigError, RecipeError
from growth.output.grown_model import built
from growth.output.model_checks import Hooks, check_finite, check_hooks, check_model, check_place
from growth.planning.manifest import hash_of
from growth.planning.plan import Plan, make_plan
from growth.planning.prepare import apply_recipe, check_repeated, seed_of
from growth.planning.recipe import Recipe, RecipeLike, as_recipe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def grow_model(
    model: PreTrainedModel, recipe: RecipeLike | Plan, *, seed: int | None = None, hooks: Hooks = "refuse"
) -> PreTrainedModel:
    """Grow a transformers model into a larger one of its class, or of the mixture that it is upcycled to.

    The model is not changed and shares no memory with the result, whose weights are those that `grow` would write. The
    result is on the model's device. It takes over the dtype of each tensor, which parameters are frozen, the training
    mode of every module, gradient checkpointing, the attention and experts implementations, the config and the
    generation config (docs/models-in-memory.md).

    Args:
        model: a causal language model of transformers.
        recipe: as for `plan`, or the plan that `plan` made of this model.
        seed: the random seed; by default the recipe's. A plan has its own.
        hooks: "refuse" or "drop" hooks and replaced forward methods, which new modules cannot take over.

    Returns:
        The grown model.

    Raises:
        GrowthError: the family is unknown, the recipe does not apply, the plan is of another model, torch's default
            device is meta, or the model cannot grow as it is: quantised, sharded, offloaded, compiled, with PEFT
            adapters, without a language-model head, or with NaN or Inf.

    >>> import growth, transformers
    >>> model = transformers.AutoModelForCausalLM.from_pretrained(growth.resolve("examples/phi-mini"))
    >>> larger = growth.grow_model(model, growth.widen("ffn", factor=2))
    >>> larger.config.intermediate_size // model.config.intermediate_size
    2
    """
    import torch

    from growth.arrays.torch_interop import as_array, as_tensor
    from growth.engine.grow_tensor import MemorySource, grow_tensor

    if hooks not in get_args(Hooks):
        raise ConfigError(f"hooks='{hooks}' is unknown: use one of {', '.join(get_args(Hooks))}.")
    check_place()
    result, state = _planned(recipe, model, seed)
    if hooks == "refuse":
        check_hooks(model)
    check_finite(state)
    memory = MemorySource({name: as_array(tensor) for name, tensor in state.items()})
    with torch.inference_mode(False):  # the result can be trained, wherever it is made
        weights = {
            tensor_map.target: as_tensor(grow_tensor(tensor_map, memory, result.seed), tensor_map.dtype)
            for tensor_map in result.tensors
        }
        return built(model, result, weights)


def plan_in_memory(recipe: RecipeLike, model: PreTrainedModel, seed: int | None = None) -> Plan:
    """Determine what a recipe does to a model in memory.

    Raises:
        GrowthError: as for `growth.plan`.
    """
    recipe = as_recipe(recipe)
    result, _ = _planned(recipe, model, seed)
    if isinstance(recipe, Recipe):
        recipe.check(result.target.config)
    return result


def _planned(recipe: RecipeLike | Plan, model: PreTrainedModel, seed: int | None) -> tuple[Plan, dict[str, Tensor]]:
    """The plan for a model in memory, and its weights by the names that files have for them."""
    from transformers.core_model_loading import revert_weight_conversion

    from growth.arrays.torch_interop import as_array, dtype_name

    check_model(model)
    source = architecture({**model.config.to_dict(), "architectures": [type(model).__name__]})
    tied = getattr(model, "all_tied_weights_keys", {})  # second names of one matrix
    named = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    state = {name: tensor.detach().cpu() for name, tensor in revert_weight_conversion(model, named).items()}
    headers = {name: TensorInfo(name, dtype_name(t.dtype), tuple(t.shape)) for name, t in state.items()}
    if isinstance(recipe, Plan):
        if seed is not None:
            raise RecipeError(
                f"A plan has its own random seed, {recipe.seed}, and seed={seed} cannot change it: pass the "
                "seed to growth.plan."
            )
        _check_is_of(recipe, headers)
        result = recipe
    else:
        recipe = as_recipe(recipe)
        seed = seed_of(recipe, seed)
        result = make_plan(source, apply_recipe(recipe, source, seed), headers, seed=seed)
    check_repeated(result, lambda info: hash_of(bytes_view(as_array(state[info.name]))), f"this {type(model).__name__}")
    return result, state


def _check_is_of(plan: Plan, headers: dict[str, TensorInfo]) -> None:
    """Raise CheckpointError where a plan reads other tensors than a model's."""
    for info in plan.sources.values():
        found = headers.get(info.name)
        if found is None or (found.dtype, found.shape) != (info.dtype, info.shape):
            has = f"{found.dtype} {list(found.shape)}" if found else "none"
            raise CheckpointError(
                f"The plan is of another model: it reads '{info.name}' as {info.dtype} {list(info.shape)}, and this "
                f"model has {has}. Make the plan by growth.plan(recipe, model)."
            )
