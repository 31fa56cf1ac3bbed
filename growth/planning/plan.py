"""Plan: what a growth does to every tensor, computed from headers alone.

The plan of an operator that claims to preserve the function is checked against the laws of docs/design.md, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from growth.architectures.base import Architecture
from growth.architectures.config import NEUTRAL, Config, TrackedConfig
from growth.architectures.rotary import restated
from growth.arrays.tensor_info import TensorInfo
from growth.errors import GrowthError, RecipeError
from growth.operators.base import Growth, NewTokens
from growth.operators.fit import check_applicable, check_divided
from growth.planning.check import assert_laws, check_stock, match_target, match_tensors
from growth.planning.norms import mean_factors, with_one_eps
from growth.planning.tensor_map import TensorMap
from growth.planning.tensor_planner import TensorPlanner
from growth.runtime.shown import Shown

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Shown):
    """A growth of one source: its architecture before and after, and the map of every output tensor.

    It shows itself as `growth plan` does; in a notebook, with a picture of what is old, copied and new.

    stored: the source's architecture as its config states it.
    source: the same as the growth reads it: with another head, or as a mixture of one expert. The layers that a source
        without any is read with (`Growth.blank`) are in its table, and do not count as its depth.
    headers: the stored tensors by the names of `source`.
    seed: the random seed of fresh values and divided weights.
    mean_factors: by axis, the factor λ by which the mean is multiplied, for axes that need a mean correction under a
        LayerNorm (docs/design.md, 2.2).
    dropped: tensors of the source that the model class computes itself.
    kept: config keys that the family's table does not know and that are carried over unchanged.
    repeated: pairs of stored tensors that the grown model ties, of which only the second is read: both must hold the
        same values.
    notes: how the source was read: files and names that were chosen or left out.

    >>> import growth
    >>> plan = growth.plan("phi-mini", "examples/phi-mini")
    >>> plan.preserving, plan.growth.sizes["residual"], plan.config["num_hidden_layers"], plan.bytes
    (True, 160, 8, 6258816)
    """

    stored: Architecture
    source: Architecture
    target: Architecture
    growth: Growth
    headers: Mapping[str, TensorInfo]
    tensors: tuple[TensorMap, ...]
    seed: int
    mean_factors: Mapping[str, float]
    dropped: tuple[str, ...]
    kept: tuple[str, ...]
    repeated: tuple[tuple[TensorInfo, TensorInfo], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sources(self) -> dict[str, TensorInfo]:
        """The stored tensors that the output is made from, by name, and those that repeat one of them."""
        made_from = (tensor_map.source for tensor_map in self.tensors if tensor_map.init_std is None)
        return {info.name: info for info in (*made_from, *(head for head, _ in self.repeated))}

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
        """The content of the grown model's config.json."""
        return self.target.whole_config

    @property
    def passing(self) -> dict[str, int]:
        """How many tensors around a text model pass through unchanged, by their prefix."""
        return self.stored.outer.passing(self.stored) if self.stored.outer else {}

    @property
    def bytes(self) -> int:
        """Bytes of all output tensors."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Number of output values."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    def table(self) -> Group:
        """Sizes before and after, and what each operator preserves."""
        from growth.planning.plan_table import plan_tables

        return plan_tables(self)

    def _repr_html_(self) -> str:
        from growth.planning.plan_picture import plan_picture

        return f"{plan_picture(self)}\n{super()._repr_html_()}"

    def to_dict(self) -> dict[str, Any]:
        """The plan as values that `json.dumps` accepts."""
        from growth.planning.stored_error import warnings

        tensors = [
            {"name": t.target, "source": t.source.name, "shape": list(t.shape), "dtype": t.dtype, "what": t.what}
            for t in self.tensors
        ]
        return {
            "preserving": self.preserving,
            "steps": [vars(step) for step in self.growth.steps],
            "before": {name: axis.size for name, axis in self.source.axes.items()} | {"layers": self.source.depth},
            "after": {name: axis.size for name, axis in self.target.axes.items()} | {"layers": self.target.depth},
            "parameters": self.parameters,
            "active_parameters": self.target.parameters(active=True),
            "source_parameters": self.stored.parameters(),
            "source_active_parameters": self.stored.parameters(active=True),
            "bytes": self.bytes,
            "seed": self.seed,
            "config": self.config,
            "dropped": list(self.dropped),
            "unchanged": self.passing,
            "kept": list(self.kept),
            "notes": list(self.notes),
            "warnings": warnings(self),
            "tensors": tensors,
        }


def make_plan(
    source: Architecture, growth: Growth, headers: Mapping[str, TensorInfo], *, dtype: str | None = None, seed: int = 0
) -> Plan:
    """Plan the growth of a source with the given tensor headers.

    dtype: safetensors name of the output's type (F16, BF16, F32, F64); the source's own by default.

    Raises:
        CheckpointError: a missing, unknown or mis-shaped tensor, or one that does not hold floats.
        ConfigError: a geometry that the family cannot have.
        RecipeError: identity layers that the family's mathematics does not allow, or something that the family does
            not have (a bias on its logits, a mixture of experts), or shares that no weight can have.
    """
    stored = source = source.named_as_in(headers)
    match_tensors(stored, headers)
    read = headers
    for reading in growth.readings:
        source, read = reading(source, read)
    source = replace(source, depth=stored.depth)
    growth = growth.covering(source)
    check_applicable(growth, source)
    growth, eps_factor = with_one_eps(growth, source)
    target, kept = _target(source, growth, read, eps_factor)
    if growth.keeps_logits:
        assert_laws(growth, source.depth)
    factors = mean_factors(growth)
    check_divided(growth, source)
    tensors = TensorPlanner(source, growth, factors, math.sqrt(eps_factor)).plan_all(read, dtype)
    match_target(tensors, target, growth)
    if growth.settings:
        check_stock(target, tensors, growth.settings)
    return Plan(
        stored, source, target, growth, read, tensors, seed, factors, (), kept, _repeated(stored, growth, headers)
    )


def _repeated(
    stored: Architecture, growth: Growth, headers: Mapping[str, TensorInfo]
) -> tuple[tuple[TensorInfo, TensorInfo], ...]:
    """The stored head and the embedding, where the grown model has one matrix for both."""
    if growth.head is None or not growth.head.tied:
        return ()
    biases = {weight.name for weight in stored.weights if weight.is_head_bias}
    left = headers.keys() - biases - stored.with_head(tied=True).named_as_in(headers).shapes().keys()
    return tuple((headers[name], headers[stored.embedding]) for name in sorted(left))


def _target(
    source: Architecture, growth: Growth, headers: Mapping[str, TensorInfo], eps_factor: float
) -> tuple[Architecture, tuple[str, ...]]:
    """The grown architecture, read back from its config, and the config keys that its table does not know."""
    layers = [layer.source for layer in growth.layers]
    grown = source.grown_config(growth.sizes, layers, eps_factor, growth.rope_stride)
    _check_settings(source, grown, growth.settings)
    config = TrackedConfig(restated(grown, growth.settings))
    target = source.family(config).named_as_in(headers)
    target.refuse_enormous()
    known = config.asked | set(NEUTRAL) | target.known_keys | growth.settings.keys()
    return target, tuple(sorted(config.keys() - known))


def _check_settings(source: Architecture, grown: Config, settings: Config) -> None:
    """Refuse settings with which the grown model would have other weights."""
    if not settings:
        return
    plain = _table(source, grown)
    if _table(source, restated(grown, settings)) == plain:
        return
    alone = [key for key in settings if _table(source, restated(grown, {key: settings[key]})) != plain]
    told = ", ".join(f"{key} = {settings[key]!r}" for key in alone or settings)
    raise RecipeError(
        f"configure: {told} sets a size, decides which weights there are, or is not a value of this family. Use widen "
        "or deepen, or leave it out."
    )


def _table(source: Architecture, config: Config) -> Any:
    """The weights of a config of the source's family, with what they read and their sizes; None if it is not one."""
    try:
        built = source.family(config)
    except GrowthError:
        return None
    return built.weights, built.spaces, built.depth, {name: axis.size for name, axis in built.axes.items()}


def plan_dual(plan: Plan, headers: Mapping[str, TensorInfo]) -> tuple[TensorMap, ...]:
    """Plan the growth of gradients, in the order of the plan's tensors: read and write coefficients change places.

    The gradient with respect to what is written to a copy is multiplied by the copy's read coefficient, and what is
    read from a copy is multiplied by its write coefficient (docs/training.md). Values of fresh units have no meaning.

    headers: of the gradients (or of what has their shapes), by the names of the source's tensors; tensors without a
        header are left out.
    """
    headers = {name: headers[info.name] for name, info in plan.headers.items() if info.name in headers}
    expansions = {  # a token goes to the copies of an expert together, and each gets its part of the gradient
        name: expansion.read_equally() if plan.source.axes[name].shares_gradient else expansion
        for name, expansion in plan.growth.expansions.items()
    }
    growth = replace(plan.growth, expansions=expansions, splits={}, tokens=NewTokens())
    gain = math.sqrt(with_one_eps(growth, plan.source)[1])
    return TensorPlanner(plan.source, growth, plan.mean_factors, 1 / gain, dual=True).plan_all(headers, None)
