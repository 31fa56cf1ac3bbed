"""Proposals: what an error says to use instead. Each is applied to the model before it is shown.

A function that applies an operator raises `Unfit` with candidates, and `proposing` makes it an operator whose error
names those that the operator and the family accept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from growth.errors import GrowthError, RecipeError
from growth.operators.base import ATTENTION, Growth, Operator
from growth.operators.fit import check_fit
from growth.operators.registry import OPERATORS

SIZE_KEYS = {"to": "a size", "factor": "a ratio", "multiple": "the next multiple of it"}
REACH = 128  # sizes that are tried below and above the one asked for
RELATED = (
    "residual",
    "heads",
    "queries",
    "head_dim",
    "inner",
    "ssm_heads",
    "ssm_head_dim",
)  # axes whose sizes some families derive from one another


_attempting: ContextVar[bool] = ContextVar("_attempting", default=False)  # whether a proposal is being tried


@dataclass(frozen=True)
class Proposal:
    """Other arguments of a step, None for those to leave out, and axes that further steps widen along with it."""

    arguments: Mapping[str, Any]
    also: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        own = [f"no {key}" if value is None else f"{key}: {value}" for key, value in self.arguments.items()]
        return " and ".join([*own, *(f"widen {axis} to: {size}" for axis, size in self.also.items())])

    def changed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the step with this change: a size takes the place of a ratio."""
        sizes = dict.fromkeys(SIZE_KEYS.keys() & given.keys()) if "to" in self.arguments else {}
        return {**given, **sizes, **self.arguments}


Candidates = Iterable[Proposal]


class Unfit(RecipeError):
    """Arguments that a step cannot have, where others may do.

    candidates: of each of these, the first that is accepted is proposed.
    """

    def __init__(self, message: str, *candidates: Candidates):
        super().__init__(message)
        self.candidates = candidates


def proposing(apply: Callable[..., Growth], /, **given: Any) -> Operator:
    """Return the operator that applies a step with the given arguments; where they are unfit, it proposes others."""

    def operator(growth: Growth) -> Growth:
        def attempt(proposal: Proposal) -> Growth:
            grown = apply(growth, **proposal.changed(given))
            for axis, size in proposal.also.items():
                grown = OPERATORS["widen"].function(axis, to=size)(grown)
            return grown

        try:
            return apply(growth, **given)
        except Unfit as error:
            if _attempting.get():  # whoever tries a proposal wants to know whether it is accepted, and nothing else
                raise RecipeError(str(error)) from None
            token = _attempting.set(True)
            try:
                remedy = _proposed(error, attempt)
            finally:
                _attempting.reset(token)
            raise RecipeError(f"{error} {remedy}") from None

    return operator


def around(old: int, wanted: float, step: int = 1) -> tuple[range, range]:
    """Return the sizes above `old` that are nearest to the one wanted, below it and above it, nearest first.

    step: sizes differ from `old` by multiples of it.

    >>> [list(sizes)[:3] for sizes in around(9, 13.5)], [list(sizes)[:3] for sizes in around(9, 15, 3)]
    ([[13, 12, 11], [14, 15, 16]], [[12], [18, 21, 24]])
    """
    below = old + (math.ceil((wanted - old) / step) - 1) * step
    above = old + max(math.floor((wanted - old) / step) + 1, 1) * step
    return range(below, max(old, below - REACH * step), -step), range(above, above + REACH * step, step)


def accepted(candidates: Candidates, attempt: Callable[[Proposal], Growth], refused: list[GrowthError]) -> Candidates:
    """Yield the candidates that can be applied and lead to a model that the family has.

    attempt: applies a candidate.
    refused: collects why the others cannot.
    """
    for candidate in candidates:
        try:
            check_fit(attempt(candidate))
        except GrowthError as error:
            refused.append(error)
        else:
            yield candidate


def _proposed(error: Unfit, attempt: Callable[[Proposal], Growth]) -> str:
    """Say what to use instead, or why nothing that was tried is accepted."""
    refused: list[GrowthError] = []
    for widened in (_alone, _with_related):
        found = [next(iter(accepted(widened(stream, attempt), attempt, refused)), None) for stream in error.candidates]
        if any(found):
            return f"Use {' or '.join(str(proposal) for proposal in found if proposal)}."
    # the operator's own refusals repeat the error; the family's, or those of the axis, say what stands in the way
    told = next((str(each) for each in refused if not isinstance(each, Unfit)), "")
    return f"No other is accepted: {told}" if told else "No other is accepted."


def _alone(candidates: Candidates, attempt: Callable[[Proposal], Growth]) -> Candidates:
    return candidates


def _with_related(candidates: Candidates, attempt: Callable[[Proposal], Growth]) -> Iterator[Proposal]:
    """Yield candidates with one related axis that grows in the same ratio as another axis."""
    for candidate in candidates:
        try:
            grown = attempt(candidate)
        except GrowthError:
            continue
        for axis, size in _in_proportion(grown):
            yield Proposal(candidate.arguments, {axis: size})


def _in_proportion(growth: Growth) -> Iterator[tuple[str, int]]:
    """Yield each related axis with a larger size, as recipes count it, to which it grows as much as another axis."""
    ratios = {Fraction(len(expansion), expansion.size): None for expansion in growth.expansions.values()}
    for axis in (name for name in RELATED if name in growth.axes):
        counted = [growth.expansions[name] for name in (ATTENTION if axis == "heads" else (axis,))]
        old = math.prod(expansion.size for expansion in counted)
        now = math.prod(len(expansion) for expansion in counted)
        for ratio in ratios:
            if (old * ratio).denominator == 1 and old * ratio > now:
                yield axis, int(old * ratio)
