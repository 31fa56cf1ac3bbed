"""Growth: a value that states what a recipe does to a model, as an expansion of every axis and a map of the layers.

An operator takes a growth and returns it with one more step. Growths form a monoid under `then`, so that a recipe of
any length is one pass over the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, cast

from growth.algebra.expansion import Expansion
from growth.algebra.split import Kind
from growth.architectures.base import Architecture, Axis
from growth.architectures.config import Config
from growth.architectures.rotary import restated
from growth.arrays.tensor_info import TensorInfo
from growth.errors import RecipeError, in_step
from growth.operators.blank_layers import BlankLayers
from growth.operators.dense_to_moe import Upcycling
from growth.operators.ties import Head

# how a source is read as a model of another table: from its table and its tensors to that table and, by its names, the
# stored tensors
Reading = Callable[[Architecture, Mapping[str, TensorInfo]], tuple[Architecture, Mapping[str, TensorInfo]]]
ATTENTION = ("heads", "queries")  # KV heads, and query heads per KV head
InitStd = Literal["stock", "mup"] | float


@dataclass(frozen=True)
class Layer:
    """A layer of the grown model.

    source: the layer that it copies or, if its values are random, the layer that it has the kind of.
    silent: whether its residual branches end in zero.
    std: of a layer of random values, the standard deviation of its matrices: a number, that of the stock class, or that
        one times sqrt(old fan-in / new fan-in), as in muP; None for a copy.
    """

    source: int
    silent: bool = False
    std: InitStd | None = None

    @property
    def fresh(self) -> bool:
        """Whether its values are random."""
        return self.std is not None

    @property
    def new(self) -> bool:
        """Whether the source does not have it. A plain copy counts as the layer that it repeats."""
        return self.silent or self.fresh

    def to_dict(self) -> dict[str, Any]:
        """The layer as growth.json records it."""
        if not self.fresh:
            return {"source": self.source, "silent": self.silent}
        return {"source": None, "silent": self.silent, "like": self.source, "std": self.std}


@dataclass(frozen=True)
class NewTokens:
    """Initial values of new tokens: the mean of the old rows, or random; and the bias of their logits, if given."""

    mean: bool = False
    logit_bias: float | None = None


@dataclass(frozen=True)
class Step:
    """The description of one operator of a growth, for people.

    preserving: whether it preserves the function.
    why: why it does, or why it does not.
    adds_tokens: whether added tokens that take some of the probability are all that changes the function; the logits of
        the source's tokens do not change.
    """

    operator: str
    preserving: bool
    why: str
    adds_tokens: bool = False


@dataclass(frozen=True, eq=False)
class Growth:
    """What a recipe does to a model.

    source: the source's table, with the head that the growth gives it.
    axes: the source's axes, by name.
    expansions: the expansion of every axis.
    layers: the layers of the grown model.
    query_heads: the expansion of all query heads, the product of `heads` and `queries`, where it is not the product of
        the expansions of these two.
    splits: for each axis whose readers are divided at random or by a mask, which of the two. On other axes, copies are
        read with the coefficients of the expansion.
    head: how the source's head is read, if not as the source states it.
    blank: the layers that a source without layers is read with, if it has none.
    mixing: how a dense source is read as a mixture of experts, if it is.
    tokens: the initial values of new tokens.
    steps: descriptions of the operators so far.
    settings: config keys that the result states with other values; no step may follow the one that sets them.
    rope_stride: old rotary pair k is pair k * rope_stride of the grown head.

    >>> import growth
    >>> plan = growth.plan([growth.widen("ffn", factor=2), growth.deepen(to=8)], "examples/phi-mini")
    >>> plan.growth.sizes["ffn"], len(plan.growth.layers), plan.growth.preserving
    (1024, 8, True)
    >>> plan.growth.steps[0].operator
    'widen ffn 512 → 1024, pad'
    """

    source: Architecture
    axes: Mapping[str, Axis]
    expansions: Mapping[str, Expansion]
    layers: tuple[Layer, ...]
    splits: Mapping[str, Kind] = field(default_factory=dict)
    head: Head | None = None
    blank: BlankLayers | None = None
    mixing: Upcycling | None = None
    tokens: NewTokens = NewTokens()
    steps: tuple[Step, ...] = ()
    settings: Config = field(default_factory=dict)
    query_heads: Expansion | None = None
    rope_stride: int = 1

    @classmethod
    def start(cls, architecture: Architecture) -> Growth:
        """Return the growth that changes nothing."""
        return cls(
            architecture,
            architecture.axes,
            {name: Expansion.identity(axis.size) for name, axis in architecture.axes.items()},
            tuple(Layer(index) for index in range(architecture.depth)),
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Size of every axis after the growth, in its own units: `heads` counts KV heads."""
        return {name: len(expansion) for name, expansion in self.expansions.items()}

    @property
    def config(self) -> Config:
        """The config of the result, before any norm's eps is rescaled."""
        layers = [layer.source for layer in self.layers]
        grown = self.source.grown_config(self.sizes, layers, 1.0, self.rope_stride)
        return restated(grown, self.settings)

    def axis(self, name: str) -> Axis:
        """Return an axis as it is after the growth: its size, and how many channels of a head are rotary."""
        axis, size = self.axes[name], self.sizes[name]
        rotary = axis.rotary_channels(size, self.rope_stride) if axis.rotary_pairs else axis.fixed
        return replace(axis, size=size, fixed=rotary)

    @property
    def preserving(self) -> bool:
        """Whether every step preserves the function."""
        return all(step.preserving for step in self.steps)

    @property
    def keeps_logits(self) -> bool:
        """Whether the source's tokens keep their logits; added tokens may take some of the probability."""
        return all(step.preserving or step.adds_tokens for step in self.steps)

    @property
    def readings(self) -> tuple[Reading, ...]:
        """How the source is read as a model of another table, one after the other."""
        return tuple(reading for reading in (self.head, self.blank, self.mixing) if reading is not None)

    def with_head(self, *, tied: bool) -> Growth:
        """Return this growth of the source with a tied or an untied head, and the axes that it has then."""
        source = self.source.with_head(tied=tied)
        return replace(self, source=source, axes={**self.axes, **source.axes}, head=Head(tied))

    def with_blank_layers(self, count: int) -> Growth:
        """Return this growth of a source without layers, read as a model of layers that hold no values yet."""
        source = self.source.with_depth(count)
        # another depth may have other kinds of layers, and hence other axes
        grown = {name: expansion for name, expansion in self.expansions.items() if not expansion.is_identity}
        axes = {name: self.axes[name] for name in grown}
        return replace(
            replace(self, axes=axes, expansions=grown).covering(source),
            source=source,
            axes={**axes, **source.axes},
            blank=BlankLayers(count),
            layers=tuple(map(Layer, range(count))),
        )

    def covering(self, architecture: Architecture) -> Growth:
        """Return this growth with any axes of `architecture` that it lacks added, unchanged in size."""
        unknown = {name: axis for name, axis in architecture.axes.items() if name not in self.axes}
        identities = {name: Expansion.identity(axis.size) for name, axis in unknown.items()}
        return replace(self, axes={**self.axes, **unknown}, expansions={**self.expansions, **identities})

    def expanded(self, axis: str, expansion: Expansion) -> Growth:
        """Return this growth followed by an expansion of one axis. A split of the axis then covers all copies."""
        grown = self.expansions[axis].then(expansion)
        grown = grown.read_equally() if axis in self.splits else grown
        attending = self.query_heads
        if attending is not None and axis in ATTENTION:
            heads, queries = (expansion if axis == name else Expansion.identity(self.sizes[name]) for name in ATTENTION)
            attending = self._shared(attending.then(heads.times(queries)))
        return replace(self, expansions={**self.expansions, axis: grown}, query_heads=attending)

    def of_query_heads(self) -> Expansion:
        """Return the expansion of all query heads."""
        heads, queries = (self.expansions[name] for name in ATTENTION)
        return self.query_heads or heads.times(queries)

    def regrouped(self, heads: Expansion, queries: Expansion, query_heads: Expansion) -> Growth:
        """Return this growth followed by expansions of KV heads, of query heads per KV head and of all query heads."""
        attending = self._shared(self.of_query_heads().then(query_heads))
        grown = replace(self, query_heads=None).expanded("heads", heads).expanded("queries", queries)
        return replace(grown, query_heads=attending)

    def _shared(self, query_heads: Expansion) -> Expansion:
        """Query heads, of which copies are read equally where weights are divided among them."""
        return query_heads.read_equally() if self.splits.keys() & set(ATTENTION) else query_heads

    def split(self, kind: Kind, *axes: str) -> Growth:
        """Return this growth with the weights that read copies along `axes` divided among these copies."""
        equal = {axis: self.expansions[axis].read_equally() for axis in axes}
        splits = {**self.splits, **dict.fromkeys(axes, kind)}
        grown = replace(self, expansions={**self.expansions, **equal}, splits=splits)
        return replace(grown, query_heads=self.query_heads and grown._shared(self.query_heads))

    def deepened(self, layers: tuple[Layer, ...]) -> Growth:
        """Return this growth followed by a map of layers, whose sources are layers of this growth's result."""
        before = [(self.layers[layer.source], layer) for layer in layers]
        return replace(
            self,
            layers=tuple(
                Layer(old.source, old.silent or new.silent, old.std if new.std is None else new.std)
                for old, new in before
            ),
        )

    def then(self, later: Growth) -> Growth:
        """Return this growth followed by `later`, which starts from this one's result.

        The function is that of the two in sequence; random values are drawn once.

        Raises:
            RecipeError: this one ends in `configure`.
        """
        for step in later.steps[:1]:
            self._check_open(step.operator)
        growth = self.with_blank_layers(later.blank.count) if later.blank else self
        growth = replace(growth.deepened(later.layers), splits={**self.splits, **later.splits})
        if later.query_heads is not None:
            growth = growth.regrouped(later.expansions["heads"], later.expansions["queries"], later.query_heads)
        for axis, expansion in later.expansions.items():
            if later.query_heads is None or axis not in ATTENTION:
                growth = growth.expanded(axis, expansion)
        return replace(
            growth,
            source=later.source if later.head else growth.source,
            axes=later.axes if later.head else growth.axes,
            head=later.head or self.head,
            mixing=later.mixing or self.mixing,
            tokens=later.tokens if later.tokens != NewTokens() else self.tokens,
            steps=self.steps + later.steps,
            settings=later.settings,
            rope_stride=self.rope_stride * later.rope_stride,
        )

    def noted(self, operator: str, preserving: bool, why: str, *, adds_tokens: bool = False) -> Growth:
        """Return this growth with a description of one more step appended.

        Raises:
            RecipeError: the step before is `configure`, which must be the last one.
        """
        self._check_open(operator)
        return replace(self, steps=(*self.steps, Step(operator, preserving, why, adds_tokens)))

    def _check_open(self, operator: str) -> None:
        if self.settings:
            raise RecipeError(
                f"The step '{operator}' follows configure ({', '.join(self.settings)}) and could change what that "
                "states. Make configure the last step, with all keys in one."
            )


class Operator(Protocol):
    """A function that takes a growth and returns it with one more step; `growth.widen` and its like make them.

    >>> import growth
    >>> def widest(grown: growth.Growth) -> growth.Growth:
    ...     return growth.widen(max(("residual", "ffn"), key=grown.sizes.get), factor=2)(grown)
    >>> growth.plan(widest, "examples/phi-mini").config["intermediate_size"]
    1024
    """

    def __call__(self, growth: Growth, /) -> Growth:
        """Return a growth with one more step."""


def chain(*operators: Operator) -> Operator:
    """Compose operators: apply them one after the other.

    >>> from growth.operators import chain, deepen, widen
    >>> grow = chain(widen("residual", to=2560), deepen(to=32))

    Raises:
        RecipeError: something else than an operator is given.
    """
    for number, given in enumerate(cast("tuple[object, ...]", operators), 1):
        if not callable(given):
            listed = " Give the operators of a list by chain(*operators)." * isinstance(given, list | tuple)
            raise RecipeError(
                f"chain: argument {number} is {given!r}"[:200] + ", and no operator: chain takes operators, such as "
                f"widen('ffn', factor=2).{listed}"
            )

    def chained(growth: Growth) -> Growth:
        for number, operator in enumerate(operators, 1):
            with in_step(f"chain, step {number} ({_name(operator)})"):
                growth = operator(growth)
        return growth

    return chained


def _name(operator: Operator) -> str:
    """What an operator is called in messages: widen('ffn', factor=2), and chain for one of several steps."""
    return getattr(operator, "__qualname__", type(operator).__name__).split(".<locals>")[0]
