"""Stock transformers models run straight from a checkpoint folder, one module's weights at a time.

The stock class is built from config.json with its parameters on the meta device. A module's parameters are read from
disk just before its forward, in the dtype of the computation, and dropped after it. So the code that runs is the
unmodified stock forward of any family, and memory is bounded by the largest module (the embedding, a layer's weight)
instead of by the model.

Shape letters: rows B, positions T, hidden_size d, vocab_size V.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.open import as_checkpoint
from growth.checkpoints.stock_parameters import (
    assign,
    empty_model,
    float_dtype,
    refuse_loading,
    stock_class,
    stock_config,
)
from growth.checkpoints.tensor_reader import Files, pieces
from growth.errors import CheckpointError
from growth.verification.float64 import proof_grade
from growth.verification.images import Inputs, image_inputs

CHUNK = 1 << 19  # elements converted at a time, so that they stay in a core's cache

Observe = Callable[[int, Tensor], None]
Perturb = Callable[[str, Tensor], None]


def ignore(position: int, hidden: Tensor) -> None:
    """Observe nothing."""


def unchanged(name: str, weight: Tensor) -> None:
    """Perturb nothing."""


def stream(source: Path | Checkpoint, tokens: Tensor, dtype: torch.dtype, observe: Observe = ignore) -> Tensor:
    """The logits (B, T, V) of a checkpoint for `tokens` (B, T), as `StreamedModel.run` computes them.

    Raises:
        CheckpointError: as `StreamedModel` and `StreamedModel.run`.
    """
    return StreamedModel(source, dtype).run(tokens, observe=observe)


class WeightPool:
    """The memory of dropped weights, reused for weights of the same shape: to touch new memory costs more than to read.

    Runs in float64 take 1.35 x the processor time without it.
    """

    def __init__(self) -> None:
        self._free: defaultdict[tuple[tuple[int, ...], torch.dtype], list[Tensor]] = defaultdict(list)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any content."""
        free = self._free[tuple(shape), dtype]
        return free.pop() if free else torch.empty(shape, dtype=dtype)

    def give_back(self, weight: Tensor) -> None:
        """Accept a tensor that nothing refers to any more."""
        self._free[tuple(weight.shape), weight.dtype].append(weight)

    def clear(self) -> None:
        """Free all memory."""
        self._free.clear()


# of a weight that may be asked for while it is not loaded
_PROPERTIES = (*(getattr(Tensor, name).__get__ for name in ("dtype", "device")), Tensor.is_floating_point)


class _ReadElsewhere(Exception):
    """A weight was read that is not loaded. args: its full name."""


class _NotByRows(Exception):
    """A module takes other rows than the batch's: which of them are a perturbation's, the module around it decides."""


class _Unread(Tensor):
    """Stands for a weight that is not loaded, and raises `_ReadElsewhere` if it is computed with."""

    full_name: str

    @classmethod
    def standing_for(cls, name: str, dtype: torch.dtype) -> _Unread:
        """Return a tensor that stands for the weight of a full name."""
        made = torch.empty(0, dtype=dtype).as_subclass(cls)
        made.full_name = name
        return made

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PROPERTIES:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        unread = next(each for each in (*args, *(kwargs or {}).values()) if isinstance(each, _Unread))
        raise _ReadElsewhere(unread.full_name)


class StreamedModel:
    """The stock model of a checkpoint folder, to be run once or several times in bounded memory.

    Args:
        source: a checkpoint folder, opened or not, of a stock causal language model; code inside it is never run.
        dtype: the dtype of weights and arithmetic; float64 shows exactness to 1e-12.
        fixed: the names of stored tensors that are not perturbed, whose modules may divide the batch otherwise than
            into rows: those of a vision tower.

    Raises:
        CheckpointError: the weights are not exactly those of the stock class, by name and by shape.
    """

    def __init__(self, source: Path | Checkpoint, dtype: torch.dtype, fixed: Collection[str] = ()) -> None:
        self._dtype = dtype
        self._fixed = frozenset(fixed)
        self._observe: Observe = ignore
        self._perturbs: Sequence[Perturb] = (unchanged,)
        self._rows = 1  # of the batch, for each perturbation
        self._tokens = 1  # of the batch
        self._pool = WeightPool()
        self._read_by: defaultdict[type, set[str]] = defaultdict(set)  # weights of other modules, by class, inside it
        self._run_by_perturbation: set[type] = set()  # classes around modules that take other rows than the batch's
        checkpoint = as_checkpoint(source)
        with torch.no_grad(), _arithmetic(dtype):
            self._model = empty_model(stock_config(checkpoint.folder), dtype)
            self._recipes = assign(self._model, checkpoint)
            for name, buffer in self._model.named_buffers():
                if name in self._recipes:
                    buffer.copy_(self._read(name, None))
            self._layers = residual_layers(self._model)
            self._stream_parameters()
            _watch(self._model, lambda position, hidden: self._observe(position, hidden))

    def with_image(self, tokens: Tensor, seed: int) -> Inputs:
        """The inputs for tokens (B, T), with a random image in the middle of each row if the model takes images."""
        with torch.no_grad(), _arithmetic(self._dtype):
            return image_inputs(self._model, tokens, seed)

    def run(
        self, inputs: Tensor | Inputs, *, observe: Observe = ignore, perturbs: Sequence[Perturb] = (unchanged,)
    ) -> Tensor:
        """The logits (B, T, V) for tokens (B, T), or for inputs by name.

        Args:
            observe: called with 0 and the residual stream (B, T, d) entering the first decoder layer, then with
                l + 1 and the stream leaving layer l. It may change a stream in place.
            perturbs: each may change a weight in place after it is read, and is called with its stored name. The rows
                of the batch are divided evenly among them, in order. Every weight is read once for all of them.

        Raises:
            CheckpointError: the class reads weights of a module that it does not call.
        """
        named = inputs if isinstance(inputs, dict) else {"input_ids": inputs}
        self._observe, self._perturbs, self._rows = observe, perturbs, len(named["input_ids"]) // len(perturbs)
        self._tokens = named["input_ids"].numel()
        try:
            with torch.no_grad(), _arithmetic(self._dtype):
                logits: Tensor = self._model(**named, use_cache=False).logits
        except (
            RuntimeError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            _ReadElsewhere,
            _NotByRows,
        ) as error:
            raise CheckpointError(
                f"{type(self._model).__name__} cannot be run a module at a time: {error}. It reads weights of modules "
                "that it does not call, or does not take these tokens."
            ) from error
        finally:
            self._observe, self._perturbs = ignore, (unchanged,)
            self._pool.clear()  # the model and its hooks form a cycle, which lives until it is collected
        return logits[:, -named["input_ids"].shape[1] :]  # without those of an image in front of all tokens

    def _read(self, name: str, dtype: torch.dtype | None) -> Tensor:
        recipe, part = self._recipes[name]
        new = torch.empty if recipe.converter else self._pool.take  # a converter copies what it is given
        return recipe.make(self._model, lambda info: read_tensor(info, dtype, new))[part]

    def _stored(self, name: str) -> str:
        """The stored tensor, or the first of several, that makes a parameter."""
        return self._recipes[name][0].sources[0][0].name

    def _stream_parameters(self) -> None:
        """Make every module read its parameters before its forward and drop them after it.

        Modules around the decoder layers keep theirs, which they may use outside of their forward; so do lists of
        parameters, which have none, and those within torch's attention, which does not call them. Other classes read
        weights of modules within a module without calling them (the kernels of a convolution). Such a module is run
        again with these weights, and others of its class have them from the start.
        """
        kept = {module for module in self._model.modules() if any(inner is self._layers for inner in module.modules())}
        for module in self._model.modules():
            kept |= {*module.modules()} if isinstance(module, nn.MultiheadAttention | nn.ParameterList) else set()
        for prefix, module in self._model.named_modules():
            inside = f"{prefix}." if prefix else ""
            own = [name for name, parameter in module.named_parameters(recurse=False) if parameter is not None]
            if module in kept:
                module._parameters.update(
                    {name: nn.Parameter(self._read(inside + name, self._dtype), False) for name in own}
                )
                continue
            for name in own:
                module._parameters[name] = _Unread.standing_for(f"{inside}{name}", self._dtype)
            module.forward = partial(self._forward, module, inside, own, module.forward)

    def _forward(
        self,
        module: nn.Module,
        inside: str,
        own: Sequence[str],
        forward: Callable[..., Any],
        *inputs: Any,
        **keywords: Any,
    ) -> Any:
        """A module's forward with its weights read, and again with those of other modules that it turns out to read.

        It is run once for each perturbation if a module in it takes other rows than those of the batch.
        """
        others = self._read_by[type(module)]
        if len(self._perturbs) > 1 and own and not self._is_fixed(inside, own) and self._takes_other_rows(inputs):
            raise _NotByRows
        while True:
            names = [*own, *(name for name in sorted(others) if inside + name in self._recipes)]
            try:
                return self._forward_with(module, inside, names, forward, *inputs, **keywords)
            except _ReadElsewhere as read:
                name = str(read.args[0])
                if not name.startswith(inside) or name.removeprefix(inside) in others:
                    raise RuntimeError(f"'{name}' is read where it is not loaded") from None
                others.add(name.removeprefix(inside))
            except _NotByRows:
                self._run_by_perturbation.add(type(module))

    def _is_fixed(self, inside: str, names: Sequence[str]) -> bool:
        """Whether no weight of a module is perturbed."""
        return self._fixed.issuperset(self._stored(inside + name) for name in names)

    def _takes_other_rows(self, inputs: Sequence[Any]) -> bool:
        """Whether an input has several rows for each token of the batch, as experts' inputs may, or is one image's."""
        rows = [value for value in inputs if isinstance(value, Tensor) and value.dim() > 1]
        repeated = any(len(value) > self._tokens and len(value) % self._tokens == 0 for value in rows)
        return repeated or any(value.is_floating_point() and len(value) == 1 for value in rows)

    def _forward_with(
        self,
        module: nn.Module,
        inside: str,
        names: Sequence[str],
        forward: Callable[..., Any],
        *inputs: Any,
        **keywords: Any,
    ) -> Any:
        """A module's forward with weights read, once for the rows of each perturbation."""
        if not names and (len(self._perturbs) == 1 or type(module) not in self._run_by_perturbation):
            return forward(*inputs, **keywords)
        owners = {name: module.get_submodule(name.rpartition(".")[0])._parameters for name in names}
        empty = {name: parameters[name.rpartition(".")[2]] for name, parameters in owners.items()}
        is_fixed = bool(names) and self._is_fixed(inside, names) and type(module) not in self._run_by_perturbation
        outer, outputs = self._perturbs, []
        perturbs = (unchanged,) if is_fixed else outer
        read = {name: self._read(inside + name, self._dtype) for name in names}
        try:
            for number, perturb in enumerate(perturbs):
                part = partial(_rows_of, number, len(perturbs))
                if not is_fixed:
                    self._perturbs = (perturb,)  # for modules within this one
                for name, weight in read.items():
                    mine = weight.clone() if len(perturbs) > 1 else weight
                    perturb(self._stored(inside + name), mine)
                    owners[name][name.rpartition(".")[2]] = nn.Parameter(mine, requires_grad=False)
                outputs.append(forward(*map(part, inputs), **{key: part(value) for key, value in keywords.items()}))
        finally:
            self._perturbs = outer
            for name, parameter in empty.items():
                owners[name][name.rpartition(".")[2]] = parameter
        returned = {value.untyped_storage().data_ptr() for output in outputs for value in _tensors(output)}
        for name, weight in read.items():
            if not self._recipes[inside + name][0].converter and weight.untyped_storage().data_ptr() not in returned:
                self._pool.give_back(weight)
        return _together(outputs, self._rows)


def _tensors(output: Any) -> list[Tensor]:
    """The tensors that a module returns, which may be its own weights."""
    values = list(output.values()) if isinstance(output, Mapping) else output
    values = values if isinstance(values, tuple | list) else [values]
    return [value for value in values if isinstance(value, Tensor)]


def _rows_of(number: int, count: int, value: Any) -> Any:
    """The part of a module's input that belongs to one of `count` parts of the batch; what is shared stays whole."""
    if count == 1:
        return value
    if isinstance(value, tuple | list):
        return type(value)(_rows_of(number, count, item) for item in value)
    if isinstance(value, Tensor) and value.dim() > 1 and len(value) % count == 0:
        return value.chunk(count)[number]
    return value


def _together(outputs: Sequence[Any], rows: int) -> Any:
    """What a module returns for the whole batch, from what it returned for its parts of `rows` rows.

    A tensor with one row belongs to all rows of its part, as position embeddings do, and is repeated.
    """
    first = outputs[0]
    if len(outputs) == 1:
        return first
    if isinstance(first, tuple | list):
        return type(first)(_together(items, rows) for items in zip(*outputs, strict=True))
    if not isinstance(first, Tensor):
        return first
    return torch.cat([part.expand(rows, *part.shape[1:]) if len(part) == 1 else part for part in outputs])


def load_stock(source: Path | Checkpoint, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """The model in memory, loaded by transformers without silent repairs from the tensors that every command reads.

    Raises:
        CheckpointError: transformers would initialise a parameter at random or leave a tensor unread.
    """
    checkpoint = as_checkpoint(source)
    folder, config = checkpoint.folder, stock_config(checkpoint.folder)
    loaded: Any = stock_class(config).from_pretrained(
        None,
        config=config,
        state_dict={name: read_tensor(info) for name, info in checkpoint.tensors.items()},
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below, with the other three
    )
    model: PreTrainedModel = loaded[0]
    refuse_loading(folder, loaded[1])
    with suppress(OSError):  # transformers, too, falls back on the config if the file is missing or broken
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval()


def residual_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers: the list of modules as long as num_hidden_layers, in the text model of a larger model.

    Raises:
        CheckpointError: the class has no such list.
    """
    text = model.config.get_text_config()
    depth, types = text.num_hidden_layers, {model.config.model_type, text.model_type}
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    others = [part for part in parts if part.config.model_type not in types]  # such as a vision tower
    around = {module for part in others for module in part.modules()}
    for root in (model.get_decoder(), model):
        for module in root.modules():
            if isinstance(module, nn.ModuleList) and len(module) == depth and module not in around:
                return module
    raise CheckpointError(f"{type(model).__name__} has no list of its {depth} decoder layers.")


def read_tensor(info: TensorInfo, dtype: torch.dtype | None = None, new: Callable[..., Tensor] = torch.empty) -> Tensor:
    """One stored tensor in `dtype` (default: as stored), holding no more than a chunk, or a row, of the file at a time.

    `new` is called with its shape and dtype, and makes the tensor that is filled.

    Raises:
        CheckpointError: it is stored in a dtype that is not a plain float, or in a file that ends early.
    """
    stored = float_dtype(info)
    # Under proof_grade a float32 buffer would be made float64, and the file's bytes misread.
    with torch._C.DisableTorchFunction():
        tensor = new(info.shape, dtype=dtype or stored)
        if not info.bytes:
            return tensor
        flat, width = tensor.view(-1), math.prod(info.shape[1:])
        for start, part in pieces(Files({info.name: info}), info, CHUNK * stored.itemsize):
            values = torch.frombuffer(part, dtype=stored)
            flat[start * width : start * width + len(values)].copy_(values)
    return tensor


def _arithmetic(dtype: torch.dtype) -> AbstractContextManager[None]:
    return proof_grade() if dtype == torch.float64 else nullcontext()


def _watch(model: PreTrainedModel, observe: Observe) -> None:
    """Call `observe` with the residual stream that enters the first layer, and with each that leaves a layer."""

    def entering(layer: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        observe(0, inputs[0] if inputs else keywords["hidden_states"])

    def leaving(position: int, layer: nn.Module, inputs: Any, output: Any) -> None:
        observe(position, output[0] if isinstance(output, tuple | list) else output)

    layers = residual_layers(model)
    if not layers:
        _watch_without_layers(model, layers, partial(observe, 0))
        return
    layers[0].register_forward_pre_hook(entering, with_kwargs=True)
    for position, layer in enumerate(layers, 1):
        layer.register_forward_hook(partial(leaving, position))


def _watch_without_layers(model: PreTrainedModel, layers: nn.ModuleList, observe: Callable[[Tensor], None]) -> None:
    """Call `observe` with the residual stream of a model without layers.

    It is what the first module beside the empty list of layers takes that takes the stream at all (such as the final
    norm), or else what comes out.
    """
    decoder = next(module for module in model.modules() if any(child is layers for child in module.children()))
    width = model.config.get_text_config().hidden_size
    seen: list[bool] = []

    def entering(module: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        for given in (*inputs, *keywords.values()):
            if not seen and isinstance(given, Tensor) and given.is_floating_point() and given.shape[-1] == width:
                seen.append(True)
                observe(given)

    def leaving(module: nn.Module, inputs: Any, output: Any) -> None:
        if not seen:
            observe(output[0])
        seen.clear()

    for child in decoder.children():
        child.register_forward_pre_hook(entering, with_kwargs=True)
    decoder.register_forward_hook(leaving)
