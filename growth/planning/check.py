"""Checks of a plan: the source holds what its config states, the growth keeps its laws, the result fits its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from growth.algebra.expansion import Expansion, Integers, counts, rotary_places
from growth.architectures.base import Architecture, Axis
from growth.architectures.config import Config
from growth.arrays.tensor_info import FLOATS, TensorInfo
from growth.errors import CheckpointError, GrowthError, RecipeError
from growth.operators.base import Growth
from growth.operators.fit import check_sizes
from growth.planning.norms import TOLERANCE, commutes_with_norm
from growth.planning.tensor_map import TensorMap


def match_tensors(source: Architecture, headers: Mapping[str, TensorInfo]) -> None:
    """Check that a checkpoint holds exactly the tensors that its config implies.

    Raises:
        CheckpointError: a tensor is missing, unknown, mis-shaped or of a type that cannot grow.
    """
    shapes = source.shapes()
    missing = sorted(shapes.keys() - headers.keys()) + (source.outer.missing(source) if source.outer else [])
    if missing:
        saved = ", ".join(map(str, source.config.get("architectures") or ()))
        remedy = "Restore the missing files, or correct config.json."
        if "Classification" in saved or "QuestionAnswering" in saved:
            remedy = f"It was saved from {saved}, and only language models grow: grow the model that it was made from."
        raise CheckpointError(
            f"The checkpoint lacks {_listed(missing)}, which its config ({source.model_type}) needs. {remedy}"
        )
    unknown = sorted(headers.keys() - shapes.keys())
    if unknown:
        raise CheckpointError(
            f"The checkpoint holds {_listed(unknown)}, which {source.model_type} with this config does not have. "
            "Correct config.json, or remove what is not part of the model."
        )
    for name, shape in shapes.items():
        if headers[name].shape != shape:
            raise CheckpointError(
                f"Tensor '{name}' has shape {list(headers[name].shape)} and config.json implies {list(shape)}. "
                "One of the two belongs to another model: restore the right one."
            )
        if headers[name].dtype not in FLOATS:
            raise CheckpointError(
                f"Tensor '{name}' is stored as {headers[name].dtype}: only {', '.join(FLOATS)} can grow. "
                "Save the model dequantised first."
            )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{len(names)} tensors ({shown}{', …' if len(names) > 3 else ''})" if len(names) > 1 else f"tensor {shown}"


def assert_laws(growth: Growth, depth: int) -> None:
    """Assert that a growth which claims to preserve the function obeys the laws of docs/design.md, section 2.

    depth: number of layers of the source.
    """
    assert growth.query_heads is None or growth.query_heads.law_error() < TOLERANCE, "query heads: R E is not I"
    for name, expansion in growth.expansions.items():
        axis = growth.axes[name]
        largest = max(axis.size, axis.max_size) if axis.refusal else len(expansion)
        assert len(expansion) <= largest, f"{name}: {axis.refusal}"
        assert _in_place(expansion, axis, growth.rope_stride), (
            f"{name}: units whose place is fixed have moved, or have copies"
        )
        assert not axis.equal_copies or _equally_copied(expansion), f"{name}: {axis.equal_copies}"
        assert not axis.single or not expansion.copied.any(), f"{name}: {axis.single}"
        assert not axis.unscaled or np.isin(expansion.write, (0, 1)).all(), f"{name}: {axis.unscaled}"
        if axis.external or (name == "queries" and growth.query_heads is not None):
            continue
        assert expansion.law_error() < TOLERANCE, f"{name}: R E is not I"
        assert axis.norm is None or commutes_with_norm(expansion, axis.norm), f"{name}: does not commute with the norm"
    original = [layer.source for layer in growth.layers if not layer.silent]
    assert original == list(range(depth)), "source layers are missing, reordered or repeated"


def _in_place(expansion: Expansion, axis: Axis, rope_stride: int) -> bool:
    """Whether the units whose place is fixed are where they belong, and without copies if they cannot have any."""
    units = np.arange(axis.fixed)
    places: Integers = units + (len(expansion) - axis.size if axis.last_first else 0)
    if axis.rotary_pairs:
        rotary = axis.rotary_channels(len(expansion), rope_stride)
        places = rotary_places(axis.fixed, rotary, halves=axis.rotary_pairs == "halves", stride=rope_stride)
    copies = counts(expansion.source, axis.size)[: axis.uncopyable]
    return bool((expansion.source[places] == units).all() and (copies == 1).all())


def _equally_copied(expansion: Expansion) -> bool:
    return not expansion.fresh.any() and not np.ptp(counts(expansion.source, expansion.size))


def match_target(tensors: Sequence[TensorMap], target: Architecture, growth: Growth) -> None:
    """Check that the planned tensors are exactly those that the grown config implies.

    Raises:
        ConfigError: the family's config cannot express the grown sizes.
        RecipeError: a layer would be a copy of one that lacks a tensor, as the first one of some families does.
    """
    check_sizes(target, growth)
    planned = {tensor.target: tensor.shape for tensor in tensors}
    for weight in target.weights:
        for layer in weight.layers or ():
            if (name := weight.at(layer, 0)) not in planned:
                raise RecipeError(
                    f"deepen: layer {layer} would be made from layer {growth.layers[layer].source}, which lacks what "
                    f"'{name}' could be made from. Choose an order and a number of layers in which each is made from "
                    "one of its kind, or a source with more layers."
                )
    assert planned == target.shapes(), "the plan differs from the target"


def check_stock(target: Architecture, tensors: Sequence[TensorMap], settings: Config) -> None:
    """Check that the stock class reads other settings as they are stated, runs with them and has the planned tensors.

    A table reads only the keys that its weights depend on. The class is built without weights; it reads all keys.

    Raises:
        RecipeError: transformers does not know or accept the settings, or has other weights with them.
    """
    from growth.checkpoints.stock_parameters import check_runs, check_stated, class_config, stored_as  # imports torch

    try:
        config = class_config(target.whole_config)
        check_stated(target.config, settings)
        if target.outer is None:  # a plan of a config alone has no tensors around a text model
            stored_as(config, [TensorInfo(each.target, "F32", each.shape) for each in tensors])
        check_runs(config)
    except GrowthError as error:
        told = ", ".join(f"{key} = {value!r}" for key, value in settings.items())
        raise RecipeError(f"configure: no stock model has {told} and the planned weights. {error}") from None
