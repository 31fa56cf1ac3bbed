"""Build a grown model in memory, with everything that it takes over from its source (docs/models-in-memory.md).

A model in memory is more than its config and weights: each tensor has a dtype and may be frozen, and modules have modes
and settings.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from functools import cache, reduce
from typing import TYPE_CHECKING, Any

from growth.errors import CheckpointError
from growth.operators.base import Growth
from growth.output.module_settings import CARRIED, MISSING, changed_settings, is_plain

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from growth.planning.plan import Plan


def built(model: PreTrainedModel, plan: Plan, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """Build the grown model from its weights, with everything that it takes over from the source.

    Args:
        model, plan: the source, and the plan for it.
        weights: the grown weights by the names that files have for them.

    Raises:
        CheckpointError: tensors that the grown model keeps in one parameter differ in dtype or requires_grad.
    """
    import torch

    from growth.arrays.torch_interop import TORCH_DTYPES

    grown = _loaded(model, plan, weights, model.dtype)
    types = {name: TORCH_DTYPES[dtype] for name, dtype in stored_types(grown, model, plan).items()}
    parameters = dict(grown.named_parameters())
    other = {name: dtype for name, dtype in types.items() if dtype != parameters[name].dtype}
    if other:
        widest = reduce(torch.promote_types, types.values())  # so that no value loses bits
        wide = _loaded(model, plan, weights, widest)
        for name, dtype in other.items():
            parameters[name].data = wide.get_parameter(name).detach().to(dtype)
    carry_over(grown, model, plan)
    return grown.to(model.device)


def empty_grown_model(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """Build a model as grown by a plan on the meta device: the names and shapes of its parameters.

    plan: for the model, or for one that it grows into.
    """
    import torch

    config, kind = _classes(model, plan)
    with torch.device("meta"):
        return kind(config.from_dict(plan.config))


def _loaded(model: PreTrainedModel, plan: Plan, weights: Mapping[str, Tensor], dtype: torch.dtype) -> PreTrainedModel:
    from growth.output.contents import with_dtype
    from growth.runtime.quiet import no_loading_bar

    config, kind = _classes(model, plan)
    padding = _padding(weights, getattr(model.config.get_text_config(), "pad_token_id", None))
    with no_loading_bar():
        grown, info = kind.from_pretrained(
            None,
            config=config.from_dict(with_dtype(plan.config, {tensor_map.dtype for tensor_map in plan.tensors})),
            state_dict=dict(weights),
            dtype=dtype,
            attn_implementation=model.config._attn_implementation,
            experts_implementation=_experts_implementation(model),
            output_loading_info=True,
        )
    assert not any(info.values()), f"the class does not take the grown weights as they are: {info}"
    _with_padding(grown, padding)
    return grown


def _experts_implementation(model: PreTrainedModel) -> str | None:
    """How the source runs its experts; None, the default of the grown model, where the source has no such choice.

    In float64 it is "eager", as in classes without the choice: grouped matmul has no float64.
    """
    import torch

    if type(model)._can_set_experts_implementation() or model.dtype == torch.float64:
        return getattr(model.config, "_experts_implementation", None)
    return None


def _padding(weights: Mapping[str, Tensor], token: int | None) -> Mapping[str, Tensor]:
    """The row of a padding token in each matrix that may be an embedding."""
    if token is None:
        return {}
    return {name: matrix[token].clone() for name, matrix in weights.items() if matrix.ndim == 2 and len(matrix) > token}


def _with_padding(grown: PreTrainedModel, rows: Mapping[str, Tensor]) -> None:
    """Give the padding token its embedding again, which some classes set to zero whenever they load it."""
    if not rows:
        return
    embedding = grown.get_input_embeddings()
    names = [name for name, parameter in grown.named_parameters() if parameter is embedding.weight]
    for row in (rows[file] for name in names for file in files_of(grown)[name] if file in rows):
        embedding.weight.data[grown.config.get_text_config().pad_token_id] = row.to(embedding.weight)


def _classes(model: PreTrainedModel, plan: Plan) -> tuple[Any, Any]:
    """The classes of the grown model's config and of the grown model."""
    from transformers import CONFIG_MAPPING

    from growth.checkpoints.stock_parameters import stock_class

    model_type = plan.config["model_type"]
    if model_type == model.config.model_type:
        return type(model.config), type(model)
    config = CONFIG_MAPPING[model_type]  # a dense model became a mixture
    return config, stock_class(config())


def files_of(model: PreTrainedModel) -> dict[str, list[str]]:
    """The names that files have for each parameter, by its name in the model; tied parameters appear once.

    Files have a tied parameter as that of the embedding, also where a class defines its head first.
    """
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    parameters = dict(model.named_parameters())
    tied = {name: stored for name, stored in model.all_tied_weights_keys.items() if stored not in parameters}
    # each parameter is filled with its number, so that the conversion of transformers shows where it goes in files
    numbered = {
        tied.get(name, name): torch.tensor(n, dtype=torch.int32).expand(parameter.shape)
        for n, (name, parameter) in enumerate(parameters.items())
    }
    names = list(parameters)
    files: dict[str, list[str]] = {name: [] for name in names}
    for name, tensor in revert_weight_conversion(model, numbered).items():
        files[names[int(tensor.reshape(-1)[0])]].append(name)
    return files


def source_parameters(grown: PreTrainedModel, model: PreTrainedModel, plan: Plan) -> dict[str, list[nn.Parameter]]:
    """The parameters of the source from which each parameter of the grown model, by name, was made."""
    parameters = dict(model.named_parameters())
    by_file = {file: parameters[name] for name, files in files_of(model).items() for file in files}
    of = {tensor_map.target: by_file.get(tensor_map.source.name) for tensor_map in plan.tensors}
    found = {
        name: [source for file in files if (source := of[file]) is not None] for name, files in files_of(grown).items()
    }
    return {name: list({id(source): source for source in sources}.values()) for name, sources in found.items()}


def stored_types(grown: PreTrainedModel, model: PreTrainedModel, plan: Plan) -> dict[str, str]:
    """The type, as safetensors names it, that the plan gives each parameter of the grown model, by name."""
    types = {tensor_map.target: tensor_map.dtype for tensor_map in plan.tensors}
    return {
        name: agreeing(model, name, [types[file] for file in files], "dtype") for name, files in files_of(grown).items()
    }


def agreeing(model: PreTrainedModel, name: str, values: list[Any], what: str) -> Any:
    """The value that all sources of one parameter of the grown model share.

    Raises:
        CheckpointError: the values differ.
    """
    if len(set(values)) > 1:
        raise CheckpointError(
            f"Cannot grow this {type(model).__name__}: '{name}' of the grown model is made from parameters that differ "
            f"in {what} ({', '.join(map(str, values))}). Give them the same value."
        )
    return values[0]


def carry_over(grown: PreTrainedModel, model: PreTrainedModel, plan: Plan) -> None:
    """Give a grown model everything that it takes over from the source besides values and dtypes."""
    parameters = dict(grown.named_parameters())
    for name, sources in source_parameters(grown, model, plan).items():
        if sources:
            trained = agreeing(model, name, [source.requires_grad for source in sources], "requires_grad")
            parameters[name].requires_grad_(trained)
    grown.generation_config = copy.deepcopy(model.generation_config)
    grown.config.name_or_path = grown.name_or_path = model.config.name_or_path
    grown.model_tags = copy.copy(model.model_tags)
    if getattr(model, "_require_grads_hooks", None):
        grown.enable_input_require_grads()
    _carry_modules(grown, model, plan.growth)


def _carry_modules(grown: PreTrainedModel, model: PreTrainedModel, growth: Growth) -> None:
    """Take over settings, training mode, gradient checkpointing and dtypes of buffers, module by module."""
    modules, settings = dict(model.named_modules()), changed_settings(model)
    names = {id(module): name for name, module in modules.items()}
    found = {_source_name(name, growth) for name, _ in grown.named_modules()}
    stock = cache(lambda: dict(_with_buffers(model).named_modules()))
    for name in sorted(settings.keys() - found):  # the class of a mixture lacks these modules
        _set(None, settings[name], name)
    for name, module in grown.named_modules():
        source = _counterpart(name, modules, growth)
        if modules.get(_source_name(name, growth)) is source:
            _set(module, settings.get(names[id(source)], {}), names[id(source)] or "the model itself")
        module.training = source.training
        for attribute in CARRIED:
            if attribute in vars(source):
                setattr(module, attribute, getattr(source, attribute))
        for key, buffer in source._buffers.items():
            mine = module._buffers.get(key)
            if buffer is not None and mine is not None:
                module._buffers[key] = mine.to(buffer.dtype)
        if not growth.settings:  # which change the config, and with it what the class computes from it
            _check_buffers(module, source, names[id(source)], stock)


def _computed_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two buffers hold the same values up to the rounding of what computed them.

    A matrix may hold sines, one row per position: the rounding of an angle grows with the position.
    """
    import torch

    if not (other.is_floating_point() or other.is_complex()):  # rotary factors may be complex
        return one.equal(other)
    tolerance = max(1e-5, 2 * torch.finfo(other.dtype).eps)
    angles = torch.arange(len(other), device=other.device)[:, None] if other.ndim == 2 else 0
    return bool(((one == other) | ((one - other).abs() <= tolerance * (other.abs() + angles))).all())


def _with_buffers(model: PreTrainedModel) -> PreTrainedModel:
    """The model that the class builds from the config, with its buffers, and all parameters on the meta device."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        built: PreTrainedModel = type(model)(copy.deepcopy(model.config))
    return built


def _check_buffers(
    module: nn.Module, source: nn.Module, name: str, stock: Callable[[], Mapping[str, nn.Module]]
) -> None:
    """Check that buffers, such as those of rotary embeddings, are those that the class computes from the config.

    Args:
        module: of the grown model, which has other values where they depend on a size that grows.
        source: its counterpart in the source. name: of the counterpart.
        stock: returns the modules that the class builds from the source's config, by name.

    Raises:
        CheckpointError: a buffer differs, because it or the config was changed after the model was built.
    """
    if type(source) is not type(module) or next(source.parameters(recurse=False), None) is not None:
        return
    by_prompt = re.search("dynamic|longrope", str(getattr(source, "rope_type", "")))
    for key, buffer in source._buffers.items():
        mine = module._buffers.get(key)
        stored = key not in source._non_persistent_buffers_set  # among the tensors of the plan, as any parameter
        if (
            stored
            or buffer is None
            or mine is None
            or mine.shape != buffer.shape
            or (by_prompt and "original" not in key)
        ):
            continue
        if _computed_alike(mine.to(buffer.device), buffer):
            continue
        computed = stock()[name]._buffers[key]
        if computed is None or not _computed_alike(computed.to(buffer.device, buffer.dtype), buffer):
            raise CheckpointError(
                f"Cannot grow this model: buffer '{key}' of '{name}' does not have the values that the config gives, "
                "which the grown model would have: one of the two was changed after the model was built. Save the "
                "model and load it again if the config is right, or correct the config."
            )


def _set(module: nn.Module | None, settings: Mapping[str, tuple[Any, Any]], name: str) -> None:
    """Set the plain attributes on a module that were set on its counterpart, which may be of another class.

    Args:
        module: of the grown model; None where it lacks one.
        settings: the value of each attribute, and the value that the class sets.
        name: of the counterpart.

    Raises:
        CheckpointError: the grown model has another value there, or lacks the attribute or the module.
    """
    for attribute, (value, default) in settings.items():
        if not is_plain(value):
            continue
        mine = getattr(module, attribute, MISSING)
        if module is None or mine != default:
            given = "nothing" if default is MISSING else repr(default)
            made = "has no such module" if module is None else "has none" if mine is MISSING else f"makes it {mine!r}"
            raise CheckpointError(
                f"Cannot grow this model: '{attribute}' of {name} was set to {value!r}, where the config gives "
                f"{given}, and the grown model {made}. Set it back, grow, and set what corresponds on the grown model; "
                "or set it in the config, save the model and load it again."
            )
        setattr(module, attribute, value)


def _counterpart(name: str, modules: Mapping[str, nn.Module], growth: Growth) -> nn.Module:
    """The module of the source from which a module of the grown model was made, or its nearest parent."""
    name = _source_name(name, growth)
    while name not in modules:
        name = name.rpartition(".")[0]
    return modules[name]


def _source_name(name: str, growth: Growth) -> str:
    """The name of a grown model's module in the source: the number of its layer is replaced."""
    outer, layers = growth.source.outer, growth.layers
    if outer and (name.startswith(outer.wrapper.passes) or not name.startswith(outer.wrapper.text)):
        return name
    lists = {one.name.partition(".{layer}")[0].rpartition(".")[2] for one in growth.source.weights if one.per_layer}
    number = re.search(rf"(?:^|\.)(?:{'|'.join(map(re.escape, lists))})\.(\d+)(?=\.|$)", name)
    return (
        name if number is None else f"{name[: number.start(1)]}{layers[int(number[1])].source}{name[number.end(1) :]}"
    )


def take_over(model: PreTrainedModel, grown: PreTrainedModel) -> None:
    """Replace a model's content by a grown model's, in place; the object keeps its own hooks and forward."""
    from torch import nn

    own = {name for name in vars(nn.Module()) if "hook" in name}
    vars(model).pop("_output_capturing_hooks_installed", None)  # transformers installs them in the new modules
    vars(model).update({name: value for name, value in vars(grown).items() if name not in own})
