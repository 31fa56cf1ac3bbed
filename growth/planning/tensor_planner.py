"""The tensor planner: from a weight of the family's table and a growth to the maps of its output tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, reduce

import numpy as np

from growth.algebra.expansion import Expansion, Floats, Integers, ordinal
from growth.algebra.spaces import SCALES, read_in_full
from growth.algebra.split import Split
from growth.architectures.base import Architecture, Weight, WeightPart
from growth.architectures.config import number
from growth.arrays.tensor_info import NO_SOURCE, TensorInfo
from growth.operators.base import ATTENTION, Growth, Layer
from growth.operators.fit import expansion_of, scale
from growth.planning.tensor_map import DimensionMap, MeanCorrection, Replica, TensorMap

AxisMaps = tuple[DimensionMap, ...]


def without_inner_copies(growth: Growth) -> Growth:
    """The growth of a silent layer: further copies inside its branches are fresh units instead.

    Divided weights make copies diverge through what their readers compute, but a silent layer's readers are zero, so
    its copies would have equal gradients for ever. Behind a zero there is no function to preserve.
    """
    fresh = {
        name: expansion.without_copies()
        for name, expansion in growth.expansions.items()
        if growth.axes[name].unconstrained
    }
    query_heads = growth.query_heads
    if query_heads is not None and fresh.keys() >= set(ATTENTION):
        query_heads = query_heads.without_copies()
    return replace(growth, expansions={**growth.expansions, **fresh}, query_heads=query_heads)


def with_query_heads(growth: Growth) -> Growth:
    """The growth as weights see it that all query heads write or read, where these are no product of two axes.

    `heads` are then all query heads, and `queries` are one.
    """
    if growth.query_heads is None:
        return growth
    heads, queries = ATTENTION
    kind = growth.splits.get(heads, growth.splits.get(queries))
    splits = {**growth.splits, heads: kind} if kind else growth.splits
    expansions = {**growth.expansions, heads: growth.query_heads, queries: Expansion.identity(1)}
    return replace(growth, expansions=expansions, splits=splits, query_heads=None)


@dataclass(frozen=True, eq=False)
class TensorPlanner:
    """Plans the output tensors of weights, or of their gradients where `dual`.

    mean_factors: by axis, the factor by which a LayerNorm's mean is multiplied (`growth.planning.norms.mean_factor`).
    gain: the factor on the norms' gains that undoes the change of the mean square.
    silent: whether it plans layers whose branches end in zero.
    """

    source: Architecture
    growth: Growth
    mean_factors: Mapping[str, float]
    gain: float
    dual: bool = False
    silent: bool = False

    @cached_property
    def of_silent_layers(self) -> TensorPlanner:
        """The planner of layers whose branches end in zero."""
        return replace(self, growth=without_inner_copies(self.growth), silent=True)

    @cached_property
    def of_query_heads(self) -> TensorPlanner:
        """The planner of what all query heads write or read."""
        return replace(self, growth=with_query_heads(self.growth)) if self.growth.query_heads else self

    def plan_all(self, headers: Mapping[str, TensorInfo], dtype: str | None) -> tuple[TensorMap, ...]:
        """The maps of all output tensors, in the order of the family's table."""
        return tuple(tensor for weight in self.source.weights for tensor in self.plan(weight, headers, dtype))

    def plan(self, weight: Weight, headers: Mapping[str, TensorInfo], dtype: str | None) -> list[TensorMap]:
        """The maps of a weight's output tensors, one for each layer and unit that has it."""
        loud = cache(lambda inside, ratio: inside.axis_maps(weight, ratio))
        silent = cache(lambda inside, ratio: inside.silent_axis_maps(weight, ratio, loud(inside, ratio)))
        fresh = cache(lambda inside, _: tuple(one.redrawn() for one in loud(inside, 1.0)))
        copied = self.copied_units(weight)
        planned = []
        for target, (index, unit) in self.places(weight):
            layer = self.growth.layers[index] if weight.per_layer else Layer(0)
            name = weight.at(layer.source, copied[unit])
            if self.dual and name not in headers:
                continue
            ratio = self.layer_ratio(weight, index, layer.source)
            drawn = layer.fresh and not self.dual and not weight.borrowed
            made = fresh if drawn else silent if layer.silent else loud
            maps = made(self.inside(weight, index, unit, copied[unit]), ratio)
            tensor = self.tensor_map(weight, target, headers[name], dtype, layer, maps)
            replica = None if self.dual else self.replica(weight, index, unit)
            planned.append(replace(tensor, replica=replica) if replica else self.weighed(tensor, unit))
        return planned

    def tensor_map(
        self, weight: Weight, target: str, info: TensorInfo, dtype: str | None, layer: Layer, maps: AxisMaps
    ) -> TensorMap:
        """The map of one output tensor."""
        mixing, zero = self.growth.mixing, weight.branch_end and layer.silent
        made = TensorMap(target, info, dtype or info.dtype, weight, maps, layer.new, zero)
        if layer.fresh and not self.dual and not weight.borrowed:
            mean = float(weight.norm_inputs is not None)
            return replace(made, init_std=self.initial_std(weight, layer, maps), init_mean=mean)
        drawn = mixing is not None and info.name == NO_SOURCE
        return replace(
            made,
            zero=zero or (mixing is not None and mixing.is_zero(weight, drawn)),
            init_std=mixing.router_std if mixing and drawn else None,
            drawn_rows=self.drawn_rows(weight) if drawn else None,
            constant=self.growth.tokens.logit_bias if weight.is_head_bias else None,
        )

    def initial_std(self, weight: Weight, layer: Layer, maps: AxisMaps) -> float:
        """The standard deviation of a weight of a layer of random values; gains and biases are constant."""
        if weight.norm_inputs is not None or weight.name.endswith(".bias"):
            return 0.0
        assert layer.std is not None
        if not isinstance(layer.std, str):
            return layer.std
        key, default = self.source.initial_std
        stock = number(self.source.config, key, default) or default
        if weight.branch_end and self.source.scaled_ends:
            stock /= math.sqrt(2 * len(self.growth.layers))
        part = weight.parts[0]
        inputs = [one for one, spaces in zip(maps, part.dimensions, strict=True) if set(spaces) <= set(part.reads)]
        fan_in = math.prod(one.size / len(one) for one in inputs)
        return stock * math.sqrt(fan_in) if layer.std == "mup" else stock

    # ------------------------------------------------- which tensors

    def places(self, weight: Weight) -> list[tuple[str, tuple[int, int]]]:
        """The names of a weight's output tensors, each with its (layer, unit); a layer has what its source has."""
        layers = self.growth.layers
        if weight.per_layer and weight.layers is not None:
            weight = replace(
                weight, layers=tuple(at for at, layer in enumerate(layers) if layer.source in weight.layers)
            )
        units = len(self.unit_expansion(weight))
        return [(weight.at(*place), place) for place in weight.places(len(layers), units)]

    def unit_expansion(self, weight: Weight) -> Expansion:
        """The expansion of the units (experts, heads) that have a tensor of their own."""
        planner = self.of_query_heads if "queries" in weight.units else self
        axes = (planner.expansion(axis) for axis in weight.units)
        return reduce(Expansion.times, axes, Expansion.identity(1))

    def copied_units(self, weight: Weight) -> list[int]:
        """The old unit whose tensor each new unit copies; the first one, where the new unit is fresh."""
        return [max(int(source), 0) for source in self.unit_expansion(weight).source]

    def layer_ratio(self, weight: Weight, index: int, source: int) -> float:
        """The factor on a weight that the model divides by its layer's number: the new number over the old one."""
        if not any(part.layer_scaled for part in weight.parts):
            return 1.0
        ratio = (index + 1) / (source + 1)
        return 1 / ratio if self.dual else ratio

    def weighed(self, tensor: TensorMap, unit: int) -> TensorMap:
        """A unit's own tensor times the unit's share, if it reads the axis of its unit, or the gradient of another."""
        weight = tensor.weight
        if not weight.units or weight.reads_units == self.dual:
            return tensor
        first, *others = tensor.dimensions
        read = float(self.unit_expansion(weight).read[unit])
        return replace(tensor, dimensions=(first.scaled(read), *others))

    # ------------------------------------------------- the experts of an upcycled model

    def inside(self, weight: Weight, layer: int, expert: int, part: int) -> TensorPlanner:
        """The planner of one expert's tensor: it has units of its own, where the dense MLP is divided or redrawn."""
        mixing = self.growth.mixing
        if mixing is None or weight.units != ("experts",) or not mixing.differ:
            return self
        return self.of_expert(part, *((layer, expert) if mixing.reinit else (0, 0)))

    @cached_property
    def of_expert(self) -> Callable[[int, int, int], TensorPlanner]:
        """The planner of an expert, from the part of the dense MLP that it is, its layer and its number."""
        mixing, ffn = self.growth.mixing, self.growth.expansions["ffn"]
        assert mixing is not None

        @cache
        def planner(part: int, layer: int, expert: int) -> TensorPlanner:
            own = mixing.units(ffn.size * mixing.parts, part, layer, expert).then(ffn)
            return replace(self, growth=replace(self.growth, expansions={**self.growth.expansions, "ffn": own}))

        return planner

    def drawn_rows(self, weight: Weight) -> Integers | None:
        """Which drawn row each row of a router is: the parts of a divided MLP share one, so that all are chosen."""
        mixing = self.growth.mixing
        if mixing is None or mixing.parts == 1 or weight.parts[0].dimensions[0] != ("experts",):
            return None
        return ordinal(self.growth.expansions["experts"].source)

    # ------------------------------------------------- copies of an expert

    def replica(self, weight: Weight, layer: int, expert: int) -> Replica | None:
        """Which of the copies of an expert the last weight of an expert belongs to, if it is divided among them.

        The experts of an upcycled model are not averaged: each token goes to some of them, in unequal parts.
        """
        kind = self.growth.splits.get("experts")
        if kind is None or weight.units != ("experts",) or not weight.writes_stream:
            return None
        source = self.growth.expansions["experts"].source
        copies = np.flatnonzero(source == source[expert])
        if len(copies) == 1:
            return None
        part = np.flatnonzero(copies == expert)
        count = len(copies)
        split = Split(kind, part, np.array([count]), np.zeros(1, np.int64))
        return Replica(split, weight.at(layer, int(copies[0])), 1 if weight.reads_units else count)

    # ------------------------------------------------- dimensions

    def axis_maps(self, weight: Weight, ratio: float) -> AxisMaps:
        """The map of each stored dimension of a weight."""
        stored = range(len(weight.parts[0].dimensions))
        return tuple(self.dimension(weight, at, ratio) for at in stored) or (DimensionMap.one(),)

    def silent_axis_maps(self, weight: Weight, ratio: float, loud: AxisMaps) -> AxisMaps:
        """The same for silent layers: equal maps are one object, so that equal tensors are recognised by identity."""
        silent = self.of_silent_layers.axis_maps(weight, ratio)
        return tuple(a if a.is_like(b) else b for a, b in zip(loud, silent, strict=True))

    def dimension(self, weight: Weight, at: int, ratio: float) -> DimensionMap:
        """One stored dimension of a weight: its parts side by side, within the spaces that they share."""
        if at != weight.fused:
            return self.product(weight, weight.parts[0], weight.parts[0].dimensions[at])
        gain = self.gain if self.source.has_stated_eps(weight) else 1.0
        gain *= self.growth.mixing.factor(weight, dual=self.dual) if self.growth.mixing else 1.0
        shared = len(weight.within)
        beside = [
            self.product(weight, part, part.dimensions[at][shared:]).scaled(ratio if part.layer_scaled else 1.0)
            for part in weight.parts
        ]
        within = self.product(weight, weight.parts[0], weight.within)
        return within.times(reduce(DimensionMap.beside, beside)).scaled(gain)

    def product(self, weight: Weight, part: WeightPart, spaces: Sequence[str]) -> DimensionMap:
        """The map of a product of spaces."""
        planner = self.of_query_heads if any(self.source.axis(space) == "queries" for space in spaces) else self
        return reduce(DimensionMap.times, (planner.factor(weight, part, space) for space in spaces), DimensionMap.one())

    def factor(self, weight: Weight, part: WeightPart, space: str) -> DimensionMap:
        """The map of one space, which the weight reads or writes, or whose norm it is the gain of."""
        expansion = self.expansion(space)
        is_read = (space in part.reads) != self.dual
        correction = None if weight.norm_inputs is not None else self.mean_correction(space)
        if is_read and correction is not None and not self.dual:
            expansion = read_in_full(expansion)
        coefficient = expansion.read if is_read else self.written(expansion)
        if weight.norm_inputs is not None:
            into = [name for names in part.dimensions for name in names]
            coefficient = self.gain_over_write(weight.norm_inputs[into.index(space)], coefficient)
        if is_read:
            correction = None
        if space == "vocab" and self.growth.tokens.mean:
            correction = _mean_of_all(expansion, expansion.fresh.astype(float))
        source = borrowing(expansion) if weight.borrowed and not self.dual else expansion.source
        averaged = space == "experts" and weight.of_experts and weight.writes_stream
        split = self.split(weight, space, expansion) if is_read or averaged else None
        if split is not None:
            divided = split.parts > 1  # fresh units are not, and they may be written as zero
            whole = expansion.write if is_read else expansion.read  # the mean over copies is kept, not the sum
            coefficient = np.divide(1, whole, out=coefficient.copy(), where=divided)
        return DimensionMap(expansion.size, source, coefficient, correction, split)

    def split(self, weight: Weight, space: str, expansion: Expansion) -> Split | None:
        """How a weight that reads a space is divided among copies.

        It is not: gains; gradients, which copies have in full; and what reads copies that are written unequally.
        """
        kind = self.growth.splits.get(self.source.axis(space))
        if kind is None or self.dual or weight.norm_inputs is not None:
            return None
        return Split.of(kind, expansion)

    def expansion(self, space: str) -> Expansion:
        """The expansion of a space: that of its axis, seen through the views of the space."""
        return expansion_of(space, self.growth, self.source)

    def written(self, expansion: Expansion) -> Floats:
        """The write coefficients; in silent layers, fresh units are written even if the growth leaves them silent.

        Where a branch ends in a norm's gain of zero, a unit that is zero on both sides would have no gradient.
        """
        if not self.silent or self.dual:
            return expansion.write
        return np.where(expansion.fresh & (expansion.write == 0), 1.0, expansion.write)

    def gain_over_write(self, space: str, coefficient: Floats) -> Floats:
        """The coefficients of a norm's gain: those written behind the norm over those written in front of it."""
        before = self.expansion(space)
        write = np.where(before.fresh, 1.0, before.write)
        return np.where(before.fresh, 1.0, coefficient * write if self.dual else coefficient / write)

    def mean_correction(self, space: str) -> MeanCorrection | None:
        """The correction that multiplies the mean over an axis by its factor and keeps distances to it."""
        axis, *views = self.source.spaces.get(space, (space,))
        if axis not in self.mean_factors or not SCALES.keys() >= set(views):
            return None
        expansion = self.growth.expansions[axis]
        factor = math.prod(scale(view, axis, self.growth.expansions, self.source) for view in views)
        return _mean_of_all(expansion, factor * (self.mean_factors[axis] - expansion.write))


def borrowing(expansion: Expansion) -> Integers:
    """The old unit of each new one, where fresh units take the values of old ones in turn."""
    fresh = expansion.fresh
    return np.where(fresh, (np.cumsum(fresh) - 1) % max(expansion.size, 1), expansion.source)


def _mean_of_all(expansion: Expansion, coefficient: Floats) -> MeanCorrection:
    """The mean over all old units, added to each new one with a coefficient."""
    return MeanCorrection(1, expansion.size, 1, np.zeros(len(expansion), np.int64), coefficient)
