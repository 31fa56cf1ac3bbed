"""What the modules of a small stock model do, seen by running it: which norm feeds which projection, and how."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from growth.errors import ConfigError

Kind = Literal["embedding", "norm", "linear", "other"]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module that has parameters or is a norm."""

    name: str
    module: nn.Module
    read: Tensor
    written: Tensor

    @property
    def kind(self) -> Kind:
        """What it computes."""
        if isinstance(self.module, nn.Embedding):
            return "embedding"
        if "norm" in type(self.module).__name__.lower():
            return "norm"
        return "linear" if isinstance(self.module, nn.Linear) or is_transposed(self.module) else "other"

    def feeds(self, other: Call) -> bool:
        """Whether another call reads what this one writes, as it is or in another shape."""
        return self.written.data_ptr() == other.read.data_ptr() and self.written.numel() == other.read.numel()


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear map is stored (in, out)."""
    return type(module).__name__ == "Conv1D"


def calls_of(model: PreTrainedModel, tokens: Tensor) -> list[Call]:
    """The calls of one forward, in their order."""
    calls: list[Call] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, result: Any) -> None:
            if arguments and isinstance(arguments[0], Tensor) and isinstance(result, Tensor):
                calls.append(Call(name, module, arguments[0], result))

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if [*module.parameters(recurse=False)] or "norm" in type(module).__name__.lower()
    ]
    with torch.no_grad():
        model(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return calls


@dataclass(frozen=True, eq=False)
class LayerRoles:
    """The calls in a layer of a decoder, by what they are for; names are those inside the layer.

    attention: the name of its module.
    inputs, output: the projections of queries, keys and values, and the output projection.
    inner, outer: the MLP's projections from the stream, and the one to it.
    before, after: the norms on the inputs and outputs of attention and MLP.
    qk_norms: the norms of queries and of keys.
    """

    prefix: str
    attention: str
    inputs: Sequence[Call]
    output: Call
    inner: Sequence[Call]
    outer: Call | None
    before: Sequence[Call]
    after: Sequence[Call]
    qk_norms: Sequence[Call]

    @property
    def norms(self) -> Sequence[Call]:
        """All norms over the stream."""
        return (*self.before, *self.after)

    def inside(self, call: Call) -> str:
        """The name of a call's module inside the layer."""
        return call.name.removeprefix(f"{self.prefix}.")


def layers_of(model: PreTrainedModel) -> str:
    """The name of the list of layers.

    Raises:
        ConfigError: the model has none.
    """
    depth = model.config.get_text_config().num_hidden_layers
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, nn.ModuleList) and len(module) == depth and [*module.parameters()]:
            return name
    raise ConfigError(f"{type(model).__name__} has no list of {depth} layers; write its table by hand.")


def layer_of(model: PreTrainedModel, calls: Sequence[Call], index: int = 1) -> LayerRoles:
    """The calls of one layer by their roles.

    Raises:
        ConfigError: it has no attention that begins and ends with linear maps, or no norms on its branches.
    """
    prefix = f"{layers_of(model)}.{index}"
    own = [call for call in calls if call.name.startswith(f"{prefix}.")]
    attention = _attention(model, prefix)
    within = [call for call in own if attention and call.name.startswith(f"{prefix}.{attention}.")]
    linear = [call for call in within if call.kind == "linear"]
    if len(linear) not in (2, 4):
        found = ", ".join(call.name.removeprefix(f"{prefix}.") for call in own)
        raise ConfigError(
            f"{prefix} of {type(model).__name__} has no attention with one or three projections of the stream and one "
            f"to it; it calls {found}. Write its table by hand."
        )
    *inputs, output = linear
    mlp = [call for call in own if call not in within and call.kind != "norm"]
    norms = [call for call in own if call not in within and call.kind == "norm"]
    maps = [call for call in mlp if call.kind == "linear" and "expert" not in call.name]
    before = [norm for first in (inputs[0], *mlp[:1]) for norm in norms if norm.feeds(first)]
    after = [norm for last in (output, *mlp[-1:]) for norm in norms if last.feeds(norm)]
    if not before and not after:
        raise ConfigError(
            f"No norm of {prefix} in {type(model).__name__} reads what a branch writes, or writes what one reads: it "
            "normalises the stream itself. Write its table by hand (families/opt.py has such layers)."
        )
    return LayerRoles(
        prefix,
        attention,
        _sorted(inputs),
        output,
        maps[:-1],
        maps[-1] if maps else None,
        list(dict.fromkeys(before)),
        after,
        [call for call in within if call.kind == "norm" and re.match(r"(q|k|query|key)_", call.name.split(".")[-1])],
    )


def _attention(model: PreTrainedModel, prefix: str) -> str:
    """The name of the attention inside a layer, or inside a wrapper of it there (GPT-Neo)."""
    for name, module in model.get_submodule(prefix).named_children():
        if re.search("att", name) and "norm" not in name and [*module.parameters()]:
            inner = [child for child, _ in module.named_children()]
            return f"{name}.{inner[0]}" if len(inner) == 1 else name
    return ""


def _sorted(inputs: Sequence[Call]) -> list[Call]:
    """Queries, keys and values in this order, by the letter in their names."""
    order = {
        call.name: "qkv".find(next((c for c in call.name.rpartition(".")[2].lower() if c in "qkv"), ""))
        for call in inputs
    }
    return sorted(inputs, key=lambda call: order[call.name])


# ------------------------------------------------- what a norm does


def is_layer_norm(norm: Call) -> bool:
    """Whether a norm subtracts the mean: adding a number to all channels changes nothing."""
    return bool(torch.allclose(norm.module(norm.read), norm.module(norm.read + 1), atol=1e-3))


def offset_of(norm: Call) -> float:
    """What the model adds to the stored gain: what it multiplies by where that is zero."""
    gain = getattr(norm.module, "weight", None)
    if gain is None:
        return 0.0
    with torch.no_grad():
        kept, bias = gain.clone(), getattr(norm.module, "bias", None)
        gain.fill_(1.0)
        one = norm.module(norm.read) - (0 if bias is None else bias)
        gain.fill_(0.0)
        none = norm.module(norm.read) - (0 if bias is None else bias)
        gain.copy_(kept)
    if not none.any():
        return 0.0
    rest = one - none
    return round(float((none * rest).sum() / (rest * rest).sum()), 6)
