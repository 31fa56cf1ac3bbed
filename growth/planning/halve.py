"""Halve: the config of a smaller model that grows exactly into a given one. The planner decides; nothing is assumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from growth.architectures import architecture
from growth.architectures.base import Architecture
from growth.architectures.config import Config
from growth.errors import ConfigError, GrowthError, RecipeError
from growth.planning.derive import derive_recipe
from growth.planning.recipe import Recipe

Grown = Literal["width", "depth"]
STORED = (
    "dtype",
    "torch_dtype",
    "_name_or_path",
)  # say how a checkpoint was stored; the smaller model is not trained yet
ATTENTION = ("heads", "queries", "head_dim")  # one of them is halved with the width; the first is preferred


def halve(target: Config, grows: Grown) -> tuple[dict[str, Any], Recipe]:
    """Return the config of a model of half the width or depth, and the exact recipe from it to the target.

    Width is the residual stream, the inner size of every MLP, and the heads, or else the query heads of each KV head,
    or else their channels. An odd number of layers is rounded up. The vocabulary and all else stay, apart from the
    dtype in which the target is stored.

    Raises:
        RecipeError: no such model grows exactly into the target.
        ConfigError: a config that is not of a known family.
    """
    built = architecture(target)
    refusals: list[str] = []
    for config in _candidates(built, grows):
        try:
            config = {key: value for key, value in config.items() if key not in STORED}
            architecture(config)
        except ConfigError as error:
            refusals.append(str(error).replace("config.json has", "Its config would have"))
            continue
        try:
            return config, derive_recipe(config, target, name=f"half the {grows}")[0]
        except GrowthError as error:
            refusals.append(str(error))
    why = refusals[0] if refusals else _indivisible(built, grows)
    raise RecipeError(
        f"No {built.model_type} of half the {grows} grows exactly into the target. {why} Choose another target."
    )


def _candidates(built: Architecture, grows: Grown) -> Iterator[dict[str, Any]]:
    sizes = {name: axis.size for name, axis in built.axes.items()}
    layers = range(built.depth)
    if grows == "width":
        for attention in ATTENTION:
            names = [name for name in sizes if name in ("residual", "ffn", attention)]
            if all(sizes[name] % 2 == 0 for name in names):
                yield built.grown_config({**sizes, **{name: sizes[name] // 2 for name in names}}, layers, 1)
    elif built.depth > 1:
        for kept in (layers[: -(-built.depth // 2)], layers[::2]):  # layers of several kinds may fit one or the other
            yield built.grown_config(sizes, kept, 1)


def _indivisible(built: Architecture, grows: Grown) -> str:
    if grows == "depth":
        return f"It has {built.depth} layer{'s' * (built.depth != 1)}."
    sizes = ", ".join(f"{name} {axis.size}" for name, axis in built.axes.items() if name != "vocab")
    return f"Its sizes cannot be halved: {sizes}."
