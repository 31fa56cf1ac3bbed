"""Copies of experts by scores: which experts of a mixture are copied, and how often (Expert Upcycling, 2604.19835)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from heapq import heapify, heapreplace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, StrictFloat, StrictInt, ValidatorFunctionWrapHandler, WrapValidator

from growth.algebra.expansion import Expansion, Integers, counts
from growth.architectures.base import Architecture
from growth.architectures.config import LARGEST_TABLE
from growth.errors import RecipeError
from growth.operators.base import Growth

LARGEST_SCORE = 1e100
LARGEST_FILE = 1 << 24  # bytes; 100 layers of 512 experts take 1 MB


class SummedScores(list[float]):
    """Scores of experts that are sums over layers.

    file: that holds those of each layer. layers: how many it has.
    """

    def __init__(self, sums: Iterable[float], file: Path, layers: int):
        super().__init__(sums)
        self.file, self.layers = file, layers


def _with_origin(given: Any, validated: ValidatorFunctionWrapHandler) -> Any:
    """Read scores where a file is named; what they are sums of is kept beside the validated list."""
    scores = read_scores(given) if isinstance(given, str) else given
    plain = validated(scores)
    return SummedScores(plain, scores.file, scores.layers) if isinstance(scores, SummedScores) else plain


ExpertScores = Annotated[
    list[Annotated[StrictInt | StrictFloat, Field(ge=0, le=LARGEST_SCORE)]],
    Field(min_length=1),
    WrapValidator(_with_origin),
]


def read_scores(given: Sequence[float] | str | Path) -> Sequence[float]:
    """Return scores, or read them from a JSON file: a list with one list of scores for each layer, which are added.

    All layers copy the same experts, because a growth has one map for an axis.

    Raises:
        RecipeError: the file is missing, too large, or holds something else.
    """
    if not isinstance(given, str | Path):
        return given
    path = Path(given)
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_FILE:
            raise RecipeError(f"{path} is not a file of at most {LARGEST_FILE:,} bytes. Name one that holds scores.")
        layers = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"{path} cannot be read as JSON: {error}. Name a file that holds scores.") from None
    rows = layers if isinstance(layers, list) and all(isinstance(row, list) for row in layers) else []
    if len({len(row) for row in rows}) != 1 or not all(map(_plain, rows)):
        raise RecipeError(
            f"{path} does not hold a list of equally long lists of numbers from 0 on, one for each layer. Write it "
            "with ExpertUtility.save."
        )
    sums = [math.fsum(scores) for scores in zip(*rows, strict=True)]
    if not _plain(sums):
        raise RecipeError(
            f"{path} holds scores whose sum over the layers is {max(sums):g}: it may be {LARGEST_SCORE:g} at most. "
            "Divide all scores by one number."
        )
    return SummedScores(sums, path, len(rows))


def _plain(row: Sequence[Any]) -> bool:
    return all(type(score) in (int, float) and 0 <= score <= LARGEST_SCORE for score in row)


def widen_by_scores(growth: Growth, axis: str, new: int, scores: Sequence[float]) -> Growth:
    """Return this growth with more experts, those with the highest scores copied most often.

    The function is preserved if every expert is copied equally often; otherwise it is not (docs/design.md, 2.2).

    Raises:
        RecipeError: another axis, experts that are all alike, too many copies, or too few scores.
    """
    old, traits = growth.sizes[axis], growth.axis(axis)
    if not traits.equal_copies:
        raise RecipeError(f"widen {axis}: scores say which experts are copied. Leave them out, or widen experts.")
    if growth.mixing is not None:
        raise RecipeError("widen experts: the experts of an upcycled model are all alike. Leave out scores.")
    if len(scores) != old:
        raise RecipeError(f"widen experts: {len(scores)} scores for {old} experts. Give one for each, in their order.")
    if any(isinstance(score, bool | np.bool_) or not 0 <= score <= LARGEST_SCORE for score in scores):
        raise RecipeError(f"widen experts: scores are numbers from 0 to {LARGEST_SCORE:g}, and these are {scores}.")
    layers = _layers_with_experts(growth.source)
    if isinstance(scores, SummedScores) and scores.layers != layers:
        raise RecipeError(
            f"widen experts: {scores.file} has one list of scores for each of {scores.layers} layers with experts, and "
            f"the model has {layers} such layers. Measure the scores on this model (growth.expert_utility)."
        )
    if new > LARGEST_TABLE:
        raise RecipeError(f"widen experts: {new:,} experts; at most {LARGEST_TABLE:,} are supported.")
    source = copies_by_score(scores, new)
    copies = counts(source, old)
    grown = growth.expanded(axis, Expansion(old, source, np.ones(new), np.ones(new)))
    what = f"widen experts {old} → {new}, by scores"
    if not np.ptp(copies):
        return grown.noted(what, True, f"the scores copy every expert {copies[0]} times, and all copies are averaged")
    chosen = "; ".join(f"{key} {growth.config[key]} → {grown.config[key]}" for key in growth.source.ratios)
    why = f"copies of each expert: {', '.join(map(str, copies))}; {chosen}: other experts are chosen together (lossy)"
    return grown.noted(what, False, why)


def _layers_with_experts(source: Architecture) -> int:
    """The number of layers that have experts."""
    return len({layer for weight in source.weights if weight.of_experts for layer, _ in weight.places(source.depth, 1)})


def copies_by_score(scores: Sequence[float], new: int) -> Integers:
    """Return the expert that each of `new` experts copies: those added copy the one with the highest score per copy.

    This makes the highest score per copy as low as it can be; equal scores copy every expert in turn.

    >>> copies_by_score([6.0, 1.0, 2.0], 6)
    array([0, 1, 2, 0, 0, 2])
    """
    source = list(range(len(scores)))
    waiting = [(-score, 1, expert) for expert, score in enumerate(scores)]
    heapify(waiting)
    for _ in range(new - len(scores)):
        _, copies, expert = waiting[0]
        source.append(expert)
        heapreplace(waiting, (-scores[expert] / (copies + 1), copies + 1, expert))
    return np.array(source)
