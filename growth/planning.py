"""Plan: what a growth does to every tensor, known before a byte of one is read.

An operator that claims to preserve the function is held to the laws of docs/design.md, section 2, here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from growth.architecture import Architecture, Weight
from growth.checkpoint import FLOATS, TensorInfo
from growth.errors import CheckpointError, ConfigError, RecipeError
from growth.expansion import Expansion, Floats, Integers
from growth.growth import Growth
from growth.row import Cancelling, Centring, Dimension, Row

TOLERANCE = 1e-9  # of the laws, in float64
TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Plan:
    """A growth worked out: the source and target architectures and one row per output tensor.

    seed: of fresh values and noise.
    dropped: tensors of the source that the model class computes itself.
    """

    source: Architecture
    target: Architecture
    growth: Growth
    rows: tuple[Row, ...]
    seed: int
    centred: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def preserving(self) -> bool:
        """Whether the grown model computes the source's function."""
        return self.growth.preserving

    @property
    def config(self) -> dict[str, Any]:
        """The config of the grown model."""
        return dict(self.target.config)

    @property
    def bytes(self) -> int:
        """Bytes of all output tensors."""
        return sum(row.bytes for row in self.rows)

    @property
    def parameters(self) -> int:
        """Number of output values."""
        return sum(math.prod(row.shape) for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-able values."""
        rows = [
            {"name": r.target, "source": r.source.name, "shape": list(r.shape), "dtype": r.dtype, "what": r.what}
            for r in self.rows
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
        RecipeError: a fold that this model does not allow.
    """
    dropped = match_tensors(source, tensors)
    growth, eps_factor = _with_one_eps(growth)
    target = source.family(source.grown_config(growth.sizes, len(growth.layers), eps_factor))
    centred = tuple(name for name, e in growth.expansions.items() if _needs_centring(e, growth.axes[name].norm))
    if source.tied and source.axis(source.tied) in centred:
        raise RecipeError(
            "A LayerNorm model whose head is its embedding can only grow residual by whole ratios: its stream "
            "cannot be centred, because the head reads the same matrix. Use factor: 2, or untie the head first."
        )
    if growth.preserving:
        _assert_laws(growth, source.depth)
    planner = _Planner(source, growth, centred, math.sqrt(eps_factor))
    rows = tuple(row for weight in source.weights for row in planner.rows(weight, tensors, dtype))
    _agree_with_target(rows, target, growth)
    return Plan(source, target, growth, rows, seed, centred, dropped)


def match_tensors(source: Architecture, tensors: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    """Checks that a checkpoint holds exactly what its config promises; returns the recomputed ones.

    Raises:
        CheckpointError: a tensor is missing, unknown, mis-shaped or of a type that cannot grow.
    """
    shapes = source.shapes()
    dropped = tuple(name for name in tensors if name.endswith(source.recomputed) and name not in shapes)
    missing = sorted(shapes.keys() - tensors.keys())
    if missing:
        raise CheckpointError(f"The checkpoint lacks {_some(missing)}, which its config ({source.model_type}) needs.")
    unknown = sorted(tensors.keys() - shapes.keys() - set(dropped))
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
    return dropped


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{len(names)} tensors ({shown}{', …' if len(names) > 3 else ''})" if len(names) > 1 else f"tensor {shown}"


# ------------------------------------------------- norms


def _eps_factor(expansion: Expansion) -> float:
    """How the mean square over the units changes: by the mean of write^2 over the new units."""
    factor = float(np.mean(expansion.write**2))
    return 1.0 if abs(factor - 1) < TOLERANCE else factor


def _with_one_eps(growth: Growth) -> tuple[Growth, float]:
    """The growth with one eps factor for all norms, which share one eps: other axes are scaled to match."""
    factors = {name: _eps_factor(growth.expansions[name]) for name, axis in growth.axes.items() if axis.norm}
    common = next((factor for factor in factors.values() if factor != 1), 1.0)
    expansions = dict(growth.expansions)
    for name, factor in factors.items():
        if factor != common:
            expansions[name] = expansions[name].scaled(math.sqrt(common / factor))
    return replace(growth, expansions=expansions), common


def _commutes_with_norm(expansion: Expansion, norm: str) -> bool:
    """Whether a norm over the new units sees every old unit with its old weight (and mean)."""
    sums = [expansion.per_unit(expansion.write**2)]
    sums += [expansion.per_unit(expansion.write)] if norm == "layer" else []
    undisturbed = not expansion.write[expansion.fresh].any()
    return undisturbed and all(np.ptp(values) < TOLERANCE for values in sums)


def _needs_centring(expansion: Expansion, norm: str | None) -> bool:
    """Whether a LayerNorm commutes with the expansion, and does so only where the mean is zero."""
    if norm != "layer" or not _commutes_with_norm(expansion, norm):
        return False
    copies = expansion.per_unit(np.ones(len(expansion)))
    return bool(expansion.fresh.any() or np.ptp(expansion.write) or np.ptp(copies))


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


@dataclass(frozen=True, eq=False)
class _Planner:
    source: Architecture
    growth: Growth
    centred: tuple[str, ...]
    gain: float

    def rows(self, weight: Weight, tensors: Mapping[str, TensorInfo], dtype: str | None) -> list[Row]:
        dimensions = tuple(self.dimension(weight, spaces) for spaces in weight.dimensions)
        factor = self.softmax_factor() if weight.softmax_scale else 1.0
        centring = self.centring(weight)

        def row(target: str, name: str, new_layer: bool) -> Row:
            info = tensors[name]
            zero = new_layer and weight.branch_end
            return Row(target, info, dtype or info.dtype, weight, dimensions, factor, centring, new_layer, zero)

        if not weight.per_layer:
            return [row(weight.name, weight.name, False)]
        return [
            row(weight.name.format(layer=index), weight.name.format(layer=layer.source), layer.silent)
            for index, layer in enumerate(self.growth.layers)
        ]

    def expansion(self, space: str) -> Expansion:
        """The expansion of a space: of its axis, seen from in front of a norm or from behind it."""
        expansion = self.growth.expansions[self.source.axis(space)]
        if space == self.source.tied:
            return expansion.mirrored()
        # behind a norm that nothing grows through, and after a lossy growth, all coefficients are as they are
        return expansion.normed() if space in self.source.behind else expansion

    def coefficient(self, weight: Weight, space: str) -> Floats:
        """What a weight multiplies a space's units with: it reads them, writes them, or is a norm's gain."""
        expansion = self.expansion(space)
        coefficient = expansion.read if space in weight.reads else expansion.write
        if weight.undoes is None:
            return coefficient
        before = self.expansion(weight.undoes)
        return self.gain * np.where(before.fresh, 1.0, coefficient / np.where(before.fresh, 1.0, before.write))

    def dimension(self, weight: Weight, spaces: tuple[str, ...]) -> Dimension:
        whole = Expansion.identity(1)
        scale: Floats = np.ones(1)
        for space in spaces:
            whole = whole.times(self.expansion(space))
            scale = np.kron(scale, self.coefficient(weight, space))
        return Dimension(whole.size, whole.source, scale, self.noise(weight, spaces, whole, scale))

    def noise(self, weight: Weight, spaces: tuple[str, ...], whole: Expansion, scale: Floats) -> Cancelling | None:
        """Noise over the copies of what the weight reads; what it writes keeps noise of its own."""
        noise = self.growth.noise
        if noise is None or weight.undoes or not set(spaces) & set(weight.reads):
            return None
        group: Integers = np.zeros(1, np.int64)
        write: Floats = np.ones(1)
        for space in spaces:
            expansion = self.expansion(space)
            read = space in weight.reads
            place = expansion.source if read else np.arange(len(expansion))
            group = (group[:, None] * (max(len(expansion), expansion.size)) + place[None, :]).ravel()
            write = np.kron(write, expansion.write if read else np.ones(len(expansion)))
        write = np.where(whole.fresh, 0.0, write)
        group = np.unique(np.where(whole.fresh, -1, group), return_inverse=True)[1]
        # what is left of unit noise when its part along `write` is taken out of each group
        left = 1 - write**2 / np.maximum(np.bincount(group, write**2)[group], TINY)
        copied = (write != 0) & (left > TOLERANCE)
        if not copied.any():
            return None
        signal = np.sqrt(np.mean(scale[copied] ** 2) / np.mean(left[copied]))
        return Cancelling(group, write, float(signal * 10 ** (-noise.snr_db / 20)))

    def softmax_factor(self) -> float:
        expansion = self.growth.expansions["head_dim"]
        return math.sqrt(len(expansion) / expansion.size)

    def centring(self, weight: Weight) -> tuple[Centring, ...]:
        """The means to subtract from a weight that writes a space whose LayerNorm needs it centred."""
        found = []
        for dimension, spaces in enumerate(weight.dimensions):
            sizes = [self.source.axes[self.source.axis(space)].size for space in spaces]
            for place, space in enumerate(spaces):
                if space in self.centred and space not in weight.reads and weight.undoes is None:
                    outer, inner = math.prod(sizes[:place]), math.prod(sizes[place + 1 :])
                    found.append(Centring(dimension, outer, sizes[place], inner))
        return tuple(found)


def _agree_with_target(rows: Sequence[Row], target: Architecture, growth: Growth) -> None:
    """The rows are exactly the tensors that the grown config promises."""
    if target.depth != len(growth.layers) or {n: a.size for n, a in target.axes.items()} != growth.sizes:
        raise ConfigError(f"{target.model_type} cannot state the sizes {growth.sizes} in its config.")
    assert {row.target: row.shape for row in rows} == target.shapes(), "rows differ from the target's table"
