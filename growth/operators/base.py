"""Growth: what a recipe does to a model, as values: an expansion per axis and a map of layers.

Growths form a monoid under `then`, so that a recipe of any length is one pass over the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from growth.algebra.expansion import Expansion
from growth.architectures.base import Architecture, Axis


@dataclass(frozen=True)
class Layer:
    """A layer of the grown model: a copy of layer `source`, its residual branches zero where `silent`."""

    source: int
    silent: bool = False


@dataclass(frozen=True)
class Noise:
    """Noise that cancels over the copies of a unit, `snr_db` below the weight it is added to."""

    snr_db: float


@dataclass(frozen=True)
class NewTokens:
    """What new tokens start as: the mean of the old ones, or random; and their bias in the head, if given."""

    mean: bool = False
    logit_bias: float | None = None


@dataclass(frozen=True)
class Upcycling:
    """A dense model becomes a mixture: how many experts are chosen, and the spread of its router's values."""

    top_k: int
    router_std: float


@dataclass(frozen=True)
class Step:
    """One operator of a growth, in words, and whether it preserves the function.

    adds_tokens: what it changes is only that added tokens take some of the probability; the logits of the source's
        tokens stay.
    """

    operator: str
    preserving: bool
    why: str
    adds_tokens: bool = False


@dataclass(frozen=True, eq=False)
class Growth:
    """Axes as the source has them, their expansions, the layers of the grown model, and the story so far."""

    axes: Mapping[str, Axis]
    expansions: Mapping[str, Expansion]
    layers: tuple[Layer, ...]
    noise: Noise | None = None
    mixing: Upcycling | None = None
    tokens: NewTokens = NewTokens()
    steps: tuple[Step, ...] = ()

    @classmethod
    def start(cls, architecture: Architecture) -> Growth:
        """The growth that changes nothing."""
        return cls(
            architecture.axes,
            {name: Expansion.identity(axis.size) for name, axis in architecture.axes.items()},
            tuple(Layer(index) for index in range(architecture.depth)),
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Size of every axis after the growth."""
        return {name: len(expansion) for name, expansion in self.expansions.items()}

    @property
    def preserving(self) -> bool:
        """Whether every step preserves the function."""
        return all(step.preserving for step in self.steps)

    @property
    def keeps_logits(self) -> bool:
        """Whether the source's tokens keep their logits; added tokens may take some of the probability."""
        return all(step.preserving or step.adds_tokens for step in self.steps)

    def covering(self, architecture: Architecture) -> Growth:
        """This growth, with every axis of an architecture that it does not know left as it is."""
        unknown = {name: axis for name, axis in architecture.axes.items() if name not in self.axes}
        identities = {name: Expansion.identity(axis.size) for name, axis in unknown.items()}
        return replace(self, axes={**self.axes, **unknown}, expansions={**self.expansions, **identities})

    def expanded(self, axis: str, expansion: Expansion) -> Growth:
        """This growth followed by an expansion of one axis."""
        return replace(self, expansions={**self.expansions, axis: self.expansions[axis].then(expansion)})

    def deepened(self, layers: tuple[Layer, ...]) -> Growth:
        """This growth followed by a map of layers, whose sources are layers of this growth's result."""
        chained = (
            Layer(self.layers[layer.source].source, self.layers[layer.source].silent or layer.silent)
            for layer in layers
        )
        return replace(self, layers=tuple(chained))

    def then(self, later: Growth) -> Growth:
        """This growth followed by `later`, which starts from this one's result.

        The function is that of the two in sequence; values that are drawn at random are drawn once.
        """
        growth = self.deepened(later.layers)
        for axis, expansion in later.expansions.items():
            growth = growth.expanded(axis, expansion)
        tokens = later.tokens if later.tokens != NewTokens() else self.tokens
        return replace(
            growth,
            noise=later.noise or self.noise,
            mixing=later.mixing or self.mixing,
            tokens=tokens,
            steps=self.steps + later.steps,
        )

    def noted(self, operator: str, preserving: bool, why: str, *, adds_tokens: bool = False) -> Growth:
        """This growth with one more step in its story."""
        return replace(self, steps=(*self.steps, Step(operator, preserving, why, adds_tokens)))
