"""Which models in memory can grow; each of the others is refused by name, before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from growth.errors import CheckpointError
from growth.output.module_settings import changed_settings, described, function_name, is_plain, stock_model, type_name

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


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
OWN = ("transformers.",)  # packages whose hooks the grown model installs itself
_PEFT = (
    "a model with PEFT adapters: merge them into the weights first (merge_and_unload()) and grow what that returns, or "
    "grow the base model and train new adapters"
)


def check_model(model: Any) -> None:
    """Check that a model can grow as it is.

    Raises:
        CheckpointError: the model is wrapped (torch.compile, DataParallel, FSDP), has PEFT adapters or no
            language-model head, has quantised, sharded, offloaded or meta weights, has modules that its class does not
            build, or ties weights otherwise than its config says.
    """
    if isinstance(model, str | Path):
        raise CheckpointError(
            f"'{model}' names a model, and a model in memory is needed: load it by from_pretrained, or grow the folder "
            "into a new one with growth.grow."
        )
    for reason in _reasons(model):
        raise CheckpointError(f"Cannot grow {reason}.")


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
        CheckpointError: it has one that transformers does not install again by itself.
    """
    for reason in _wrapped(model):
        raise CheckpointError(f"Cannot grow {reason}.")
    remedy = "Remove it and set it again on the grown model" + (
        ", or grow without it: grow_model(..., hooks='drop')." if own else "."
    )
    settings = changed_settings(model)
    for name, module in model.named_modules():
        if module is model and not own:
            continue
        found = [f"{kind} {function_name(hook)}" for kind, hook in _hooks_of(module) if not _is_own(hook)]
        found += (
            [f"a forward of its own, {function_name(vars(module)['forward'])}"] if "forward" in vars(module) else []
        )
        found += [
            f"an attribute '{attribute}' of its own, {described(value)}"
            for attribute, (value, _) in settings.get(name, {}).items()
            if not is_plain(value)
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
                f"Cannot grow this {type(model).__name__}: parameter '{name}' has the gradient hook "
                f"{function_name(hook)}, which new parameters would not have. " + remedy
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


def _reasons(model: Any) -> Iterator[str]:
    """What `check_model` refuses, each as a phrase that names the model or a part of it, and the remedy."""
    from transformers import PretrainedConfig, PreTrainedModel

    yield from _wrapped(model)
    if isinstance(model, PretrainedConfig):
        yield (
            f"a {type_name(model)}, which has no weights: give the model that it is of, or, to begin without weights, "
            "AutoModelForCausalLM.from_config(config)"
        )
    elif not isinstance(model, PreTrainedModel):
        yield (
            f"a {type_name(model)}: load a causal language model of transformers "
            "(AutoModelForCausalLM.from_pretrained); grow_model takes the model first, and plan the recipe"
        )
    if getattr(model, "_hf_peft_config_loaded", False) or any(map(_is_peft, model.modules())):
        yield _PEFT
    for find in (_headless, _quantised, _placed, _compiled):
        yield from find(model)
    for find in (_tied_otherwise, _rebuilt):
        yield from (f"this {type(model).__name__}: {reason}" for reason in find(model))


def _wrapped(model: Any) -> Iterator[str]:
    if _is_peft(model):
        yield _PEFT
    for kind in type(model).__mro__:
        if kind.__name__ in WRAPPERS and kind.__module__.startswith(("torch.", "deepspeed.")):
            yield WRAPPERS[kind.__name__]


def _is_peft(module: Any) -> bool:
    return type(module).__module__.split(".")[0] == "peft"


def _headless(model: PreTrainedModel) -> Iterator[str]:
    from growth.checkpoints.stock_parameters import auto_class

    auto = auto_class(model.config)
    expected = auto._model_mapping.get(type(model.config), None)
    expected = expected if isinstance(expected, tuple) else (expected,)
    if expected != (None,) and not isinstance(model, expected):
        name = expected[0].__name__
        prefix = expected[0].base_model_prefix
        yield (
            f"{type(model).__name__}, which is not a causal language model: load {name} "
            f"({auto.__name__}.from_pretrained) and grow that; its base model is the result's .{prefix}"
        )


def _quantised(model: PreTrainedModel) -> Iterator[str]:
    remedy = "load it dequantised (from_pretrained without quantization_config, or model.dequantize())"
    if getattr(model.config, "quantization_config", None) or getattr(model, "is_quantized", False):
        yield f"a quantised model ({type(model).__name__} with a quantization_config): {remedy}"
    for name, tensor in model.named_parameters():
        if type_name(tensor) not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
            if hasattr(tensor, "device_mesh"):
                yield f"'{name}', a {type_name(tensor)} sharded over processes: gather a full state dict first"
            yield f"'{name}', which is a {type_name(tensor)} and not a plain tensor: {remedy}"
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
    stock = stock_model(model)
    built = {name: type(module) for name, module in stock.named_modules()}
    for name, module in model.named_modules():
        if built.get(name) is not type(module):
            expected = "no module" if name not in built else f"a {built[name].__name__}"
            yield (
                f"'{name}' is a {type_name(module)}, and the class builds {expected} there, which is what the grown "
                "model would have. Undo the replacement, grow, and replace it again"
            )
    known = dict(stock.named_buffers())
    for name, _ in model.named_buffers():
        if name not in known:
            yield f"buffer '{name}' is not one that the class builds. Remove it, and add it to the grown model"


def _hooks_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    if hasattr(module, "_hf_hook"):
        yield "accelerate's hook", module._hf_hook
    for attribute, value in vars(module).items():
        if attribute.endswith("_hooks") and isinstance(value, Mapping):
            kind = attribute.strip("_").removesuffix("s").replace("_", " ")
            for hook in value.values():
                yield f"the {kind}", getattr(hook, "hook", hook)  # torch wraps those that change a state dict


def _is_own(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(OWN)
