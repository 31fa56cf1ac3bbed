"""Floor: how far rounding alone takes a correctly grown model from its source, and the limit that follows.

The error of a grown model is e = J d: the rounding d of each stored value, and of the arithmetic, propagated by the
model. Each d is independent of the others and at most h, half a unit in the last place, so the mean square of e is at
most h² |J|² / 3, that of values spread evenly over [-h, h]. A few draws measure |J|²: the source runs with every weight
w at w (1 ± h), each sign drawn independently. The mean square of the change of its output is h² |J|² (Hutchinson's
estimate of a trace); among draws of this size, signs give the estimate with the least variance.

How far e² and the estimate s² may be from their means depends on how many roundings matter. If one channel is a
thousand times the others, a few roundings decide, and one draw says little. How similar the draws are measures that
number too: for draws x and y in n equally important directions, the mean of cos²(x, y) is 1/n. With K draws, e²/(s²/3)
then has the F distribution with n and K n degrees of freedom, and the limit is where Chernoff's bound of its tail falls
to ALARM.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from growth.architectures.base import Architecture
from growth.verification.streaming import CHUNK, Perturb

DRAWS = 4
ALARM = 1e-6  # the probability of a false alarm, per comparison of an error with its limit
MARGIN = 2.0  # for what the draws leave out: kept means, shares and noise are rounded differently
EXACT = 1e-12  # in float64, a wrong term of any size is far above this relative error, and rounding far below
LARGEST = 0.25  # a relative error that no floor excuses: a source that rounding moves so far proves nothing
PIECE = 1 << 18  # values compared at a time, so that they stay in a core's cache
EVEN = math.sqrt(3)  # the largest value of an even distribution about zero, over its root mean square


@dataclass(frozen=True)
class Floor:
    """What rounding does to one place: the residual stream after a layer, or the logits.

    Attributes:
        error: the relative error that rounding is expected to make, a root mean square.
        directions: how many independent directions that error has; 1 where a single rounding decides it.
        draws: the number of draws that both were measured from.
    """

    error: float
    directions: float
    draws: int

    @property
    def reach(self) -> float:
        """The largest relative error that rounding may make, except with probability ALARM."""
        return max(MARGIN * self.error * math.sqrt(tail(self.directions, self.draws)), EXACT)

    @property
    def limit(self) -> float:
        """The largest relative error that passes."""
        return min(self.reach, LARGEST)


def tail(directions: float, draws: int, chance: float = ALARM) -> float:
    """A value that F with n and K n degrees of freedom exceeds with at most a given probability, by Chernoff's bound.

    The bound of P(F > x) is (x ((1 + K) / (x + K))^(1 + K))^(n/2).

    >>> round(tail(1000, 4), 2), round(tail(1, 4))
    (1.29, 7472)
    """
    needed = 2 * math.log(1 / chance) / directions
    low, high = 0.0, 1.0  # of log x
    while _exponent(high, draws) < needed:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _exponent(middle, draws) < needed else (low, middle)
    return math.exp(high)


def _exponent(log_x: float, draws: int) -> float:
    return (1 + draws) * math.log((math.exp(log_x) + draws) / (1 + draws)) - log_x


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected||, Euclidean over all elements, in float64.

    >>> relative_difference(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
    0.1
    """
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} against {tuple(expected.shape)}"
    pieces = zip(torch.split(actual.flatten(), PIECE), torch.split(expected.flatten(), PIECE), strict=True)
    squares = [(_square(a.double() - b.double()), _square(b.double())) for a, b in pieces]
    difference, reference = torch.tensor(squares, dtype=torch.float64).sum(0).sqrt()
    return float(difference / reference)


def _square(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) ** 2


def measure(perturbed: Sequence[Tensor], expected: Tensor) -> Floor:
    """The floor of one tensor: its values under each perturbation, and the source's, all of one shape."""
    reference = float(torch.linalg.vector_norm(expected.double()))
    moves = torch.stack([(values.double() - expected.double()).flatten() for values in perturbed])
    products = (moves @ moves.T) / (reference or 1.0) ** 2
    count, square = len(perturbed), float(products.diagonal().mean())
    alike = float(products.square().sum() - products.diagonal().square().sum()) / (count * (count - 1))
    directions = square**2 / alike if alike > 0 else math.inf
    return Floor(math.sqrt(square) / EVEN, min(max(directions, 1.0), float(moves[0].numel())), count)


@dataclass(frozen=True)
class Steps:
    """The relative change of a weight that is as large as rounding.

    Attributes:
        stored: where the growth rounds what it stores.
        arithmetic: of the others, which only the arithmetic rounds.
        exact: the names of the others.
    """

    stored: float
    arithmetic: float
    exact: Collection[str] = ()

    def of(self, name: str) -> float:
        """That of one tensor."""
        return self.arithmetic if name in self.exact else max(self.stored, self.arithmetic)


def draws(steps: Steps, seed: int, means: Mapping[str, tuple[int, float]] | None = None) -> list[Perturb]:
    """DRAWS independent perturbations, each as `signs`, by the step of each tensor."""

    def draw(number: int, name: str, weight: Tensor) -> None:
        signs(steps.of(name), DRAWS * seed + number, means)(name, weight)

    return [partial(draw, number) for number in range(DRAWS)]


def signs(step: float, seed: int, means: Mapping[str, tuple[int, float]] | None = None) -> Perturb:
    """Multiply every weight by 1 + step or 1 - step, each sign drawn from `seed` and the tensor's name.

    Args:
        means: for tensors to which a growth adds a part of their mean along a dimension, that dimension counted from
            the end, and the largest such part. The sum is what is stored and rounded.
    """
    means = means or {}

    def perturb(name: str, weight: Tensor) -> None:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))  # the generator uses 32 bits
        added = None
        if name in means:
            dimension, part = means[name]
            added = (weight.mean(dimension, keepdim=True).abs() * part).expand_as(weight)
        rows = max(1, CHUNK // max(1, weight[:1].numel()))
        for start in range(0, len(weight), rows):
            piece = weight[start : start + rows]
            signs = torch.randint(2, piece.shape, generator=generator, dtype=torch.int8)
            sizes = piece if added is None else piece.abs() + added[start : start + rows]
            piece.addcmul_(sizes, signs.to(piece.dtype).mul_(2).sub_(1), value=step)

    return perturb


def means(built: Architecture, axis: str, part: float) -> dict[str, tuple[int, float]]:
    """The argument `means` of `signs`: the tensors that write an axis with a mean correction."""
    found: dict[str, tuple[int, float]] = {}
    for weight in built.weights:
        held = weight.parts[0]
        for dimension, spaces in enumerate(held.dimensions):
            writes = any(built.axis(space) == axis and space not in held.reads for space in spaces)
            if writes and weight.norm_inputs is None:
                found |= dict.fromkeys(built.names(weight), (dimension - len(held.dimensions), part))
    return found
