"""The kind of every value of a grown model: in a new layer, fresh, a further copy, or old."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from growth.algebra.expansion import ordinal
from growth.errors import CheckpointError
from growth.planning.manifest import MANIFEST, expansion_from, manifest, read_manifest
from growth.planning.plan import Plan
from growth.training.parameter_names import misfit, parameter_names, shapes_by_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Origin = Plan | Mapping[str, Any] | str | Path  # of a grown model: its plan, growth.json, or the folder that holds it

KINDS = ("old", "copies", "fresh", "new_layers")  # by age
OLD, COPY, FRESH_UNIT, NEW_LAYER = range(4)
Kinds = NDArray[np.uint8]  # of the indices of an axis or of a stored dimension
_QUERY_HEADS = "heads queries"


def value_kinds(model: PreTrainedModel, origin: Origin) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """The name of each parameter of a grown model, the parameter, and the kind of each of its values; tied ones once.

    Raises:
        CheckpointError: the model is not the grown one.
    """
    kinds = tensor_kinds(content_of(origin))
    names = parameter_names(model, kinds)
    for name, _ in model.named_parameters():
        if name not in names:
            raise CheckpointError(
                f"The model has '{name}', which is not a tensor of the growth. Give the grown model, and the plan or "
                "growth.json of its last growth."
            )
    wrong = misfit(shapes_by_file(names), {file: tuple(map(len, dimensions)) for file, dimensions in kinds.items()})
    if wrong is not None:
        raise CheckpointError(
            f"The model is not the grown one: {wrong}. Give the grown model, and the plan or growth.json of its last "
            "growth."
        )
    for name, parameter in model.named_parameters():
        values = torch.zeros(parameter.shape, dtype=torch.uint8)
        for file, index in names[name].files.items():
            values[index] = torch.from_numpy(reduce(np.maximum.outer, kinds[file]))
        yield name, parameter, values.to(parameter.device)


def kinds_by_tensor(origin: Origin) -> dict[str, set[str]]:
    """The kinds of the values of each tensor, by its name in files."""
    return {
        name: {KINDS[kind] for kind in reduce(np.maximum.outer, map(np.unique, kinds)).ravel()}
        for name, kinds in tensor_kinds(content_of(origin)).items()
    }


def content_of(origin: Origin) -> Mapping[str, Any]:
    """The content of growth.json.

    Raises:
        CheckpointError: the folder has none.
    """
    if isinstance(origin, Plan):
        return manifest(origin, {}, {})
    if isinstance(origin, Mapping):
        return origin
    content = read_manifest(Path(origin))
    if content is None:
        raise CheckpointError(f"{origin} has no {MANIFEST}: give the folder that growth wrote, or the plan.")
    return content


# ------------------------------------------------- from growth.json


def tensor_kinds(content: Mapping[str, Any]) -> dict[str, tuple[Kinds, ...]]:
    """The kinds along each dimension of each tensor of growth.json; a value is of the newest of its indices' kinds."""
    axes = {name: np.zeros(size, np.uint8) for name, size in content["sizes"]["after"].items()}
    axes |= {name: axis_kinds(entry) for name, entry in content["axes"].items()}
    if query_heads := content.get("query_heads"):
        axes[_QUERY_HEADS] = axis_kinds(query_heads)
    new_layers = _new_layers(content["layers"])
    units: dict[tuple[str, ...], Iterator[np.uint8]] = {}
    found = {}
    for name, entry in content["tensors"].items():
        layer = re.search(r"\.(\d+)\.", name)
        kind = FRESH_UNIT if entry["source"] is None else OLD
        if names := tuple(entry.get("units", ())):  # tensors of the same weight: unit by unit, layer by layer
            kind = max(kind, int(next(units.setdefault(names, cycle(kinds_along(names, axes))))))
        if entry["new_layer"] or (layer and int(layer[1]) in new_layers):
            kind = NEW_LAYER
        found[name] = tuple(np.maximum(kinds, np.uint8(kind)) for kinds in _dimensions(entry, axes))
    return found


def axis_kinds(entry: dict[str, Any]) -> Kinds:
    """The kinds of the units of an axis: old, a copy, or fresh.

    >>> axis_kinds({"before": 2, "after": 4, "runs": [[0, 2, 0, 1.0, 1.0], [2, 3, 0, 1.0, 1.0], [3, 4, None, 0, 1]]})
    array([0, 0, 1, 2], dtype=uint8)
    """
    expansion = expansion_from(entry)
    kinds = np.where(ordinal(expansion.source) > 0, COPY, OLD)
    return np.where(expansion.fresh, FRESH_UNIT, kinds).astype(np.uint8)


def _new_layers(layers: Sequence[Mapping[str, Any]]) -> set[int]:
    """The layers that the source does not have: silent ones, and all other copies of a layer but the first."""
    seen: set[int] = set()
    new = set()
    for index, layer in enumerate(layers):
        if layer["silent"] or layer["source"] in seen:
            new.add(index)
        else:
            seen.add(layer["source"])
    return new


def _dimensions(entry: Mapping[str, Any], axes: Mapping[str, Kinds]) -> tuple[Kinds, ...]:
    found = [kinds_along(names, axes) for names in entry["axes"]]
    if fused := entry.get("fused"):
        beside = np.concatenate([kinds_along(names, axes) for names in fused["parts"]])
        found[fused["dimension"]] = np.maximum.outer(kinds_along(fused["within"], axes), beside).ravel()
    for kinds, runs in zip(found, entry.get("redrawn", ()), strict=False):
        for start, stop in runs:
            kinds[start:stop] = np.maximum(kinds[start:stop], FRESH_UNIT)
    return tuple(found)


def kinds_along(names: Sequence[str], axes: Mapping[str, Kinds]) -> Kinds:
    """The kinds of the units that several axes span, the last of them innermost: each of the newest of its parts."""
    one = np.zeros(1, np.uint8)
    if _QUERY_HEADS in axes and "queries" in names:  # all query heads, which are no product of two axes
        names = [{"heads": _QUERY_HEADS, "queries": "1"}.get(name, name) for name in names]
        axes = {**axes, "1": one}
    return reduce(lambda outer, inner: np.maximum.outer(outer, inner).ravel(), (axes[name] for name in names), one)
