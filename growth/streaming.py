"""Stock transformers models run straight from a checkpoint folder, a module's weights at a time.

The stock class is built from config.json with its parameters on the meta device. Before a module's own
forward its parameters are read from disk in the dtype of the computation, after it they are dropped, and
their memory serves the next ones of their sizes. So the code that runs is the unmodified stock forward of any
family, and memory is bounded by one module of each size (the embedding, a layer) instead of by the model.

Shape letters: rows B, positions T, hidden_size d, vocab_size V.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from growth.checkpoint import Checkpoint, TensorInfo
from growth.config import LARGEST_DEPTH
from growth.errors import CheckpointError, ConfigError
from growth.precision import proof_grade
from growth.published import check_repeated, open_published
from growth.reading import Files, pieces
from growth.tensors import DTYPES

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
        self._memory = _Memory()
        checkpoint = open_published(folder)
        check_repeated(checkpoint)
        with torch.no_grad(), _arithmetic(dtype):
            self._model = _empty_model(folder, dtype)
            self._recipes = _assign(self._model, checkpoint)
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
        _assign(_empty_model(folder, torch.float32), open_published(folder))


def load_stock(folder: Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """The model as `AutoModelForCausalLM.from_pretrained` loads it, in memory and without silent repairs.

    Raises:
        CheckpointError: transformers would initialise a parameter at random or leave a tensor unread.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below, with the other three
        local_files_only=True,
        trust_remote_code=False,
    )
    model: PreTrainedModel = loaded[0]
    _refuse(folder, loaded[1])
    return model.eval()


def stock_config(folder: Path) -> PreTrainedConfig:
    """config.json as the stock class reads it, every size under its standard name as well.

    Raises:
        ConfigError: transformers has no stock class for it, or it has more layers than any model.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the config classes check their values in ways of their own
        raise ConfigError(f"transformers has no stock model for {folder / 'config.json'}: {error}") from None
    depth = getattr(config.get_text_config(), "num_hidden_layers", None) or 0
    if depth > LARGEST_DEPTH:  # a module each, whatever tensors there are
        raise ConfigError(f"{folder / 'config.json'} has {depth:,} layers; no model has above {LARGEST_DEPTH:,}.")
    return config


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


def _empty_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    return _empty(stock_config(folder), dtype)


def _empty(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    try:
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=dtype,
                attn_implementation="eager",  # the one path that every family has in every dtype
                experts_implementation="eager",  # grouped matmul has no float64 on CPU
                trust_remote_code=False,
            )
    except Exception as error:  # the model classes use values of the config as they come
        raise ConfigError(f"transformers makes no {config.model_type} of its config.json: {error!r}.") from error
    return model.eval()


# ------------------------------------------------- which stored tensors make which parameter


def stored_as(
    config: PreTrainedConfig, tensors: Iterable[TensorInfo]
) -> dict[str, tuple[tuple[int, ...], tuple[TensorInfo, ...]]]:
    """For each parameter of the stock class, tied ones included, its shape and the stored tensors that make it.

    One, of the parameter's own shape; or several of one shape that lie beside one another in row-major order:
    experts that the class keeps in one tensor.

    Raises:
        CheckpointError: missing, unexpected or mis-shaped tensors.
        ConfigError: a class that makes its parameters in some other way.
    """
    with torch.no_grad():
        model = _empty(config, torch.float32)
        recipes = _assign(model, Checkpoint(Path(type(model).__name__), {}, {info.name: info for info in tensors}))
        shapes = {entry: tuple(value.shape) for entry, value in model.state_dict().items()}
        return {entry: (shapes[entry], recipe.laid_out(model, name)) for entry, (recipe, name) in recipes.items()}


@dataclass(frozen=True)
class _Recipe:
    """How stored tensors become one entry of the model's state, in transformers' own words."""

    target: str
    sources: tuple[tuple[TensorInfo, str], ...]  # and the converter's pattern each one matched
    converter: WeightConverter | None = None

    def make(self, model: PreTrainedModel, read: Callable[[TensorInfo], Tensor]) -> dict[str, Tensor]:
        """The entries this recipe makes, by name: one, or several where a fused tensor is split."""
        if self.converter is None:
            return {self.target: read(self.sources[0][0])}
        converter = deepcopy(self.converter)  # convert() empties what it has collected
        for info, pattern in self.sources:
            reading: Any = partial(read, info)  # declared as a Future, called where it is callable
            converter.add_tensor(self.target, info.name, pattern, reading)
        made = converter.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def laid_out(self, model: PreTrainedModel, name: str) -> tuple[TensorInfo, ...]:
        """The stored tensors in the order in which they lie in an entry: one number each is sent through."""
        if self.converter is None:
            return (self.sources[0][0],)
        infos = [info for info, _ in self.sources]
        number = {info.name: float(position) for position, info in enumerate(infos)}
        ones = (1,) * len(infos[0].shape)
        order = self.make(model, lambda info: torch.full(ones, number[info.name]))[name]
        merged = all(isinstance(step, MergeModulelist | Concatenate) for step in self.converter.operations)
        alike = len({info.shape for info in infos}) == 1
        if not (merged and alike) or order.numel() != len(infos) or order.shape[2:] != ones[1:]:
            raise ConfigError(
                f"{type(model).__name__} makes '{name}' of {len(infos)} tensors by more than laying them side by side. "
                "Write the grown checkpoint (growth grow) and load that."
            )
        return tuple(infos[int(position)] for position in order.flatten())


Recipes = Mapping[str, tuple[_Recipe, str]]  # by entry: its recipe, and which of the things that makes it is


def _assign(model: PreTrainedModel, checkpoint: Checkpoint) -> Recipes:
    """A recipe for every entry of the model's state, tied ones included.

    Raises:
        CheckpointError: missing, unexpected or mis-shaped tensors.
    """
    state = model.state_dict()
    recipes, mismatched = _known(model, _recipes(model, checkpoint, state), state)
    unexpected = checkpoint.tensors.keys() - _used(recipes)
    recipes |= _tied(model, recipes)
    problems = {
        "missing_keys": _not_ignored(model, "missing", state.keys() - recipes.keys()),
        "unexpected_keys": _not_ignored(model, "unexpected", unexpected),
        "mismatched_keys": mismatched,
    }
    _refuse(checkpoint.folder, problems)
    return recipes


def _recipes(model: PreTrainedModel, checkpoint: Checkpoint, state: dict[str, Tensor]) -> list[_Recipe]:
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
    return [_Recipe(target, tuple(found), by_pattern.get(found[0][1])) for target, found in gathered.items()]


def _known(
    model: PreTrainedModel, recipes: Iterable[_Recipe], state: dict[str, Tensor]
) -> tuple[dict[str, tuple[_Recipe, str]], list[tuple[str, list[int], list[int]]]]:
    """The recipes by the entry they make, and (name, stored shape, model's shape) where the two differ."""
    known, mismatched = {}, []
    for recipe in recipes:
        if recipe.target not in state:
            continue
        for name, made in recipe.make(model, _on_meta).items():
            known[name] = recipe, name
            if made.shape != state[name].shape:
                mismatched.append((name, list(made.shape), list(state[name].shape)))
    return known, mismatched


def _used(recipes: Recipes) -> set[str]:
    return {info.name for recipe, _ in recipes.values() for info, _ in recipe.sources}


def _tied(model: PreTrainedModel, recipes: Recipes) -> dict[str, tuple[_Recipe, str]]:
    """Recipes for the tied entries that the file leaves out; what it holds is used, as transformers does."""
    pairs = dict(model.all_tied_weights_keys)
    stand_ins = {target: source for target, source in pairs.items() if source in recipes}
    stand_ins |= {source: target for target, source in pairs.items() if target in recipes}
    return {name: recipes[other] for name, other in stand_ins.items() if name not in recipes}


def _not_ignored(model: PreTrainedModel, kind: str, names: Iterable[str]) -> list[str]:
    patterns = set(getattr(model, f"_keys_to_ignore_on_load_{kind}") or ())
    return sorted(name for name in names if not any(re.search(pattern, name) for pattern in patterns))


def _refuse(folder: Path, info: Mapping[str, Any]) -> None:
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


# ------------------------------------------------- reading


class _Memory:
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
    stored = _float_dtype(info)
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


def _float_dtype(info: TensorInfo) -> torch.dtype:
    if info.dtype not in DTYPES:
        raise CheckpointError(
            f"{info.path}: tensor '{info.name}' is stored as {info.dtype}, and only {', '.join(DTYPES)} can "
            "be run. Dequantise the checkpoint first."
        )
    return DTYPES[info.dtype]


def _on_meta(info: TensorInfo) -> Tensor:
    return torch.empty(info.shape, dtype=_float_dtype(info), device="meta")


def _load(model: PreTrainedModel, entry: str, *, recipes: Recipes, dtype: torch.dtype, memory: _Memory) -> Tensor:
    recipe, name = recipes[entry]
    empty = memory.take if recipe.converter is None else _new  # a converter copies what it is given
    return recipe.make(model, lambda info: read_tensor(info, dtype, empty))[name]


def _load_buffers(model: PreTrainedModel, recipes: Recipes) -> None:
    for entry, buffer in model.named_buffers():
        if entry in recipes:
            recipe, name = recipes[entry]
            buffer.copy_(recipe.make(model, read_tensor)[name])


# ------------------------------------------------- hooks


def _drop(
    empty: Mapping[str, nn.Parameter | None], memory: _Memory, module: nn.Module, inputs: tuple[Any, ...], output: Any
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
