"""The doors of the library: plan, grow, grow_model. Everything else stands behind them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from growth.ahead import Ahead
from growth.architecture import Architecture
from growth.architectures import architecture
from growth.checkpoint import Checkpoint, TensorInfo
from growth.errors import CheckpointError, ConfigError, RecipeError
from growth.growth import Growth
from growth.hub import resolve
from growth.live import Hooks, built, check_finite, check_hooks, check_model, check_place
from growth.opening import open_checkpoint
from growth.operators import Operator
from growth.planning import Plan, make_plan
from growth.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


How = Recipe | Operator | str | Path
FORMATS = ("safetensors", "dcp")
DTYPES = {
    "float16": "F16", "fp16": "F16", "bfloat16": "BF16", "bf16": "BF16",
    "float32": "F32", "fp32": "F32", "float64": "F64", "fp64": "F64",
}  # fmt: skip


def plan(
    recipe: How,
    source: str | Path | PreTrainedModel | None = None,
    *,
    dtype: str | None = None,
    seed: int | None = None,
) -> Plan:
    """Works out what a recipe does to a checkpoint; reads headers and config only, in well under a second.

    recipe: a `Recipe`, a recipe file, the name of a shipped recipe, or an operator.
    source: a checkpoint folder or hub id, the recipe's own by default; or a transformers model in memory.
    dtype: float16, bfloat16, float32 or float64; the source's by default, and always for a model in memory.
    seed: of everything random; the recipe's by default.

    Raises:
        GrowthError: anything that would keep the growth from succeeding, but for what only the tensors'
            values show (NaN, Inf).

    >>> import growth
    >>> plan = growth.plan("phi-mini", "examples/phi-mini")
    >>> plan.preserving, plan.config["hidden_size"], len(plan.rows)
    (True, 160, 117)
    """
    if source is None or isinstance(source, str | Path):
        return planned(recipe, source, dtype, seed, headers_only=True)[0]
    if dtype is not None:
        raise ConfigError(
            f"A model in memory grows in its own dtype, {source.dtype}: leave out dtype, or cast it first."
        )
    recipe = load_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    result = _planned_in_memory(recipe, source, seed)[0]
    if isinstance(recipe, Recipe):
        recipe.check(result.config)
    return result


def grow(
    recipe: How,
    source: str | Path | Ahead | None,
    output: str | Path,
    *,
    dtype: str | None = None,
    format: Literal["safetensors", "dcp"] = "safetensors",
    max_shard_size: int | str | None = None,
    seed: int | None = None,
    part: tuple[int, int] | None = None,
    resume: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    forks: bool = False,
) -> Plan:
    """Grows a checkpoint folder into a new one, which appears whole or not at all; returns the plan.

    recipe, source, dtype, seed: as for `plan`; the source may be one that is read already (`growth.ahead.read_ahead`).
    output: a folder that does not exist yet.
    format: safetensors as transformers saves them, or a folder of torch.distributed.checkpoint, which cannot be
        resumed or shared.
    max_shard_size: bytes, or "5GB", "200MB"; by default a sixteenth of the model, 1 GB at least and 5 GB at most.
    part: (i, n): this process writes the i-th of n shares of the output's files, i from 1. The output appears when
        the last of the n has finished, whichever that is; one that dies is run again and goes on.
    resume: go on where a growth that was interrupted left off, after checking what is there; if this one is
        interrupted too, by an error as well, what is done stays.
    progress: called with (phase, bytes done, bytes in all).
    forks: work in processes forked from this one, which do not wait for one another as threads do (on Linux, and
        where this process has no other threads). For scripts that do nothing else; the command does so.

    Raises:
        GrowthError: the recipe, the source or the place of the output is not as it must be; nothing is
            left behind.

    >>> import growth, tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "grown"
    >>> plan = growth.grow("phi-mini", "examples/phi-mini", folder)
    >>> (folder / "model.safetensors").stat().st_size > plan.bytes
    True
    """
    from growth.publishing import Part, checked_part
    from growth.writing import write_checkpoint

    largest = shard_size(max_shard_size)
    own = Part() if part is None else checked_part(*part)
    if format not in FORMATS:
        raise ConfigError(f"Unknown format '{format}': use one of {', '.join(FORMATS)}.")
    if format == "dcp" and (max_shard_size is not None or resume or not own.alone):
        raise ConfigError(
            "A dcp folder cannot be resumed or shared, and has one file: leave out resume, part and max_shard_size."
        )
    opened, reading = (source.checkpoint, source.reading) if isinstance(source, Ahead) else (source, None)
    result, checkpoint, content = planned(recipe, opened, dtype, seed)
    if format == "dcp":
        from growth.dcp_writing import write_dcp

        write_dcp(result, checkpoint, content, Path(output), progress=progress)
        return result
    write_checkpoint(
        result,
        checkpoint,
        content,
        Path(output),
        max_shard_size=largest,
        part=own,
        resume=resume,
        progress=progress,
        forks=forks,
        reading=reading,
    )
    return result


def grow_model(
    model: PreTrainedModel, recipe: How | Plan, *, seed: int | None = None, hooks: Hooks = "refuse"
) -> PreTrainedModel:
    """A larger model of the same class (or of the mixture it is upcycled to) from a transformers model in memory.

    The model itself is left as it is, and shares no memory with the result. The weights are those that `grow` would
    write. The result is on the model's device and has each tensor's own dtype, what is frozen, the training mode of
    every module, gradient checkpointing, the attention and experts implementations, the config and the generation
    config of the model (docs/models-in-memory.md).

    recipe: as for `plan`, or the plan that it made of this model.
    seed: the random seed; the recipe's by default. A plan has its own.
    hooks: what to do about hooks and replaced forward methods, which cannot be carried to new modules: "refuse" them,
        or "drop" them.

    Raises:
        GrowthError: an unknown family, a recipe that does not apply, a plan of another model, or a model that cannot
            grow as it is: quantised, sharded, offloaded, compiled, with PEFT adapters, without a language-model head,
            with NaN or Inf; or torch's default device is meta.

    >>> import growth, transformers
    >>> model = transformers.AutoModelForCausalLM.from_pretrained("examples/phi-mini")
    >>> larger = growth.grow_model(model, growth.widen("ffn", factor=2))
    >>> larger.config.intermediate_size // model.config.intermediate_size
    2
    """
    import torch

    from growth.execution import Memory, grow_tensor
    from growth.tensors import as_array, as_tensor

    if hooks not in get_args(Hooks):
        raise ConfigError(f"There is no hooks='{hooks}': use one of {', '.join(get_args(Hooks))}.")
    check_place()
    result, state = _planned_in_memory(recipe, model, seed)
    if hooks == "refuse":
        check_hooks(model)
    check_finite(state)
    memory = Memory({name: as_array(tensor) for name, tensor in state.items()})
    with torch.inference_mode(False):  # the result can be trained, wherever it is made
        weights = {row.target: as_tensor(grow_tensor(row, memory, result.seed), row.dtype) for row in result.rows}
        return built(model, result, weights)


def _planned_in_memory(recipe: How | Plan, model: PreTrainedModel, seed: int | None) -> tuple[Plan, dict[str, Tensor]]:
    """The plan of a model in memory, and its weights under the names that a file has for them."""
    from transformers.core_model_loading import revert_weight_conversion

    from growth.tensors import dtype_name

    check_model(model)
    source = architecture({**model.config.to_dict(), "architectures": [type(model).__name__]})
    tied = getattr(model, "all_tied_weights_keys", {})  # the same matrix under a second name
    named = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    state = {name: tensor.detach().cpu() for name, tensor in revert_weight_conversion(model, named).items()}
    headers = {name: TensorInfo(name, dtype_name(t.dtype), tuple(t.shape)) for name, t in state.items()}
    if isinstance(recipe, Plan):
        if seed is not None:
            raise RecipeError("A plan has a seed of its own: give the seed to growth.plan.")
        _check_is_of(recipe, headers)
        return recipe, state
    recipe = load_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    seed = _seed(recipe, seed)
    result = make_plan(source, _growth(recipe, source, seed), headers, seed=seed)
    return result, state


def growth_of(recipe: How, config: Mapping[str, Any]) -> tuple[Growth, int]:
    """What a recipe does to any model of a config, and its random seed; no weights are looked at.

    Raises:
        GrowthError: an unknown family, or a recipe that does not apply.
    """
    recipe = load_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    seed = _seed(recipe, None)
    return _growth(recipe, architecture(config), seed), seed


def plan_next(recipe: How, plan: Plan, seed: int | None = None) -> Plan:
    """The plan of a further growth, of the model that a plan makes: known from the headers that it will have."""
    recipe = load_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    headers = {row.target: TensorInfo(row.target, row.dtype, row.shape) for row in plan.rows}
    return _made(recipe, plan.target, headers, _seed(recipe, seed))


def _check_is_of(plan: Plan, headers: dict[str, TensorInfo]) -> None:
    """Refuses a plan whose tensors are not these."""
    for info in (row.source for row in plan.rows if row.drawn is None):
        found = headers.get(info.name)
        if found is None or (found.dtype, found.shape) != (info.dtype, info.shape):
            has = f"{found.dtype} {list(found.shape)}" if found else "none"
            raise CheckpointError(
                f"The plan is of another model: it reads '{info.name}' as {info.dtype} {list(info.shape)}, and this "
                f"model has {has}. Make the plan by growth.plan(recipe, model)."
            )


def planned(
    recipe: How,
    source: str | Path | Checkpoint | None,
    dtype: str | None,
    seed: int | None,
    *,
    headers_only: bool = False,
) -> tuple[Plan, Checkpoint, dict[str, Any]]:
    """The plan, the opened source, and the recipe as growth.json records it; headers_only: as for `open_checkpoint`."""
    recipe = load_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    if source is None:
        source = recipe.source if isinstance(recipe, Recipe) else None
        if source is None:
            raise RecipeError("The recipe names no source: say which checkpoint to grow (--source).")
    checkpoint = source
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(resolve(checkpoint), headers_only=headers_only)
    if checkpoint.config.get("quantization_config"):
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} has a quantization_config, and only plain floats can grow. Save the "
            "model dequantised, or remove the key if its weights are plain."
        )
    built = architecture(checkpoint.config)
    seed = _seed(recipe, seed)
    result = _made(recipe, built, checkpoint.tensors, seed, _dtype(dtype))
    result = replace(result, dropped=checkpoint.dropped, notes=checkpoint.notes)
    told = recipe.to_dict() if isinstance(recipe, Recipe) else {"description": "operators given in Python"}
    return result, checkpoint, told


def _made(
    recipe: Recipe | Operator,
    source: Architecture,
    headers: Mapping[str, TensorInfo],
    seed: int,
    dtype: str | None = None,
) -> Plan:
    result = make_plan(source, _growth(recipe, source, seed), headers, dtype=dtype, seed=seed)
    if isinstance(recipe, Recipe):
        recipe.check(result.config)
    return result


def _seed(recipe: Recipe | Operator, seed: int | None) -> int:
    if seed is not None:
        if not 0 <= seed < 2**64:
            raise ConfigError(f"The seed {seed} is not between 0 and 2**64 - 1.")
        return seed
    return recipe.seed if isinstance(recipe, Recipe) else 0


def _growth(recipe: Recipe | Operator, source: Architecture, seed: int) -> Growth:
    return recipe.grow(source, seed) if isinstance(recipe, Recipe) else recipe(Growth.start(source))


def _dtype(name: str | None) -> str | None:
    if name is None or name in DTYPES.values():
        return name
    if name not in DTYPES:
        raise ConfigError(f"Unknown dtype '{name}': use one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def shard_size(text: int | str | None) -> int | None:
    """Bytes of "5GB", "200MB", "1GiB" or a number.

    Raises:
        ConfigError: anything else.

    >>> shard_size("200MB"), shard_size("1GiB")
    (200000000, 1073741824)
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?)B?", str(text).strip(), re.IGNORECASE)
    if not match:
        raise ConfigError(f"max_shard_size '{text}' is not a size such as 5GB or 200MB.")
    unit = match[2].lower()
    base = 1024 if unit.endswith("i") else 1000
    size = int(float(match[1]) * base ** " kmgt".index(unit[:1] or " "))
    if size < 1:
        raise ConfigError(f"max_shard_size {text} is below one byte.")
    return size
