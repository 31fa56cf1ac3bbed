"""How stored tensors become the parameters of a stock transformers class, as transformers itself converts them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from growth.architectures.config import LARGEST_DEPTH, UNSAID, shown
from growth.arrays.tensor_info import TensorInfo
from growth.arrays.torch_interop import TORCH_DTYPES
from growth.checkpoints.checkpoint import Checkpoint
from growth.errors import CheckpointError, ConfigError

QUANTISED = "quantization_config"


def stock_config(folder: Path) -> PreTrainedConfig:
    """The config.json of a folder as the stock class reads it, with every size under its standard name too.

    Raises:
        ConfigError: transformers has no stock class for it, or it has too many layers.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # config classes raise many kinds of error
        raise ConfigError(f"transformers has no stock model for {folder / 'config.json'}: {error}") from None
    depth = getattr(config.get_text_config(), "num_hidden_layers", None) or 0
    if depth > LARGEST_DEPTH:  # each makes a module, whatever tensors are stored
        raise ConfigError(
            f"{folder / 'config.json'} has {depth:,} layers, and at most {LARGEST_DEPTH:,} are read. Correct it."
        )
    if hasattr(config, QUANTISED):  # the tensors that commands read are plain floats (growth/checkpoints/quantised.py)
        delattr(config, QUANTISED)
    return config


def auto_class(config: PreTrainedConfig) -> Any:
    """The auto class that builds the model of a config; the whole model, if it takes images, too."""
    takes_images = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if takes_images else AutoModelForCausalLM


def stock_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The stock class of a config.

    Raises:
        KeyError: transformers has none.
    """
    takes_images = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    mapping = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if takes_images else MODEL_FOR_CAUSAL_LM_MAPPING
    found: type[PreTrainedModel] = mapping[type(config)]
    return found


def class_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """The content of a config.json as the stock class's config.

    Raises:
        ConfigError: values that the class does not accept.
    """
    try:
        result: PreTrainedConfig = CONFIG_MAPPING[config["model_type"]].from_dict(_with_floats(dict(config)))
    except Exception as error:  # config classes raise many kinds of error
        raise ConfigError(f"transformers accepts no such {config['model_type']} config: {error}") from None
    return result


def _with_floats(value: Any) -> Any:
    """Return a copy of a value of a config.json in which floats that JSON lacks are what transformers writes them for.

    >>> _with_floats([0.5, {"__float__": "Infinity"}])
    [0.5, inf]
    """
    match value:
        case {"__float__": "Infinity" | "-Infinity" | "NaN" as name}:
            return float(name)
        case dict():
            return {key: _with_floats(each) for key, each in value.items()}
        case list():
            return [_with_floats(each) for each in value]
    return deepcopy(value)


def check_stated(config: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Check that a stock class reads some settings in the content of a config.json as they are stated.

    Raises:
        ConfigError: it ignores a key, or takes its value from another one.
    """
    family, read = CONFIG_MAPPING[config["model_type"]], _as_json(class_config(config))
    rope = read.get("rope_parameters") or {}
    known = {**read, "rope_scaling": rope, **rope}
    own = _as_json(family()).keys() | family.attribute_map.keys() | {"rope_scaling", *rope}
    for key, value in settings.items():
        if key not in own and _is_ignored(key, config, read):
            raise ConfigError(f"transformers ignores {key}. Correct its name, or leave it out.")
        found = known.get(family.attribute_map.get(key, key), UNSAID)
        if found is not UNSAID and not _includes(found, json.loads(json.dumps(value))):
            raise ConfigError(
                f"transformers reads {key} = {shown(found)}, because other keys decide, such as rope_scaling or "
                "rope_theta beside rope_parameters. State these too."
            )


def _is_ignored(key: str, config: Mapping[str, Any], read: Mapping[str, Any]) -> bool:
    """Whether the class reads the same without a key, but for an attribute of that name."""
    without = _as_json(class_config({other: value for other, value in config.items() if other != key}))
    return {**without, key: read.get(key)} == read


def _as_json(config: PreTrainedConfig) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return content


def _includes(whole: Any, part: Any) -> bool:
    """Whether a value is another one, or it or one of its entries has all the other's entries."""
    if not (isinstance(whole, Mapping) and isinstance(part, Mapping)):
        return bool(whole == part)
    entries = [entry for entry in whole.values() if isinstance(entry, Mapping)]  # one for each type of layer
    whole_has = all(key in whole and _includes(whole[key], value) for key, value in part.items())
    return whole_has or any(_includes(entry, part) for entry in entries)


def check_runs(config: PreTrainedConfig) -> None:
    """Run the stock class of a config on two tokens in training mode, without weights and values.

    Raises:
        ConfigError: its forward fails.
    """
    try:
        with torch.device("meta"):
            model = auto_class(config).from_config(
                config,
                attn_implementation="eager",
                trust_remote_code=False,
            )
            tokens = torch.ones((1, 2), dtype=torch.long)
            model.train()(input_ids=tokens, attention_mask=tokens, use_cache=False)
    except RuntimeError:
        return  # where values decide (which experts, which length of dynamic RoPE), meta tensors lead no further
    except Exception as error:  # model classes use values of the config unchecked
        raise ConfigError(f"transformers cannot run such a {config.model_type}: {error!r}.") from error


def empty_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The stock model of a config, with parameters on the meta device.

    Raises:
        ConfigError: transformers cannot build it.
    """
    try:
        with init_empty_weights(include_buffers=False):
            model: PreTrainedModel = auto_class(config).from_config(
                config,
                dtype=dtype,
                attn_implementation="eager",  # the only path that every family has in every dtype
                experts_implementation="eager",  # grouped matmul has no float64 on CPU
                trust_remote_code=False,
            )
    except Exception as error:  # model classes use values of the config unchecked
        raise ConfigError(
            f"transformers cannot build a {config.model_type} from its config.json: {error!r}. Correct the config."
        ) from error
    return model.eval()


def stored_as(
    config: PreTrainedConfig, tensors: Iterable[TensorInfo]
) -> dict[str, tuple[tuple[int, ...], tuple[TensorInfo, ...]]]:
    """The shape of each parameter of the stock class, tied ones included, and the stored tensors that make it.

    A parameter is made of one tensor of its shape, or of several of one shape that lie side by side in row-major
    order: experts that the class keeps in one parameter.

    Raises:
        CheckpointError: tensors are missing, unexpected or mis-shaped.
        ConfigError: the class makes its parameters in another way.
    """
    with torch.no_grad():
        model = empty_model(config, torch.float32)
        recipes = assign(model, Checkpoint(Path(type(model).__name__), {}, {info.name: info for info in tensors}))
        shapes = {entry: tuple(value.shape) for entry, value in model.state_dict().items()}
        return {entry: (shapes[entry], recipe.laid_out(model, name)) for entry, (recipe, name) in recipes.items()}


@dataclass(frozen=True)
class ParameterRecipe:
    """How stored tensors become one entry of the model's state dict.

    Attributes:
        target: the entry.
        sources: the stored tensors, each with the converter's pattern that its name matched.
        converter: the conversion of transformers; None where the entry is one stored tensor.
    """

    target: str
    sources: tuple[tuple[TensorInfo, str], ...]
    converter: WeightConverter | None = None

    def make(self, model: PreTrainedModel, read: Callable[[TensorInfo], Tensor]) -> dict[str, Tensor]:
        """The entries that this recipe makes, by name; several where it splits a fused tensor."""
        if self.converter is None:
            return {self.target: read(self.sources[0][0])}
        converter = deepcopy(self.converter)  # convert() empties the tensors it has collected
        for info, pattern in self.sources:
            reading: Any = partial(read, info)  # declared as a Future, but a callable is called
            converter.add_tensor(self.target, info.name, pattern, reading)
        made = converter.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def laid_out(self, model: PreTrainedModel, name: str) -> tuple[TensorInfo, ...]:
        """The stored tensors in the order in which they lie in an entry, found by converting one number for each."""
        if self.converter is None:
            return (self.sources[0][0],)
        infos = [info for info, _ in self.sources]
        number = {info.name: float(position) for position, info in enumerate(infos)}
        ones = (1,) * len(infos[0].shape)
        order = self.make(model, lambda info: torch.full(ones, number[info.name]))[name]
        merged = all(isinstance(step, MergeModulelist | Concatenate) for step in self.converter.operations)
        alike = len({info.shape for info in infos}) == 1
        within = order.shape[order.ndim - len(ones) + 1 :]  # those dimensions of a tensor that lie in one place
        if not (merged and alike) or order.numel() != len(infos) or within != ones[1:]:
            raise ConfigError(
                f"{type(model).__name__} makes '{name}' of {len(infos)} tensors by more than laying them side by side. "
                "Write the grown checkpoint (growth grow) and load it."
            )
        return tuple(infos[int(position)] for position in order.flatten())


ParameterRecipes = Mapping[str, tuple[ParameterRecipe, str]]  # by entry


def assign(model: PreTrainedModel, checkpoint: Checkpoint) -> ParameterRecipes:
    """The recipe of every entry of the model's state dict, tied ones included.

    Raises:
        CheckpointError: tensors are missing, unexpected or mis-shaped.
    """
    state = model.state_dict()
    recipes, mismatched = _known(model, _recipes(model, checkpoint, state), state)
    used = {info.name for recipe, _ in recipes.values() for info, _ in recipe.sources}
    recipes |= _tied(model, recipes)
    missing = _not_ignored(model, "missing", state.keys() - recipes.keys())
    unexpected = _not_ignored(model, "unexpected", checkpoint.tensors.keys() - used)
    problems = {"missing_keys": missing, "unexpected_keys": unexpected, "mismatched_keys": mismatched}
    refuse_loading(checkpoint.folder, problems)
    return recipes


def _recipes(model: PreTrainedModel, checkpoint: Checkpoint, state: dict[str, Tensor]) -> list[ParameterRecipe]:
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    gathered: dict[str, list[tuple[TensorInfo, str]]] = {}
    for name in sorted(checkpoint.tensors, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:
            target, pattern = name, None
        gathered.setdefault(target, []).append((checkpoint.tensors[name], pattern or ""))
    return [ParameterRecipe(target, tuple(found), by_pattern.get(found[0][1])) for target, found in gathered.items()]


def _known(
    model: PreTrainedModel, recipes: Iterable[ParameterRecipe], state: dict[str, Tensor]
) -> tuple[dict[str, tuple[ParameterRecipe, str]], list[tuple[str, list[int], list[int]]]]:
    """The recipes by the entry that they make, and (name, stored shape, model's shape) where the shapes differ."""
    known, mismatched = {}, []
    for recipe in recipes:
        if recipe.target not in state:
            continue
        made = recipe.make(model, lambda info: torch.empty(info.shape, dtype=float_dtype(info), device="meta"))
        for name, value in made.items():
            known[name] = recipe, name
            if value.shape != state[name].shape:
                mismatched.append((name, list(value.shape), list(state[name].shape)))
    return known, mismatched


def _tied(model: PreTrainedModel, recipes: ParameterRecipes) -> dict[str, tuple[ParameterRecipe, str]]:
    """The recipes of tied entries that the file leaves out; stored entries are used, as transformers does."""
    pairs = dict(model.all_tied_weights_keys)
    stand_ins = {target: source for target, source in pairs.items() if source in recipes}
    stand_ins |= {source: target for target, source in pairs.items() if target in recipes}
    return {name: recipes[other] for name, other in stand_ins.items() if name not in recipes}


def _not_ignored(model: PreTrainedModel, kind: str, names: Iterable[str]) -> list[str]:
    patterns = set(getattr(model, f"_keys_to_ignore_on_load_{kind}") or ())
    return sorted(name for name in names if not any(re.search(pattern, name) for pattern in patterns))


def refuse_loading(folder: Path, info: Mapping[str, Any]) -> None:
    """Raise CheckpointError where the loading info of transformers lists a problem."""
    said = {
        "missing_keys": "missing from the file (transformers would fill them with random numbers)",
        "unexpected_keys": "in the file but unknown to the model (transformers would not read them)",
        "mismatched_keys": "of another shape than config.json says (name, stored, expected)",
        "error_msgs": "reported by transformers",
    }
    found = [f"{_some(info[key])}: {text}" for key, text in said.items() if info.get(key)]
    if found:
        raise CheckpointError(
            f"{folder} is not a complete checkpoint of the model its config.json describes. "
            + "; ".join(found)
            + ". Write the checkpoint again, or correct its config.json."
        )


def _some(items: Iterable[Any], most: int = 5) -> str:
    listed = sorted(str(item) for item in items)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def float_dtype(info: TensorInfo) -> torch.dtype:
    """The torch type of a stored tensor.

    Raises:
        CheckpointError: the type is not a float of 16 to 64 bits.
    """
    if info.dtype not in TORCH_DTYPES:
        raise CheckpointError(
            f"{info.path}: tensor '{info.name}' is stored as {info.dtype}, and only {', '.join(TORCH_DTYPES)} can "
            "be run. Dequantise the checkpoint first."
        )
    return TORCH_DTYPES[info.dtype]
