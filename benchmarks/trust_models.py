"""The models of benchmarks/trust.py: tiny sources of every family, with or without massive activations, and recipes."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from growth.architectures import architecture
from growth.architectures.base import Architecture
from growth.operators import Operator, break_symmetry, chain, deepen, widen
from tests.support.families import Case, inner_axis, random_model, steps_of

WEIGHTS = "model.safetensors"
MASSIVE = 1000.0  # times the other channels
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# ------------------------------------------------- sources


def make_source(case: Case, stored: str, massive: str, seed: int, folder: Path) -> Path:
    """Saves a random model of a case, every parameter random, with massive activations of a kind."""
    model = random_model(case, STORED[stored], seed)
    model.save_pretrained(folder)
    if massive != "none":
        weights = load_file(folder / WEIGHTS)
        built = architecture(model.config.to_dict()).named_as_in(weights)
        MASSIVES[massive](weights, built, random.Random(seed))
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    return folder


def _channel(weights: Mapping[str, Tensor], built: Architecture, channel: int, wanted: Callable[[Any], bool]) -> Any:
    """Views of one channel of the residual stream in the weights that are wanted."""
    for weight in built.weights:
        if not wanted(weight):
            continue
        for name in built.names(weight):
            for axis, spaces in enumerate(weight.parts[0].dimensions):
                if any(built.axis(space) == "residual" for space in spaces) and name in weights:
                    yield weights[name].select(axis, channel % weights[name].shape[axis])


def _is_embedding(weight: Any) -> bool:
    return not weight.per_layer and any("vocab" in spaces for spaces in weight.parts[0].dimensions)


def _is_gain(weight: Any) -> bool:
    return weight.norm_inputs is not None and not weight.branch_end


def massive_embedding(weights: Mapping[str, Tensor], built: Architecture, draw: random.Random) -> None:
    """One channel of every token's embedding."""
    for values in _channel(weights, built, draw.randrange(built.axes["residual"].size), _is_embedding):
        values.mul_(MASSIVE)


def massive_tokens(weights: Mapping[str, Tensor], built: Architecture, draw: random.Random) -> None:
    """One channel of every fourth token's embedding: the first token and the delimiters of trained models."""
    for values in _channel(weights, built, draw.randrange(built.axes["residual"].size), _is_embedding):
        values[::4].mul_(MASSIVE)


def massive_branch(weights: Mapping[str, Tensor], built: Architecture, draw: random.Random) -> None:
    """One channel of what the branches of the first layer add to the stream."""
    first = {name: values for name, values in weights.items() if any(f".{n}." in name for n in ("0",))}
    for values in _channel(first, built, draw.randrange(built.axes["residual"].size), lambda w: w.branch_end):
        values.mul_(MASSIVE)


def massive_tamed(weights: Mapping[str, Tensor], built: Architecture, draw: random.Random) -> None:
    """One channel of every token's embedding, that the norms' gains take back, as those of trained models do."""
    channel = draw.randrange(built.axes["residual"].size)
    for values in _channel(weights, built, channel, _is_embedding):
        values.mul_(MASSIVE)
    for values in _channel(weights, built, channel, _is_gain):
        values.div_(MASSIVE)


MASSIVES = {
    "embedding": massive_embedding,
    "tokens": massive_tokens,
    "branch": massive_branch,
    "tamed": massive_tamed,
}

# ------------------------------------------------- recipes


def _steps(case: Case, axis: str, built: Architecture) -> tuple[tuple[str, int], ...]:
    """What grows an axis of a case; of an axis that the case lacks, a size that is refused."""
    found: tuple[tuple[str, int], ...] = steps_of(case, axis) if axis in built.axes else ((axis, 1),)
    return found


def _doubled(case: Case, built: Architecture) -> tuple[Operator, ...]:
    axes = ["residual", inner_axis(case)] + ["heads"] * (
        len(case.steps.get("residual", ((),))) > 1 or "heads" in case.steps
    )
    return tuple(widen(axis, factor=2, shares="random", init="tile") for axis in axes)


def _widened(axis: str, **options: Any) -> Callable[[Case, Architecture], tuple[Operator, ...]]:
    def steps(case: Case, built: Architecture) -> tuple[Operator, ...]:
        shares = {} if options.get("init") == "pad" or axis == "vocab" else {"shares": "random"}
        eps = {"norm_eps": options["norm_eps"]} if "norm_eps" in options else {}
        plain = {key: value for key, value in options.items() if key != "norm_eps"} | shares
        return tuple(
            widen(name, to=to, **(plain | (eps if name == "residual" else {})))
            for name, to in _steps(case, axis, built)
        )

    return steps


def _everything(case: Case, built: Architecture) -> tuple[Operator, ...]:
    steps = [
        step
        for axis in ("residual", inner_axis(case), "heads")
        if axis in built.axes and axis not in case.refused
        for step in _steps(case, axis, built)
        if axis not in case.steps or axis == "residual"
    ]
    widened = [widen(n, to=to, init="pad" if f"{n}, tile" in case.refused else "tile") for n, to in dict(steps).items()]
    deeper = [deepen(factor=2)] if "layers" not in case.refused else []
    return (*widened, break_symmetry(), *deeper)


Steps = Callable[[Case, Architecture], tuple[Operator, ...]]
RECIPES: dict[str, Steps] = {
    "twice the width": lambda case, built: _doubled(case, built),
    "twice the width and depth": lambda case, built: (*_doubled(case, built), deepen(factor=2)),
    "twice the depth": lambda case, built: (deepen(factor=2),),
    "residual, copies": _widened("residual", init="tile"),
    "residual, sampled copies": _widened("residual", init="sample"),
    "residual, fresh": _widened("residual", init="pad"),
    "residual, eps": _widened("residual", init="tile", norm_eps="rescale"),
    "ffn, copies": lambda case, built: _widened(inner_axis(case), init="sample")(case, built),
    "heads, copies": _widened("heads", init="tile"),
    "queries, copies": _widened("queries", init="tile"),
    "head_dim, fresh": _widened("head_dim", init="pad"),
    "vocab": _widened("vocab", init="mean"),
    "depth, stacked": lambda case, built: (deepen(to=case.config.get("num_hidden_layers", 3) + 2, order="stack"),),
    "everything": _everything,
}


def recipe(name: str, case: Case, config: Mapping[str, Any]) -> Operator:
    """The recipe of that name for a case.

    Raises:
        RecipeError: the case refuses it, when it is applied.
    """
    return chain(*RECIPES[name](case, architecture(config)))
