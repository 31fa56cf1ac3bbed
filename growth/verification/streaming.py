"""Stock transformers models run straight from a checkpoint folder, a module's weights at a time.

The stock class is built from config.json with its parameters on the meta device. Before a module's own
forward its parameters are read from disk in the dtype of the computation, after it they are dropped, and
their memory serves the next ones of their sizes. So the code that runs is the unmodified stock forward of any
family, and memory is bounded by one module of each size (the embedding, a layer) instead of by the model.

Shape letters: rows B, positions T, hidden_size d, vocab_size V.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig, PreTrainedModel

from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.open import open_checkpoint
from growth.checkpoints.stock_parameters import (
    ParameterRecipes,
    assign,
    empty_model,
    float_dtype,
    refuse_loading,
    stock_config,
)
from growth.checkpoints.tensor_reader import Files, pieces
from growth.errors import CheckpointError
from growth.verification.float64 import proof_grade

CHUNK = 1 << 19  # elements converted at a time: what a core's cache holds

Observe = Callable[[int, Tensor], None]
Perturb = Callable[[str, Tensor], None]


def ignore(position: int, hidden: Tensor) -> None:
    """Observes nothing."""


def unchanged(name: str, weight: Tensor) -> None:
    """Perturbs nothing."""


@dataclass(frozen=True)
class Trace:
    """What one forward pass computed.

    Attributes:
        logits: (B, T, V)
        streams: the residual stream entering the first layer and leaving each layer, (B, T, d) each.
    """

    logits: Tensor
    streams: tuple[Tensor, ...]


def trace(folder: Path, tokens: Tensor, dtype: torch.dtype) -> Trace:
    """`stream` with every residual stream kept; memory grows with layers x B x T x d.

    Raises:
        CheckpointError: as `stream`.
    """
    streams: list[Tensor] = []
    logits = stream(folder, tokens, dtype, observe=lambda _, hidden: streams.append(hidden.clone()))
    return Trace(logits, tuple(streams))


def stream(
    folder: Path,
    tokens: Tensor,
    dtype: torch.dtype,
    *,
    observe: Observe = ignore,
    perturb: Perturb = unchanged,
) -> Tensor:
    """The logits (B, T, V) of a checkpoint for `tokens` (B, T), as `Stock.run` computes them.

    Args:
        folder: a checkpoint folder of a stock causal language model; code inside it is never run.
        dtype: of weights and arithmetic; float64 is proof-grade.
        observe, perturb: as `Stock.run`'s, with one perturbation for all rows.

    Raises:
        CheckpointError: as `Stock`, and as `Stock.run`.
    """
    return Stock(folder, dtype).run(tokens, observe=observe, perturbs=(perturb,))


class Stock:
    """The stock model of a checkpoint folder, to be run once or several times with bounded memory.

    Args:
        folder: a checkpoint folder of a stock causal language model; code inside it is never run.
        dtype: of weights and arithmetic; float64 is proof-grade.

    Raises:
        CheckpointError: the weights are not exactly those of the stock class, by name and by shape.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._observe: Observe = ignore
        self._perturbs: Sequence[Perturb] = (unchanged,)
        self._rows = 1  # of the batch, for each perturbation
        self._memory = _WeightPool()
        checkpoint = open_checkpoint(folder)
        with torch.no_grad(), _arithmetic(dtype):
            self._model = empty_model(folder, dtype)
            self._recipes = assign(self._model, checkpoint)
            _load_buffers(self._model, self._recipes)
            self._stream_parameters()
            _watch(self._model, lambda position, hidden: self._observe(position, hidden))

    def run(self, tokens: Tensor, *, observe: Observe = ignore, perturbs: Sequence[Perturb] = (unchanged,)) -> Tensor:
        """The logits (B, T, V) for `tokens` (B, T).

        Args:
            observe: called with 0 and the residual stream (B, T, d) entering the first decoder layer, then with
                l + 1 and the stream leaving layer l.
            perturbs: may each change a weight in place after it is read, and are called with its stored name. The
                rows of the batch are divided evenly among them, in order: each has the weights that it makes of
                those in the file, and these are read once for all of them.

        Raises:
            CheckpointError: the class reads weights of a module that it does not call.
        """
        self._observe, self._perturbs, self._rows = observe, perturbs, len(tokens) // len(perturbs)
        try:
            with torch.no_grad(), _arithmetic(self._dtype):
                logits: Tensor = self._model(input_ids=tokens, use_cache=False).logits
        except (RuntimeError, IndexError, TypeError) as error:
            raise CheckpointError(
                f"{type(self._model).__name__} cannot be run a module at a time: {error}. It reads weights of modules "
                "that it does not call, or does not take these tokens."
            ) from error
        finally:
            self._observe, self._perturbs = ignore, (unchanged,)
            self._memory.release()  # a model and its hooks hold one another, and stay until garbage is collected
        return logits

    def _stream_parameters(self) -> None:
        """Has every module read its parameters before its forward and drop them after it."""
        for prefix, module in self._model.named_modules():
            own = [name for name, parameter in module.named_parameters(recurse=False) if parameter is not None]
            if own:
                names = {name: f"{prefix}.{name}" if prefix else name for name in own}
                for name in own:  # read where it was not loaded, it is an error; a meta tensor may give garbage instead
                    module._parameters[name] = nn.Parameter(torch.empty(0, dtype=self._dtype), requires_grad=False)
                module.register_forward_pre_hook(partial(self._fill, names))
                module.forward = partial(self._forward, module, names, module.forward)
                module.register_forward_hook(partial(_drop, module._parameters.copy(), self._memory))

    def _fill(self, names: Mapping[str, str], module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for own, name in names.items():
            weight = _load(self._model, name, recipes=self._recipes, dtype=self._dtype, memory=self._memory)
            module._parameters[own] = nn.Parameter(weight, requires_grad=False)

    def _forward(
        self, module: nn.Module, names: Mapping[str, str], forward: Callable[..., Any], *inputs: Any, **keywords: Any
    ) -> Any:
        """A module's forward, once for the rows of each perturbation."""
        perturbs = self._perturbs
        if len(perturbs) == 1:
            self._perturb(perturbs[0], module, names)
            return forward(*inputs, **keywords)
        read = {own: module.get_parameter(own) for own in names}
        outputs = []
        try:
            for number, perturb in enumerate(perturbs):
                self._perturbs = (unchanged,)  # of modules within this one, whose rows are divided already
                for own, weight in read.items():
                    module._parameters[own] = nn.Parameter(weight.clone(), requires_grad=False)
                self._perturb(perturb, module, names)
                mine = partial(_rows_of, number, len(perturbs))
                outputs.append(forward(*map(mine, inputs), **{key: mine(value) for key, value in keywords.items()}))
        finally:
            self._perturbs = perturbs
            module._parameters.update(read)
        return _together(outputs, self._rows)

    def _perturb(self, perturb: Perturb, module: nn.Module, names: Mapping[str, str]) -> None:
        if perturb is not unchanged:
            for own, name in names.items():
                recipe, _ = self._recipes[name]
                perturb(recipe.sources[0][0].name, module.get_parameter(own))


def _rows_of(number: int, count: int, value: Any) -> Any:
    """The part of a module's input that belongs to one of `count` parts of the batch; what is shared stays whole."""
    if isinstance(value, tuple):
        return tuple(_rows_of(number, count, item) for item in value)
    if isinstance(value, Tensor) and value.dim() > 1 and len(value) % count == 0:
        return value.chunk(count)[number]
    return value


def _together(outputs: Sequence[Any], rows: int) -> Any:
    """What a module returns for the whole batch, from what it returned for its parts.

    rows: of each part; what a module returns once for all of them, as position embeddings are, is repeated.
    """
    first = outputs[0]
    if isinstance(first, tuple):
        return tuple(_together(items, rows) for items in zip(*outputs, strict=True))
    if not isinstance(first, Tensor):
        return first
    return torch.cat([part.expand(rows, *part.shape[1:]) if len(part) == 1 else part for part in outputs])


def check_weights(folder: Path) -> None:
    """Raises CheckpointError unless `folder` holds exactly the stock class's weights, by name and shape.

    Reads headers only.
    """
    with torch.no_grad():
        assign(empty_model(folder, torch.float32), open_checkpoint(folder, headers_only=True))


def load_stock(folder: Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """The model in memory, of the tensors that every command reads, loaded by transformers without silent repairs.

    Raises:
        CheckpointError: transformers would initialise a parameter at random or leave a tensor unread.
    """
    checkpoint = open_checkpoint(folder)
    config = stock_config(folder)
    loaded: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None,
        config=config,
        state_dict={name: read_tensor(info) for name, info in checkpoint.tensors.items()},
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below, with the other three
    )
    model: PreTrainedModel = loaded[0]
    refuse_loading(folder, loaded[1])
    with suppress(OSError):  # as transformers, which goes by the config where the file is missing or broken
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval()


def residual_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers: the list of modules as long as config.num_hidden_layers.

    Raises:
        CheckpointError: the class has no such list.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise CheckpointError(f"{type(model).__name__} has no list of its {depth} decoder layers.")


def _arithmetic(dtype: torch.dtype) -> AbstractContextManager[None]:
    return proof_grade() if dtype == torch.float64 else nullcontext()


# ------------------------------------------------- which stored tensors make which parameter


# ------------------------------------------------- reading


class _WeightPool:
    """Memory for weights, used again when a module has dropped them: touching new memory costs more than reading."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        self._lent: dict[int, Tensor] = {}

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any content."""
        size = math.prod(shape)
        free = self._free.setdefault((size, dtype), [])
        flat = free.pop() if free else torch.empty(size, dtype=dtype)
        self._lent[flat.data_ptr()] = flat
        return flat.view(shape)

    def give_back(self, weight: Tensor) -> None:
        """Takes the memory of a weight that nobody uses any more; one that is not from here is left alone."""
        flat = self._lent.pop(weight.data_ptr(), None)
        if flat is not None:
            self._free[len(flat), flat.dtype].append(flat)

    def release(self) -> None:
        """Keeps nothing for further use."""
        self._free.clear()
        self._lent.clear()


def _new(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def read_tensor(
    info: TensorInfo,
    dtype: torch.dtype | None = None,
    empty: Callable[[tuple[int, ...], torch.dtype], Tensor] = _new,
) -> Tensor:
    """One stored tensor in `dtype` (default: as stored), holding no more of the file than a chunk, or a row, at a time.

    empty: makes the tensor that is filled.

    Raises:
        CheckpointError: stored in a dtype that is not a plain float, or in a file that ends early.
    """
    stored = float_dtype(info)
    # Under proof_grade a float32 buffer would be made float64, and the file's bytes misread.
    with torch._C.DisableTorchFunction():
        tensor = empty(info.shape, dtype or stored)
        if not info.bytes:
            return tensor
        flat, width = tensor.view(-1), math.prod(info.shape[1:])
        for start, part in pieces(Files({info.name: info}), info, CHUNK * stored.itemsize):
            values = torch.frombuffer(part, dtype=stored)
            flat[start * width : start * width + len(values)].copy_(values)
    return tensor


def _load(
    model: PreTrainedModel, entry: str, *, recipes: ParameterRecipes, dtype: torch.dtype, memory: _WeightPool
) -> Tensor:
    recipe, name = recipes[entry]
    empty = memory.take if recipe.converter is None else _new  # a converter copies what it is given
    return recipe.make(model, lambda info: read_tensor(info, dtype, empty))[name]


def _load_buffers(model: PreTrainedModel, recipes: ParameterRecipes) -> None:
    for entry, buffer in model.named_buffers():
        if entry in recipes:
            recipe, name = recipes[entry]
            buffer.copy_(recipe.make(model, read_tensor)[name])


# ------------------------------------------------- hooks


def _drop(
    empty: Mapping[str, nn.Parameter | None],
    memory: _WeightPool,
    module: nn.Module,
    inputs: tuple[Any, ...],
    output: Any,
) -> None:
    returned = {value.untyped_storage().data_ptr() for value in _tensors(output)}
    for parameter in module._parameters.values():
        if parameter is not None and parameter.data_ptr() not in returned:
            memory.give_back(parameter)
    module._parameters.update(empty)


def _tensors(output: Any) -> list[Tensor]:
    """The tensors that a module returns, which may be its own weights."""
    if isinstance(output, Mapping):
        output = list(output.values())
    values = output if isinstance(output, tuple | list) else [output]
    return [value for value in values if isinstance(value, Tensor)]


def _watch(model: PreTrainedModel, observe: Observe) -> None:
    layers = residual_layers(model)
    layers[0].register_forward_pre_hook(partial(_observe_input, observe), with_kwargs=True)
    for position, layer in enumerate(layers, 1):
        layer.register_forward_hook(partial(_observe_output, observe, position))


def _observe_input(observe: Observe, layer: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
    observe(0, inputs[0] if inputs else keywords["hidden_states"])


def _observe_output(observe: Observe, position: int, layer: nn.Module, inputs: Any, output: Any) -> None:
    observe(position, output[0] if isinstance(output, tuple) else output)
