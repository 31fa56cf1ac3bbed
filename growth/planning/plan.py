"""Plan: what a growth does to every tensor, known before a byte of one is read.

An operator that claims to preserve the function is held to the laws of docs/design.md, section 2, here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache, reduce
from typing import Any

import numpy as np

from growth.algebra.arithmetic import amplitude, mean
from growth.algebra.expansion import Expansion, Floats, Integers
from growth.algebra.spaces import VIEWS, read_in_full
from growth.architectures.base import Architecture, Weight, WeightPart
from growth.architectures.config import NEUTRAL, TrackedConfig
from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.safetensors import FLOATS
from growth.errors import CheckpointError, ConfigError, RecipeError
from growth.operators.base import Growth, Layer, NewTokens
from growth.operators.dense_to_moe import NOWHERE, as_mixture
from growth.planning.tensor_map import CancellingNoise, DimensionMap, MeanCorrection, TensorMap, cancelling_noise

TOLERANCE = 1e-9  # of the laws, in float64


@dataclass(frozen=True, eq=False)
class Plan:
    """A growth worked out: the source and target architectures and one row per output tensor.

    seed: of fresh values and noise.
    levels: with what the mean over an axis is written, where a LayerNorm needs that (section 2.2).
    dropped: tensors of the source that the model class computes itself.
    kept: config keys that the family's table does not know; they stay as they are.
    notes: how the source was read: files and names that were chosen or left out.
    """

    source: Architecture
    target: Architecture
    growth: Growth
    tensors: tuple[TensorMap, ...]
    seed: int
    levels: Mapping[str, float]
    dropped: tuple[str, ...]
    kept: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def preserving(self) -> bool:
        """Whether the grown model computes the source's function."""
        return self.growth.preserving

    @property
    def keeps_logits(self) -> bool:
        """Whether the source's tokens keep their logits; added tokens may take some of the probability."""
        return self.growth.keeps_logits

    @property
    def config(self) -> dict[str, Any]:
        """The config of the grown model."""
        return dict(self.target.config)

    @property
    def bytes(self) -> int:
        """Bytes of all output tensors."""
        return sum(row.bytes for row in self.tensors)

    @property
    def parameters(self) -> int:
        """Number of output values."""
        return sum(math.prod(row.shape) for row in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-able values."""
        rows = [
            {"name": r.target, "source": r.source.name, "shape": list(r.shape), "dtype": r.dtype, "what": r.what}
            for r in self.tensors
        ]
        return {
            "preserving": self.preserving,
            "steps": [vars(step) for step in self.growth.steps],
            "before": {name: axis.size for name, axis in self.source.axes.items()} | {"layers": self.source.depth},
            "after": {name: axis.size for name, axis in self.target.axes.items()} | {"layers": self.target.depth},
            "parameters": self.parameters,
            "bytes": self.bytes,
            "seed": self.seed,
            "config": self.config,
            "dropped": list(self.dropped),
            "kept": list(self.kept),
            "notes": list(self.notes),
            "tensors": rows,
        }


def make_plan(
    source: Architecture,
    growth: Growth,
    tensors: Mapping[str, TensorInfo],
    *,
    dtype: str | None = None,
    seed: int = 0,
) -> Plan:
    """Works out a growth of a source whose headers are `tensors`.

    dtype: safetensors name of the output's type (F16, BF16, F32, F64); the source's own by default.

    Raises:
        CheckpointError: a missing, unknown or mis-shaped tensor, or one that holds no floats.
        ConfigError: a geometry that the family cannot have.
        RecipeError: identity layers that the family's mathematics does not allow, or something that it does not
            have (a bias on its logits, a mixture to become).
    """
    source = source.named_as_in(tensors)
    match_tensors(source, tensors)
    if growth.mixing is not None:
        source, tensors = as_mixture(source, tensors, growth.mixing.top_k)
        growth = growth.covering(source)
    if growth.tokens.logit_bias is not None and not any(is_head_bias(weight) for weight in source.weights):
        raise RecipeError(f"{source.model_type} has no bias on its logits: leave out logit_bias.")
    growth, eps_factor = _with_one_eps(growth, source)
    levels = {name: _level(expansion, growth.axes[name].norm) for name, expansion in growth.expansions.items()}
    levelled = {name: level for name, level in levels.items() if level is not None}
    if source.no_identity and any(layer.silent for layer in growth.layers):
        raise RecipeError(f"Cannot add identity layers: {source.no_identity}")
    layers = [layer.source for layer in growth.layers]
    consulted = TrackedConfig(source.grown_config(growth.sizes, layers, eps_factor))
    target = source.family(consulted).named_as_in(tensors)
    target.refuse_enormous()
    kept = tuple(sorted(consulted.keys() - consulted.asked - set(NEUTRAL) - target.known_keys))
    if growth.keeps_logits:
        _assert_laws(growth, source.depth)
    planner = _Planner(source, growth, levelled, math.sqrt(eps_factor))
    rows = tuple(row for weight in source.weights for row in planner.rows(weight, tensors, dtype))
    _agree_with_target(rows, target, growth)
    return Plan(source, target, growth, rows, seed, levelled, (), kept)


def match_tensors(source: Architecture, tensors: Mapping[str, TensorInfo]) -> None:
    """Checks that a checkpoint holds exactly what its config promises.

    Raises:
        CheckpointError: a tensor is missing, unknown, mis-shaped or of a type that cannot grow.
    """
    shapes = source.shapes()
    missing = sorted(shapes.keys() - tensors.keys())
    if missing:
        raise CheckpointError(f"The checkpoint lacks {_some(missing)}, which its config ({source.model_type}) needs.")
    unknown = sorted(tensors.keys() - shapes.keys())
    if unknown:
        raise CheckpointError(
            f"The checkpoint holds {_some(unknown)}, which {source.model_type} with this config does not have. "
            "Correct config.json, or remove what is not the model's."
        )
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"Tensor '{name}' has shape {list(tensors[name].shape)} and config.json implies {list(shape)}. "
                "One of the two belongs to another model."
            )
        if tensors[name].dtype not in FLOATS:
            raise CheckpointError(
                f"Tensor '{name}' is stored as {tensors[name].dtype}: only {', '.join(FLOATS)} can grow. "
                "Save the model dequantised first."
            )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{len(names)} tensors ({shown}{', …' if len(names) > 3 else ''})" if len(names) > 1 else f"tensor {shown}"


def is_head_bias(weight: Weight) -> bool:
    """Whether a weight is a bias on the logits."""
    return weight.parts[0].pattern == "vocab"


# ------------------------------------------------- norms


def _with_one_eps(growth: Growth, source: Architecture) -> tuple[Growth, float]:
    """The growth with one eps factor for all norms, which share one eps: other axes are scaled to match.

    The factor is that of the mean square over what a norm runs over: the mean of write^2 over its new units.
    """
    normed = [axis.name for axis in growth.axes.values() if axis.norm]
    together = [*source.norms, *((name,) for name in normed if not any(name in group for group in source.norms))]
    expansions = dict(growth.expansions)

    def factor(group: tuple[str, ...]) -> float:
        return math.prod(_mean_square(expansions[name]) for name in group)

    common = next((factor(group) for group in together if abs(factor(group) - 1) > TOLERANCE), 1.0)
    for group in together:
        if abs(factor(group) - common) > TOLERANCE:
            expansions[group[0]] = expansions[group[0]].scaled(math.sqrt(common / factor(group)))
    return replace(growth, expansions=expansions), common


def _mean_square(expansion: Expansion) -> float:
    return mean(expansion.write**2)


def _commutes_with_norm(expansion: Expansion, norm: str) -> bool:
    """Whether a norm over the new units sees every old unit with its old weight (and mean)."""
    sums = [expansion.per_unit(expansion.write**2)]
    sums += [expansion.per_unit(expansion.write)] if norm == "layer" else []
    undisturbed = not expansion.write[expansion.fresh].any()
    return undisturbed and all(np.ptp(values) < TOLERANCE for values in sums)


def _level(expansion: Expansion, norm: str | None) -> float | None:
    """With what the mean over the units is written, where a LayerNorm needs every mean kept by hand.

    Copies of a LayerNorm's units write x*_j = write_j (x_i - mean(x)) + level mean(x), so that the new mean
    is level times the old and every distance to it write_j times the old. The level under which an
    embedding matrix that is also the head reads itself back is sum(write^2) / sum(write) of a unit.
    Nothing of that is needed where every unit is copied equally often with the same coefficient.
    """
    if norm != "layer" or not _commutes_with_norm(expansion, norm):
        return None
    copies = expansion.per_unit(np.ones(len(expansion)))
    if not (expansion.fresh.any() or np.ptp(expansion.write) or np.ptp(copies)):
        return None
    return mean(expansion.per_unit(expansion.write**2)) / mean(expansion.per_unit(expansion.write))


def _without_twins(growth: Growth) -> Growth:
    """The growth as a silent layer has it: what its branches would copy a second time is drawn afresh.

    Shares and noise tell copies apart by what their readers do, and a silent layer's readers are zero: copies there
    would get equal gradients for ever. Nothing that stands behind a zero is a function to be kept.
    """
    single = {
        name: expansion.without_copies() for name, expansion in growth.expansions.items() if growth.axes[name].inner
    }
    return replace(growth, expansions={**growth.expansions, **single})


def _assert_laws(growth: Growth, depth: int) -> None:
    """Holds every operator that claims to preserve the function to the laws of section 2."""
    for name, expansion in growth.expansions.items():
        axis = growth.axes[name]
        if axis.outer:
            continue
        assert expansion.law_error() < TOLERANCE, f"{name}: R E is not I"
        assert axis.norm is None or _commutes_with_norm(expansion, axis.norm), f"{name}: the norm notices"
    real = [layer.source for layer in growth.layers if not layer.silent]
    assert real == list(range(depth)), "layers are left out, reordered or run twice"


# ------------------------------------------------- rows


def dual_rows(plan: Plan, tensors: Mapping[str, TensorInfo]) -> tuple[TensorMap, ...]:
    """The rows by which gradients grow, in the order of the plan's: what reads and what writes exchanged.

    An output that is written to a copy weighs in the loss as much as the copy is read, and an input that is
    read from a copy is as large as the copy is written (docs/training.md). Of what is fresh they say nothing.

    tensors: headers of the gradients (or of what is like them), by the names of the source's tensors; rows of
        other tensors are left out.
    """
    growth = replace(plan.growth, noise=None, tokens=NewTokens())
    gain = math.sqrt(_with_one_eps(growth, plan.source)[1])
    planner = _Planner(plan.source, growth, plan.levels, 1 / gain, dual=True)
    return tuple(row for weight in plan.source.weights for row in planner.rows(weight, tensors, None))


@dataclass(frozen=True, eq=False)
class _Planner:
    """Makes the rows of weights; of their gradients, where `dual`.

    gain: the factor on norm gains that undoes the change of the mean square.
    silent: for layers whose branches end in zero.
    """

    source: Architecture
    growth: Growth
    levels: Mapping[str, float]
    gain: float
    dual: bool = False
    silent: bool = False

    @cached_property
    def of_silent_layers(self) -> _Planner:
        """The planner of layers whose branches end in zero."""
        return replace(self, growth=_without_twins(self.growth), silent=True)

    def rows(self, weight: Weight, tensors: Mapping[str, TensorInfo], dtype: str | None) -> list[TensorMap]:
        numbered = any(part.numbered for part in weight.parts)

        @cache
        def made(moved: float, silent: bool) -> tuple[tuple[DimensionMap, ...], tuple[CancellingNoise | None, ...]]:
            planner = self.of_silent_layers if silent else self
            count = len(weight.parts[0].dimensions)
            dimensions = tuple(planner.dimension(weight, number, moved) for number in range(count))
            if silent:  # one object where they are alike, so that rows made of it are seen to be
                loud, _ = made(moved, False)
                dimensions = tuple(a if a.is_like(b) else b for a, b in zip(loud, dimensions, strict=True))
            return dimensions, tuple(planner.noise(weight, dimension) for dimension in dimensions)

        def row(target: str, name: str, new_layer: bool, moved: float, twins: tuple[str, ...] = ()) -> TensorMap:
            info = tensors[name]
            zero = weight.branch_end and (new_layer or info.name == NOWHERE)
            size = self.twin_noise(len(twins))
            drawn = self.growth.mixing.router_std if self.growth.mixing and info.name == NOWHERE else None
            how = (weight, *made(moved, new_layer), new_layer, zero, twins, size, drawn, self.constant(weight))
            return TensorMap(target, info, dtype or info.dtype, *how)

        rows = []
        copied = self.copied_units(weight)
        for target, (layer, unit) in self.places(weight):
            source = self.growth.layers[layer] if weight.per_layer else Layer(0)
            name = weight.at(source.source, copied[unit])
            if self.dual and name not in tensors:
                continue
            moved = (layer + 1) / (source.source + 1) if numbered else 1.0
            moved = 1 / moved if self.dual else moved
            made_row = row(target, name, source.silent, moved, self.twins(weight, layer, unit))
            rows.append(made_row if not self.dual else self.shared(made_row, unit))
        return rows

    def shared(self, row: TensorMap, unit: int) -> TensorMap:
        """The gradient of a tensor of a unit's own: it weighs as much as the unit is read."""
        if not row.weight.units:
            return row
        expansion = reduce(Expansion.times, (self.growth.expansions[axis] for axis in row.weight.units))
        first, *others = row.dimensions
        return replace(row, dimensions=(first.scaled(float(expansion.read[unit])), *others))

    def places(self, weight: Weight) -> list[tuple[str, tuple[int, int]]]:
        """The output tensors of a weight, with their layer and unit; a layer has what its source has."""
        layers = self.growth.layers
        kept = range(len(layers)) if weight.only is None else self.layers_like(weight.only)
        units = math.prod(len(self.growth.expansions[axis]) for axis in weight.units)
        grown = replace(weight, only=tuple(kept)) if weight.per_layer else weight
        return [(weight.at(*place), place) for place in grown.places(len(layers), units)]

    def layers_like(self, only: Sequence[int]) -> list[int]:
        return [index for index, layer in enumerate(self.growth.layers) if layer.source in only]

    def copied_units(self, weight: Weight) -> list[int]:
        """The old unit whose tensor each new one copies; the first, where the new unit is fresh."""
        if not weight.units:
            return [0]
        expansion = reduce(Expansion.times, (self.growth.expansions[axis] for axis in weight.units))
        return [max(int(source), 0) for source in expansion.source]

    def twins(self, weight: Weight, layer: int, expert: int) -> tuple[str, ...]:
        """The copies of an expert, itself included, whose outputs are averaged: their noise cancels.

        Those of an upcycled model are not averaged: a token goes to some of them, in unequal parts.
        """
        if (
            self.growth.noise is None
            or self.growth.mixing is not None
            or not (weight.units == ("experts",) and weight.branch_end)
        ):
            return ()
        source = self.growth.expansions["experts"].source
        twins = tuple(weight.at(layer, int(other)) for other in np.flatnonzero(source == source[expert]))
        return twins if len(twins) > 1 else ()

    def constant(self, weight: Weight) -> float | None:
        """The bias of new tokens."""
        return self.growth.tokens.logit_bias if is_head_bias(weight) else None

    def twin_noise(self, twins: int) -> float:
        """Relative to the values; averaging over twins leaves (twins - 1) / twins of the noise's power."""
        noise = self.growth.noise
        return math.sqrt(twins / (twins - 1)) * amplitude(noise.snr_db) if noise and twins else 0.0

    def expansion(self, space: str) -> Expansion:
        """The expansion of a space: of its axis, as it is seen there."""
        axis, *views = self.source.spaces.get(space, (space,))
        expansion = self.growth.expansions[axis]
        for view in views:
            expansion = VIEWS[view](expansion)
        return expansion

    def dimension(self, weight: Weight, number: int, moved: float) -> DimensionMap:
        """A stored dimension of a weight: its parts side by side, within what they share.

        moved: the new number of the weight's layer over the old one.
        """
        if number != weight.fused:
            return self.product(weight, weight.parts[0], weight.parts[0].dimensions[number])
        gain = self.gain if weight.undoes is not None else 1.0
        shared = len(weight.within)
        beside = [
            self.product(weight, part, part.dimensions[number][shared:]).scaled(moved if part.numbered else 1.0)
            for part in weight.parts
        ]
        within = self.product(weight, weight.parts[0], weight.within)
        return within.times(reduce(DimensionMap.beside, beside)).scaled(gain)

    def product(self, weight: Weight, part: WeightPart, spaces: Sequence[str]) -> DimensionMap:
        return reduce(DimensionMap.times, (self.factor(weight, part, space) for space in spaces), DimensionMap.one())

    def factor(self, weight: Weight, part: WeightPart, space: str) -> DimensionMap:
        """One space of a weight, which reads it, writes it, or is the gain of the norm in front of it."""
        expansion = self.expansion(space)
        is_read = (space in part.reads) != self.dual
        level = None if weight.undoes is not None else self.level(space)
        if is_read and level is not None and not self.dual:
            expansion = read_in_full(expansion)
        coefficient = expansion.read if is_read else self.written(expansion)
        if weight.undoes is not None:
            into = [name for names in part.dimensions for name in names]
            coefficient = self.undone(weight.undoes[into.index(space)], coefficient)
        group = expansion.source if is_read else _each_its_own(len(expansion))
        share = expansion.write if is_read else np.broadcast_to(1.0, len(expansion))
        if is_read and level is not None:
            share, level = np.zeros(len(expansion)), None  # noise that cancels over copies meets the mean too
        if space == "vocab" and self.growth.tokens.mean:
            level = MeanCorrection(
                1, expansion.size, 1, np.zeros(len(expansion), np.int64), expansion.fresh.astype(float)
            )
        group = np.maximum(group, 0) if group.min(initial=0) < 0 else group
        return DimensionMap(expansion.size, expansion.source, coefficient, group, share, level)

    def written(self, expansion: Expansion) -> Floats:
        """The write coefficients; where a branch ends in a norm's gain of zero, fresh units in front of it are written.

        They would have no gradient if both were zero.
        """
        if not self.silent or self.dual:
            return expansion.write
        return np.where(expansion.fresh & (expansion.write == 0), 1.0, expansion.write)

    def undone(self, space: str, coefficient: Floats) -> Floats:
        """A norm's gain: what is written behind it, over what is written in front of it."""
        before = self.expansion(space)
        write = np.where(before.fresh, 1.0, before.write)
        return np.where(before.fresh, 1.0, coefficient * write if self.dual else coefficient / write)

    def level(self, space: str) -> MeanCorrection | None:
        """Copies keep the distance to the mean that they are written with; the mean keeps its level."""
        axis, *views = self.source.spaces.get(space, (space,))
        if views or axis not in self.levels:
            return None
        expansion = self.growth.expansions[axis]
        new = len(expansion)
        return MeanCorrection(1, expansion.size, 1, np.zeros(new, np.int64), self.levels[axis] - expansion.write)

    def noise(self, weight: Weight, dimension: DimensionMap) -> CancellingNoise | None:
        noise = self.growth.noise
        return None if noise is None or weight.undoes is not None else cancelling_noise(dimension, noise.snr_db)


@lru_cache(maxsize=4)
def _each_its_own(count: int) -> Integers:
    """Groups of one index each; a vocabulary is long, and several tensors have it."""
    return np.arange(count)


def _agree_with_target(rows: Sequence[TensorMap], target: Architecture, growth: Growth) -> None:
    """The rows are exactly the tensors that the grown config promises."""
    if target.depth != len(growth.layers) or {n: a.size for n, a in target.axes.items()} != growth.sizes:
        raise ConfigError(f"{target.model_type} cannot state the sizes {growth.sizes} in its config.")
    assert {row.target: row.shape for row in rows} == target.shapes(), "rows differ from the target's table"
