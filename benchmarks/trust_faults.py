"""The corruptions of benchmarks/trust.py: realistic mistakes in a grown checkpoint, each of a stated size.

A corruption changes the tensors or the config that it is given, and returns whether it applies to the model. It only
touches units that are copies of old ones, so that it changes the function in exact arithmetic.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from growth.architectures.base import Architecture, Weight


@dataclass
class Grown:
    """A grown checkpoint in memory.

    weights: by stored name. built: the table of the grown model. old: the source's size of each axis.
    layers: growth.json's, a source and a silent flag each.
    """

    weights: dict[str, Tensor]
    config: dict[str, Any]
    built: Architecture
    old: dict[str, int]
    layers: list[dict[str, Any]]

    def names(self, wanted: Callable[[Weight], bool]) -> list[tuple[str, Weight]]:
        """The tensors of the weights that are wanted."""
        return [
            (name, weight)
            for weight in self.built.weights
            if wanted(weight)
            for name in self.built.names(weight)
            if name in self.weights
        ]

    def working(self, wanted: Callable[[Weight], bool], draw: random.Random) -> tuple[Tensor, Weight] | None:
        """A tensor of a weight that is wanted, of a layer that is not silent and not all zero; None where none is."""
        silent = {n for n, layer in enumerate(self.layers) if layer["silent"]}
        silent_names = {weight.at(n, 0) for weight in self.built.weights if weight.per_layer for n in silent}
        found = [
            (name, weight)
            for name, weight in self.names(wanted)
            if not (weight.per_layer and (self._layer(name, weight) in silent or name in silent_names))
            and bool(self.weights[name].any())
        ]
        if not found:
            return None
        name, weight = draw.choice(found)
        return self.weights[name], weight

    def _layer(self, name: str, weight: Weight) -> int:
        before = weight.name.split("{layer}")[0]
        return int(name.removeprefix(before).split(".")[0])

    def axes(self, weight: Weight, dimension: int) -> list[str]:
        """The axes of one dimension of a weight."""
        return [self.built.axis(space) for space in weight.parts[0].dimensions[dimension]]

    def old_units(self, weight: Weight, dimension: int) -> int:
        """How many leading indices of a dimension surely come from the source's."""
        axes = self.axes(weight, dimension)
        return self.old.get(axes[-1], self.built.axes[axes[-1]].size)


Fault = Callable[[Grown, random.Random], bool]


def has(*axes: str, dims: int | None = None, end: bool | None = None, layer: bool | None = True) -> Any:
    """Whether a weight has these axes, this number of dimensions, ends a branch, is a layer's."""

    def wanted(grown: Grown) -> Callable[[Weight], bool]:
        def check(weight: Weight) -> bool:
            spaces = [space for part in weight.parts for one in part.dimensions for space in one]
            found = {grown.built.axis(space) for space in spaces}
            return (
                found >= set(axes)
                and (dims is None or len(weight.parts[0].dimensions) == dims)
                and (end is None or _ends(grown, weight) == end)
                and (layer is None or weight.per_layer == layer)
                and (weight.norm_inputs is None)
            )

        return check

    return wanted


def _ends(grown: Grown, weight: Weight) -> bool:
    """Whether a matrix ends a branch: it reads anything but the stream."""
    return any(grown.built.axis(space) != "residual" for part in weight.parts for space in part.reads)


MLP_IN = has("ffn", "residual", dims=2, end=False)
MLP_OUT = has("ffn", "residual", dims=2, end=True)
ATTENTION_IN = has("heads", "residual", dims=2, end=False)
ATTENTION_OUT = has("heads", "residual", dims=2, end=True)
EMBEDDING = has("vocab", dims=2, layer=False)
BIAS = has(dims=1)


def gains(grown: Grown) -> Callable[[Weight], bool]:
    """Gains of norms over the stream, in layers or behind the last."""
    return lambda weight: (
        weight.norm_inputs is not None
        and not weight.branch_end
        and [grown.built.axis(space) for one in weight.parts[0].dimensions for space in one] == ["residual"]
    )


def _picked(grown: Grown, wanted: Any, draw: random.Random) -> tuple[Tensor, Weight] | None:
    return grown.working(wanted(grown), draw)


def _out_dimension(weight: Weight) -> int:
    reads = set(weight.parts[0].reads)
    dimensions = weight.parts[0].dimensions
    return next((n for n, spaces in enumerate(dimensions) if not reads & set(spaces)), 0)


def _picked_units(grown: Grown, wanted: Any, draw: random.Random, *, reads: bool) -> tuple[Tensor, int, int] | None:
    """A tensor, the dimension of the units that it writes (or reads), and how many of them are old."""
    picked = _picked(grown, wanted, draw)
    if picked is None:
        return None
    tensor, weight = picked
    dimension = _out_dimension(weight)
    if reads and tensor.ndim > 1:
        dimension = 1 - dimension
    return tensor, dimension, min(grown.old_units(weight, dimension), tensor.shape[dimension])


def unit(wanted: Any, change: Callable[[Tensor], None], *, reads: bool = False) -> Fault:
    """One old unit that a tensor writes (or reads) is changed."""

    def fault(grown: Grown, draw: random.Random) -> bool:
        picked = _picked_units(grown, wanted, draw, reads=reads)
        if picked is None:
            return False
        tensor, dimension, count = picked
        change(tensor.select(dimension, draw.randrange(count)))
        return True

    return fault


def swapped(wanted: Any, *, reads: bool = False) -> Fault:
    """Two old units that a tensor writes (or reads) are exchanged."""

    def fault(grown: Grown, draw: random.Random) -> bool:
        picked = _picked_units(grown, wanted, draw, reads=reads)
        if picked is None or picked[2] < 2:
            return False
        tensor, dimension, count = picked
        a, b = draw.sample(range(count), 2)
        first = tensor.select(dimension, a).clone()
        tensor.select(dimension, a).copy_(tensor.select(dimension, b))
        tensor.select(dimension, b).copy_(first)
        return True

    return fault


def whole(wanted: Any, change: Callable[[Tensor], None]) -> Fault:
    """A whole tensor is changed."""

    def fault(grown: Grown, draw: random.Random) -> bool:
        picked = _picked(grown, wanted, draw)
        if picked is None:
            return False
        change(picked[0])
        return True

    return fault


def times(factor: float) -> Callable[[Tensor], None]:
    """Multiplies."""

    def change(tensor: Tensor) -> None:
        tensor.copy_(tensor.double() * factor)

    return change


def through(dtype: torch.dtype) -> Callable[[Tensor], None]:
    """Stored in another type on the way."""

    def change(tensor: Tensor) -> None:
        tensor.copy_(tensor.to(dtype))

    return change


def _zero(tensor: Tensor) -> None:
    tensor.zero_()


def _rolled(tensor: Tensor) -> None:
    tensor.copy_(tensor.flatten().roll(1).view(tensor.shape))


def _half_missing(tensor: Tensor) -> None:
    flat = tensor.view(-1)
    flat[: len(flat) // 2].zero_()


def _noisy(size: float) -> Callable[[Tensor], None]:
    def change(tensor: Tensor) -> None:
        generator = torch.Generator().manual_seed(tensor.numel())
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        values = tensor.double()
        tensor.copy_(values + size * float(values.square().mean().sqrt()) * noise)

    return change


def _largest_doubled(tensor: Tensor) -> None:
    flat = tensor.view(-1)
    flat[int(flat.abs().argmax())] *= 2


def _rotary_interleaved(tensor: Tensor) -> None:
    half = len(tensor) // 2
    tensor.copy_(torch.stack([tensor[:half], tensor[half : 2 * half]], 1).flatten(0, 1))


def exchanged(first: Any, second: Any) -> Fault:
    """Two tensors of the same shape are exchanged, or two layers' of the same name."""

    def fault(grown: Grown, draw: random.Random) -> bool:
        a = grown.names(first(grown))
        b = grown.names(second(grown))
        pairs = [
            (x, y)
            for x, _ in a
            for y, _ in b
            if x < y
            and grown.weights[x].shape == grown.weights[y].shape
            and _same_place(x, y)
            and not torch.equal(grown.weights[x], grown.weights[y])
        ]
        if not pairs:
            return False
        x, y = draw.choice(pairs)
        grown.weights[x], grown.weights[y] = grown.weights[y], grown.weights[x]
        return True

    return fault


def _same_place(x: str, y: str) -> bool:
    return [part for part in x.split(".") if part.isdigit()] == [part for part in y.split(".") if part.isdigit()]


def layers_exchanged(grown: Grown, draw: random.Random) -> bool:
    """Two layers that copy different ones are exchanged: an off-by-one in the layer map."""
    places = [n for n, layer in enumerate(grown.layers) if not layer["silent"]]
    pairs = list(pairwise(places))
    draw.shuffle(pairs)
    for a, b in pairs:
        renamed = _exchange_layers(grown, a, b)
        if renamed is not None:
            grown.weights = renamed
            return True
    return False


def _exchange_layers(grown: Grown, a: int, b: int) -> dict[str, Tensor] | None:
    names = {}
    for weight in grown.built.weights:
        if weight.per_layer:
            for _, one in weight.places(grown.built.depth, grown.built.length(weight.units)):
                x, y = weight.at(a, one), weight.at(b, one)
                if (x in grown.weights) != (y in grown.weights):
                    return None
                if x in grown.weights:
                    names[x], names[y] = y, x
    return {name: grown.weights[names.get(name, name)] for name in grown.weights}


def silent_speaks(size: float) -> Fault:
    """The end of a silent layer's branch is `size` of what it is in the layer that it copies."""

    def fault(grown: Grown, draw: random.Random) -> bool:
        silent = [n for n, layer in enumerate(grown.layers) if layer["silent"]]
        draw.shuffle(silent)
        for n in silent:
            source = grown.layers[n]["source"]
            copies = [m for m, layer in enumerate(grown.layers) if not layer["silent"] and layer["source"] == source]
            for weight in grown.built.weights:
                if weight.branch_end and copies and len(weight.parts[0].dimensions) == 2 and not weight.units:
                    name, other = weight.at(n, 0), weight.at(copies[0], 0)
                    if (
                        name in grown.weights
                        and other in grown.weights
                        and grown.weights[name].shape == grown.weights[other].shape
                    ):
                        grown.weights[name].add_(grown.weights[other], alpha=size)
                        return True
        return False

    return fault


def setting(key: str, change: Callable[[Any], Any], default: Any = None) -> Fault:
    """A key of config.json is changed."""

    def fault(grown: Grown, draw: random.Random) -> bool:
        value = grown.config.get(key, default)
        if value is None or isinstance(value, dict):
            return False
        changed = change(value)
        if changed is None or changed == value:
            return False
        grown.config[key] = changed
        return True

    return fault


def eps_times(factor: float) -> Fault:
    """The norms' eps is another."""

    def fault(grown: Grown, draw: random.Random) -> bool:
        key = grown.built.eps
        if key is None or key not in grown.config:
            return False
        grown.config[key] *= factor
        return True

    return fault


def rope_theta_times(factor: float) -> Fault:
    """The base of the rotary embedding is another."""

    def fault(grown: Grown, draw: random.Random) -> bool:
        parameters = grown.config.get("rope_parameters")
        tables = [parameters] if isinstance(parameters, dict) else []
        tables += [value for value in (parameters or {}).values() if isinstance(value, dict)]
        tables = [table for table in tables if "rope_theta" in table]
        for table in tables:
            table["rope_theta"] *= factor
        return bool(tables)

    return fault


def rotary_layout(grown: Grown, draw: random.Random) -> bool:
    """The queries' channels of a head lie in another order: the layouts of NeoX and GPT-J mistaken for each other."""
    if not any(key in grown.config for key in ("rope_parameters", "rotary_dim")):
        return False
    picked = grown.working(has("queries", "heads", "residual", dims=2, end=False)(grown), draw)
    if picked is None or len(picked[1].parts) > 1 or _out_dimension(picked[1]) != 0:
        return False
    tensor, size = picked[0], grown.built.axes["head_dim"].size
    _rotary_interleaved(tensor[:size])
    return True


ACTIVATIONS = {"gelu": "gelu_new", "gelu_new": "gelu", "silu": "gelu", "relu": "silu", "gelu_pytorch_tanh": "gelu"}


def activation(grown: Grown, draw: random.Random) -> bool:
    """The MLP's activation is another."""
    for key in ("hidden_act", "hidden_activation", "activation_function"):
        if grown.config.get(key) in ACTIVATIONS:
            grown.config[key] = ACTIVATIONS[grown.config[key]]
            return True
    return False


ONE_QUERY = has("queries", "heads", "residual", dims=2, end=False)
ANY_MATRIX = has(dims=2)


@dataclass(frozen=True)
class Kind:
    """A kind of corruption: what is done, to what, how much, and whether it is expected to be caught."""

    name: str
    size: str
    fault: Fault
    expected: bool = True


KINDS = (
    Kind("two neurons of an MLP exchanged in its first matrix", "2 rows", swapped(MLP_IN)),
    Kind("two neurons of an MLP exchanged in its last matrix", "2 columns", swapped(MLP_OUT, reads=True)),
    Kind("two channels of the stream exchanged in an MLP's last matrix", "2 rows", swapped(MLP_OUT)),
    Kind("two channels of the stream exchanged in an MLP's first matrix", "2 columns", swapped(MLP_IN, reads=True)),
    Kind("two channels of a head exchanged in an attention projection", "2 rows", swapped(ATTENTION_IN)),
    Kind("two channels of a head exchanged in the output projection", "2 columns", swapped(ATTENTION_OUT, reads=True)),
    Kind("two tokens exchanged in the embedding or the head", "2 rows", swapped(EMBEDDING)),
    Kind("one row of an MLP's last matrix × 1.01", "1 %", unit(MLP_OUT, times(1.01))),
    Kind("one row of an MLP's last matrix × 1.1", "10 %", unit(MLP_OUT, times(1.1))),
    Kind(
        "one column of an output projection × 1.1: a copy's share", "10 %", unit(ATTENTION_OUT, times(1.1), reads=True)
    ),
    Kind("one column of an MLP's last matrix × 1.1: a copy's share", "10 %", unit(MLP_OUT, times(1.1), reads=True)),
    Kind("an attention projection × 1.01", "1 %", whole(ATTENTION_IN, times(1.01))),
    Kind("the softmax scale (the queries' projection × 1.1)", "10 %", whole(ONE_QUERY, times(1.1))),
    Kind("sign of one element of a norm's gain", "1 element", unit(gains, times(-1))),
    Kind("one element of a norm's gain × 1.1", "1 element, 10 %", unit(gains, times(1.1))),
    Kind("a norm's gain × 1.01", "1 %", whole(gains, times(1.01))),
    Kind("a norm's gain zero", "1 tensor", whole(gains, _zero)),
    Kind("a bias of a layer missing", "1 tensor", whole(BIAS, _zero)),
    Kind("one element of a bias × 2", "1 element", unit(BIAS, times(2))),
    Kind("a matrix of a layer zero", "1 tensor", whole(ANY_MATRIX, _zero)),
    Kind("the first half of a matrix zero: a write that was cut", "1/2 tensor", whole(ANY_MATRIX, _half_missing)),
    Kind("a matrix shifted by one element: a wrong offset", "1 tensor", whole(ANY_MATRIX, _rolled)),
    Kind("a matrix by way of float8 (e4m3)", "2^-4 of each", whole(ANY_MATRIX, through(torch.float8_e4m3fn))),
    Kind("a matrix by way of bfloat16", "2^-9 of each", whole(ANY_MATRIX, through(torch.bfloat16))),
    Kind("a matrix by way of float16", "2^-12 of each", whole(ANY_MATRIX, through(torch.float16))),
    Kind("noise on a matrix, 20 dB below it", "10 %", whole(ANY_MATRIX, _noisy(0.1))),
    Kind("noise on a matrix, 60 dB below it", "0.1 %", whole(ANY_MATRIX, _noisy(0.001))),
    Kind(
        "the largest element of a matrix × 2: one bit of its exponent", "1 element", whole(ANY_MATRIX, _largest_doubled)
    ),
    Kind("queries and keys, or other projections, exchanged", "2 tensors", exchanged(ATTENTION_IN, ATTENTION_IN)),
    Kind("gate and up, or other MLP matrices, exchanged", "2 tensors", exchanged(MLP_IN, MLP_IN)),
    Kind("two neighbouring layers exchanged: an off-by-one in the layer map", "2 layers", layers_exchanged),
    Kind("a copied identity layer not silent", "1 % of its source", silent_speaks(0.01)),
    Kind("a head's rotary channels in another layout", "1 head", rotary_layout),
    Kind("eps of the norms × 1,000", "× 1,000", eps_times(1000.0)),
    Kind("rope_theta × 1.1", "10 %", rope_theta_times(1.1)),
    Kind("another activation of the MLP", "gelu for gelu_new, …", activation),
    Kind("the embedding or the head × 1.01", "1 %", whole(EMBEDDING, times(1.01))),
    Kind("eps of the norms × 1.0001", "0.01 %", eps_times(1.0001), expected=False),
    Kind("one row of an MLP's last matrix × 1.000001", "0.0001 %", unit(MLP_OUT, times(1.000001)), expected=False),
    Kind("an attention projection × 1.000001", "0.0001 %", whole(ATTENTION_IN, times(1.000001)), expected=False),
    Kind("noise on a matrix, 140 dB below it", "0.00001 %", whole(ANY_MATRIX, _noisy(1e-7)), expected=False),
    Kind(
        "one element of a norm's gain × 1.000001", "1 element, 0.0001 %", unit(gains, times(1.000001)), expected=False
    ),
)
