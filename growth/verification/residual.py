"""The grown model's residual stream, layer by layer, against the expansion of the source's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growth.algebra.expansion import FRESH, Expansion
from growth.errors import VerificationError
from growth.operators.base import Layer
from growth.verification.compared_model import ComparedModel
from growth.verification.lineage import Link
from growth.verification.rounding_floor import DRAWS, Floor, measure, relative_difference

EMBEDDING = -1


@dataclass(frozen=True)
class LayerError:
    """The residual stream leaving one grown layer, against the expansion of the source's.

    Attributes:
        layer: position in the grown model; EMBEDDING (-1) is the stream entering layer 0.
        source: the source layer whose output is expected here; -1 is the source's embedding.
        silent: whether the layer is expected to be an identity.
        relative_error: ||grown - expected|| / ||expected||, over all rows, positions and channels.
        floor: the relative error that rounding alone usually causes.
        limit: the largest relative error that rounding alone can cause.
    """

    layer: int
    source: int
    silent: bool
    relative_error: float
    floor: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether rounding explains the error."""
        return self.relative_error <= self.limit

    @property
    def name(self) -> str:
        """What reports call the layer."""
        return "the embedding" if self.layer == EMBEDDING else f"layer {self.layer}"


class ResidualStreams:
    """The expected residual streams of a grown model, and how far the runs are from them.

    Stream 0 enters the first layer; stream l + 1 leaves layer l. The source must run first.

    Args:
        links: the growths that lead from the source to the grown model, in order.
        before, after: the source and the grown model.

    Raises:
        VerificationError: the growths lead from or to other sizes.
    """

    def __init__(self, links: Sequence[Link], before: ComparedModel, after: ComparedModel):
        first, last = links[0], links[-1]
        needed = max((1 + layer.source for layer in first.layers if not layer.fresh), default=0)
        widths, depth = (first.channels.size, len(last.channels)), len(last.layers)
        if widths != (before.width, after.width) or needed > before.depth or depth != after.depth:
            raise VerificationError(
                f"The growth of {after.folder} takes hidden_size from {widths[0]} to {widths[1]} and layers from "
                f"{needed} to {depth}, but the two checkpoints have hidden_size {before.width} and {after.width}, and "
                f"{before.depth} and {after.depth} layers. Name the source that {after.folder} was grown from."
            )
        self._expanders = [_expander(link.channels, link.mean_factor) for link in links]
        self.added_mean = max(_added_mean(link.channels, link.mean_factor) for link in links)
        self._positions = list(range(before.depth + 1))  # of each grown stream: the source stream that it equals
        self._silent = [False] * before.depth
        for link in links:
            self._positions = [self._positions[at] for at in accumulate(link.layers, _passed, initial=0)]
            self._silent = [layer.silent or (not layer.fresh and self._silent[layer.source]) for layer in link.layers]
        self._expected: list[Tensor] = []  # not expanded yet, which saves memory
        self._errors: list[float] = []
        self._floors: list[Floor] = []

    def observe_source(self, position: int, hidden: Tensor) -> None:
        """Keep a stream of the source."""
        self._expected.append(hidden.clone())

    def observe_grown(self, position: int, hidden: Tensor) -> None:
        """Compare a stream of the grown model."""
        self._errors.append(relative_difference(hidden, self._expand(self._expected[self._positions[position]])))

    def observe_draws(self, position: int, hidden: Tensor) -> None:
        """Measure the floor of a stream from the perturbed runs of the source, (DRAWS * B, T, d)."""
        draws = [self._expand(draw) for draw in hidden.chunk(DRAWS)]
        self._floors.append(measure(draws, self._expand(self._expected[position])))

    def errors(self) -> list[tuple[float, Floor]]:
        """The error and the floor of every grown stream."""
        return [(error, self._floors[position]) for position, error in zip(self._positions, self._errors, strict=True)]

    def layers(self) -> tuple[LayerError, ...]:
        """The same, as reports state it."""
        found = zip(self._positions, [False, *self._silent], self.errors(), strict=True)
        return tuple(
            LayerError(layer, position - 1, silent, error, floor.error, floor.limit)
            for layer, (position, silent, (error, floor)) in enumerate(found, start=EMBEDDING)
        )

    def _expand(self, hidden: Tensor) -> Tensor:
        return reduce(lambda stream, expand: expand(stream), self._expanders, hidden)


def _passed(position: int, layer: Layer) -> int:
    """The source stream that a grown layer's output equals, if its input equals `position`."""
    return position if layer.new else layer.source + 1


def _added_mean(channels: Expansion, mean_factor: float | None) -> float:
    """The largest part of the stream's mean that is added to a channel by the mean correction."""
    return 0.0 if mean_factor is None else float(np.abs(mean_factor - _written(channels)).max())


def _written(channels: Expansion) -> NDArray[np.float64]:
    return np.where(channels.source == FRESH, 0.0, channels.write)


def _expander(channels: Expansion, mean_factor: float | None) -> Callable[[Tensor], Tensor]:
    """The map E of docs/design.md 2.1, from (…, n) to (…, N), in float64, with the mean correction, if any."""
    source, write = torch.from_numpy(channels.source.clip(0)), torch.from_numpy(_written(channels))

    def expand(hidden: Tensor) -> Tensor:
        hidden = hidden.double()
        expanded = hidden[..., source] * write
        return expanded if mean_factor is None else expanded + hidden.mean(-1, keepdim=True) * (mean_factor - write)

    return expand
