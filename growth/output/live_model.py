"""Which models in memory can grow, and what a grown model takes over from its source (docs/models-in-memory.md).

A model in memory is more than its config and weights: each tensor has a dtype and may be frozen, modules have modes,
settings, hooks and adapters. Each of these is carried over, or refused by name before anything is changed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, cast

from growth.errors import CheckpointError
from growth.operators.base import Layer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from growth.planning.plan import Plan

Hooks = Literal["refuse", "drop"]

WRAPPERS = {
    "OptimizedModule": "a model wrapped by torch.compile: grow model._orig_mod, and compile the result",
    "DataParallel": "a model wrapped by DataParallel: grow model.module, and wrap the result",
    "DistributedDataParallel": "a model wrapped by DistributedDataParallel: grow model.module, and wrap the result",
    "FullyShardedDataParallel": (
        "a model sharded by FSDP: gather a full state dict, load it into an unwrapped model and grow that, or grow the "
        "checkpoint's files (growth grow)"
    ),
    "DeepSpeedEngine": "a model wrapped by DeepSpeed: save it, and grow the checkpoint's files (growth grow)",
}
CARRIED = ("gradient_checkpointing", "_gradient_checkpointing_func")  # attributes of modules, copied as they are
OWN = ("transformers.",)  # packages whose hooks the grown model installs itself
# attributes that other rules carry over, reset or refuse
ELSEWHERE = ("forward", "generation_config", "hf_device_map", "model_tags", "name_or_path", *CARRIED)
MISSING = object()  # the value of an attribute that a module does not have
Settings = dict[str, dict[str, tuple[Any, Any]]]  # module -> attribute -> (value, value that the class sets)


# ------------------------------------------------- what cannot grow


def check_model(model: Any) -> None:
    """Check that a model can grow as it is.

    Raises:
        CheckpointError: the model is wrapped (torch.compile, DataParallel, FSDP), has PEFT adapters or no
            language-model head, has quantised, sharded, offloaded or meta weights, has modules that its class does not
            build, or ties weights otherwise than its config says.
    """
    from transformers import PreTrainedModel

    for reason in _wrapped(model):
        raise CheckpointError(f"Cannot grow {reason}.")
    if not isinstance(model, PreTrainedModel):
        raise CheckpointError(
            f"Cannot grow a {_type(model)}: load a causal language model of transformers "
            "(AutoModelForCausalLM.from_pretrained), or name a checkpoint's folder."
        )
    for reason in (*_adapted(model), *_headless(model), *_quantised(model), *_placed(model), *_compiled(model)):
        raise CheckpointError(f"Cannot grow {reason}.")
    for reason in (*_tied_otherwise(model), *_rebuilt(model)):
        raise CheckpointError(f"Cannot grow this {type(model).__name__}: {reason}.")


def check_place() -> None:
    """Check that new tensors have values.

    Raises:
        CheckpointError: torch's default device is "meta".
    """
    import torch

    if torch.get_default_device().type == "meta":
        raise CheckpointError(
            "Cannot grow a model where torch's default device is meta, which holds no values: leave the block of "
            "torch.device('meta'), or call torch.set_default_device('cpu'). For names, shapes and config alone, use "
            "growth.plan(recipe, model)."
        )


def check_hooks(model: PreTrainedModel, *, own: bool = True) -> None:
    """Check that a model has no hooks, replaced methods or objects in modules, which new modules cannot take over.

    Args:
        model: the model.
        own: whether to check the model itself, and not only its submodules and parameters.

    Raises:
        CheckpointError: it has one that is not of transformers, which installs its own again.
    """
    remedy = "Remove it and set it again on the grown model" + (
        ", or grow without it: grow_model(..., hooks='drop')." if own else "."
    )
    settings = _settings(model)
    for name, module in model.named_modules():
        if module is model and not own:
            continue
        found = [f"{kind} {_function(hook)}" for kind, hook in _hooks_of(module) if not _is_own(hook)]
        found += [f"a forward of its own, {_function(vars(module)['forward'])}"] if "forward" in vars(module) else []
        found += [
            f"an attribute '{attribute}' of its own, {_described(value)}"
            for attribute, (value, _) in settings.get(name, {}).items()
            if not _is_plain(value)
        ]
        if found:
            where = f"module '{name}'" if name else "the model itself"
            raise CheckpointError(
                f"Cannot grow this {type(model).__name__}: {where} has {found[0]}, which new modules would not have. "
                + remedy
            )
    for name, parameter in model.named_parameters():
        hooks = {**(parameter._backward_hooks or {}), **(parameter._post_accumulate_grad_hooks or {})}
        for hook in hooks.values():
            raise CheckpointError(
                f"Cannot grow this {type(model).__name__}: parameter '{name}' has the gradient hook {_function(hook)}, "
                "which new parameters would not have. " + remedy
            )


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Check that all weights are finite.

    Raises:
        CheckpointError: a tensor holds NaN or Inf; the first is named.
    """
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"'{name}' holds NaN or Inf, and a model grown from it would be broken: go back to a checkpoint from "
                "before it did."
            )


def _wrapped(model: Any) -> Iterator[str]:
    if type(model).__module__.split(".")[0] == "peft":
        yield _PEFT
    for kind in type(model).__mro__:
        if kind.__name__ in WRAPPERS and kind.__module__.startswith(("torch.", "deepspeed.")):
            yield WRAPPERS[kind.__name__]


_PEFT = (
    "a model with PEFT adapters: merge them into the weights first (merge_and_unload()) and grow what that returns, or "
    "grow the base model and train new adapters"
)


def _adapted(model: PreTrainedModel) -> Iterator[str]:
    layers = (module for module in model.modules() if type(module).__module__.split(".")[0] == "peft")
    if getattr(model, "_hf_peft_config_loaded", False) or next(layers, None) is not None:
        yield _PEFT


def _headless(model: PreTrainedModel) -> Iterator[str]:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    expected = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)
    expected = expected if isinstance(expected, tuple) else (expected,)
    if expected != (None,) and not isinstance(model, expected):
        name = expected[0].__name__
        prefix = expected[0].base_model_prefix
        yield (
            f"{type(model).__name__}, which is not a causal language model: load {name} "
            f"(AutoModelForCausalLM.from_pretrained) and grow that; its base model is the result's .{prefix}"
        )


def _quantised(model: PreTrainedModel) -> Iterator[str]:
    remedy = "load it dequantised (from_pretrained without quantization_config, or model.dequantize())"
    if getattr(model.config, "quantization_config", None) or getattr(model, "is_quantized", False):
        yield f"a quantised model ({type(model).__name__} with a quantization_config): {remedy}"
    for name, tensor in model.named_parameters():
        if _type(tensor) not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
            if hasattr(tensor, "device_mesh"):
                yield f"'{name}', which is a {_type(tensor)}, sharded over processes: gather a full state dict first"
            yield f"'{name}', which is a {_type(tensor)} and not a plain tensor: {remedy}"
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            yield f"'{name}', which is stored as {tensor.dtype}: {remedy}"


def _placed(model: PreTrainedModel) -> Iterator[str]:
    devices = sorted({str(tensor.device) for tensor in model.parameters()})
    spread = {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(devices) > 1 or len(spread) > 1 or "disk" in spread:
        yield (
            f"a model that is spread over {', '.join(sorted(spread | set(devices)))}: load it on one device (without "
            "device_map), or grow the checkpoint's files (growth grow), which needs little memory"
        )
    if devices == ["meta"]:
        yield (
            "a model on the meta device, which has no values: load it with its weights, or plan from the checkpoint's "
            "folder, of which only headers are read"
        )


def _compiled(model: PreTrainedModel) -> Iterator[str]:
    if any(module._compiled_call_impl is not None for module in model.modules()):
        yield "a model after model.compile(), whose graph is of the old sizes: grow it first, and compile the result"


def _tied_otherwise(model: PreTrainedModel) -> Iterator[str]:
    """Reasons where two names share a parameter and the config does not tie them, or the reverse."""
    tied = getattr(model, "all_tied_weights_keys", {})
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, other in tied.items():
        if name in named and other in named and named[name] is not named[other]:
            yield (
                f"its config ties '{name}' to '{other}', and here they are two parameters. Call model.tie_weights(), "
                "or set config.tie_word_embeddings = False, save the model and load it again"
            )
    first: dict[int, str] = {}
    for name, parameter in named.items():
        other = first.setdefault(id(parameter), name)
        if other != name and tied.get(name, tied.get(other)) is None:
            yield (
                f"'{name}' and '{other}' are one parameter, and its config does not tie them. Set "
                "config.tie_word_embeddings = True, save the model and load it again, or give each its own parameter"
            )


def _rebuilt(model: PreTrainedModel) -> Iterator[str]:
    """Reasons where a module or buffer is not one that the class builds, so that the grown model would lack it."""
    stock = _stock(model)
    built = {name: type(module) for name, module in stock.named_modules()}
    for name, module in model.named_modules():
        if built.get(name) is not type(module):
            expected = "no module" if name not in built else f"a {built[name].__name__}"
            yield (
                f"'{name}' is a {_type(module)}, and the class builds {expected} there, which is what the grown model "
                "would have. Undo the replacement, grow, and replace it again"
            )
    known = dict(stock.named_buffers())
    for name, _ in model.named_buffers():
        if name not in known:
            yield f"buffer '{name}' is not one that the class builds. Remove it, and add it to the grown model"


def _stock(model: PreTrainedModel) -> PreTrainedModel:
    """The model that the class builds from the config, on the meta device.

    Raises:
        CheckpointError: the class needs more than the config.
    """
    import torch

    try:
        with torch.device("meta"):
            return cast("PreTrainedModel", type(model)(copy.deepcopy(model.config)))
    except TypeError as error:
        raise CheckpointError(
            f"Cannot grow this {_type(model)}: its class cannot be built from the config alone ({error}). Grow a model "
            "of the class that it is derived from."
        ) from None


def _settings(model: PreTrainedModel) -> Settings:
    """The attributes of modules that differ from what the class sets by the config."""
    from torch import nn

    stock = dict(_stock(model).named_modules())
    torchs = vars(nn.Module()).keys()
    found: Settings = {}
    for name, module in model.named_modules():
        expected = vars(stock[name]) if name in stock else {}
        for attribute, value in vars(module).items():
            if attribute in torchs or attribute in ELSEWHERE or _is_private(attribute):
                continue
            default = expected.get(attribute, MISSING)
            if _was_set(value, default):
                found.setdefault(name, {})[attribute] = value, default
    return found


def _is_private(attribute: str) -> bool:
    """Whether an attribute is internal to the library; a loss function set by a user has a private name too."""
    return attribute.startswith("_") and attribute != "_loss_function"


def _was_set(value: Any, default: Any) -> bool:
    """Whether an attribute differs from the default; tensors are compared as buffers."""
    import torch

    if isinstance(value, torch.Tensor):
        return False
    if type(value) is not type(default):
        return True
    if _is_plain(value):
        return bool(value != default)
    return callable(value) and _function(value) != _function(default)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _described(value: Any) -> str:
    return _function(value) if callable(value) else f"a {_type(value)}"


def _hooks_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    if hasattr(module, "_hf_hook"):
        yield "accelerate's hook", module._hf_hook
    for attribute, value in vars(module).items():
        if attribute.endswith("_hooks") and isinstance(value, Mapping):
            kind = attribute.strip("_").removesuffix("s").replace("_", " ")
            for hook in value.values():
                yield f"the {kind}", hook


def _is_own(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(OWN)


def _function(hook: Any) -> str:
    function = getattr(hook, "__func__", getattr(hook, "func", hook))
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(hook).__qualname__)}"


def _type(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


# ------------------------------------------------- the grown model


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


def _loaded(model: PreTrainedModel, plan: Plan, weights: Mapping[str, Tensor], dtype: torch.dtype) -> PreTrainedModel:
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    from growth.output.contents import with_dtype

    config, kind = type(model.config), type(model)
    if plan.target.model_type != model.config.model_type:
        config = CONFIG_MAPPING[plan.target.model_type]  # a dense model became a mixture
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[config]
    grown, info = kind.from_pretrained(
        None,
        config=config.from_dict(with_dtype(plan.config, {row.dtype for row in plan.tensors})),
        state_dict=dict(weights),
        dtype=dtype,
        attn_implementation=model.config._attn_implementation,
        experts_implementation=getattr(model.config, "_experts_implementation", None),
        output_loading_info=True,
    )
    assert not any(info.values()), f"the class does not take the grown weights as they are: {info}"
    return grown


def files_of(model: PreTrainedModel) -> dict[str, list[str]]:
    """The names that files have for each parameter, by its name in the model; tied parameters appear once."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    parameters = dict(model.named_parameters())
    # each parameter is filled with its number, so that the conversion of transformers shows where it goes in files
    numbered = {
        name: torch.tensor(n, dtype=torch.int32).expand(parameter.shape)
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
    of = {row.target: by_file.get(row.source.name) for row in plan.tensors}
    found = {
        name: [source for file in files if (source := of[file]) is not None] for name, files in files_of(grown).items()
    }
    return {name: list({id(source): source for source in sources}.values()) for name, sources in found.items()}


def stored_types(grown: PreTrainedModel, model: PreTrainedModel, plan: Plan) -> dict[str, str]:
    """The type, as safetensors names it, that the plan gives each parameter of the grown model, by name."""
    types = {row.target: row.dtype for row in plan.tensors}
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
    _carry_modules(grown, model, plan.growth.layers)


def _carry_modules(grown: PreTrainedModel, model: PreTrainedModel, layers: tuple[Layer, ...]) -> None:
    """Take over settings, training mode, gradient checkpointing and dtypes of buffers, module by module."""
    modules, settings = dict(model.named_modules()), _settings(model)
    names = {id(module): name for name, module in modules.items()}
    found = {_source_name(name, layers) for name, _ in grown.named_modules()}
    for name in sorted(settings.keys() - found):  # the class of a mixture lacks these modules
        _set(None, settings[name], name)
    for name, module in grown.named_modules():
        source = _counterpart(name, modules, layers)
        if modules.get(_source_name(name, layers)) is source:
            _set(module, settings.get(names[id(source)], {}), names[id(source)] or "the model itself")
        module.training = source.training
        for attribute in CARRIED:
            if attribute in vars(source):
                setattr(module, attribute, getattr(source, attribute))
        for key, buffer in source._buffers.items():
            mine = module._buffers.get(key)
            if buffer is not None and mine is not None:
                module._buffers[key] = mine.to(buffer.dtype)
        _check_buffers(module, source, names[id(source)])


def _check_buffers(module: nn.Module, source: nn.Module, name: str) -> None:
    """Check that buffers, such as those of rotary embeddings, are those that the class computes from the config.

    Raises:
        CheckpointError: a buffer differs, because it or the config was changed after the model was built.
    """
    import torch

    if type(source) is not type(module) or next(source.parameters(recurse=False), None) is not None:
        return
    by_prompt = re.search("dynamic|longrope", str(getattr(source, "rope_type", "")))
    for key, buffer in source._buffers.items():
        mine = module._buffers.get(key)
        if buffer is None or mine is None or mine.shape != buffer.shape or (by_prompt and "original" not in key):
            continue
        tolerance = max(1e-5, 2 * torch.finfo(buffer.dtype).eps) if buffer.is_floating_point() else 0.0
        if not torch.allclose(mine.to(buffer.device), buffer, rtol=tolerance, atol=0.0):
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
        if not _is_plain(value):
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


def _counterpart(name: str, modules: Mapping[str, nn.Module], layers: tuple[Layer, ...]) -> nn.Module:
    """The module of the source from which a module of the grown model was made, or its nearest parent."""
    name = _source_name(name, layers)
    while name not in modules:
        name = name.rpartition(".")[0]
    return modules[name]


def _source_name(name: str, layers: tuple[Layer, ...]) -> str:
    """The name of a grown model's module in the source: its layer, the first number in it, is replaced."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", lambda number: str(layers[int(number[0])].source), name, count=1)


def take_over(model: PreTrainedModel, grown: PreTrainedModel) -> None:
    """Replace a model's content by a grown model's, in place; the object keeps its own hooks and forward."""
    from torch import nn

    own = {name for name in vars(nn.Module()) if "hook" in name}
    vars(model).pop("_output_capturing_hooks_installed", None)  # transformers installs them in the new modules
    vars(model).update({name: value for name, value in vars(grown).items() if name not in own})
