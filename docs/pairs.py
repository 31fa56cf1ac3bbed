"""The tables of docs/pairs.md: what `growth recipe` finds for pairs of published models."""

from __future__ import annotations

import json
import re
from ast import literal_eval
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from growth.errors import RecipeError
from growth.planning.derive import derive_recipe
from growth.planning.prepare import growth_of
from growth.planning.recipe import Recipe
from tests.support.published import Series, all_series, published

OBSTACLE = re.compile(r"^  - ([^:]*): (.*) in the source, (.*) in the target\. (.*)$")
EXACT, LOSSY, NONE = "exact", "`--lossy`", "none"


@dataclass(frozen=True)
class Reason:
    """A kind of difference between two models that no exact recipe removes.

    what: what differs, as a regular expression.
    says: how the error begins to give the reason.
    why: what stands in the way, as a sentence.
    """

    what: str
    says: str
    why: str


WEIGHTS = "bias|use_qkv_bias|parallel_attn|new_decoder_architecture"
SCALES = "query_pre_attn_scalar|attention_multiplier|logits_scaling"
REASONS = (
    Reason(".*", "Growth only makes models larger.", "The target has fewer. Growth only makes models larger."),
    Reason(
        "KV heads",
        "Cannot add KV heads: all query heads share one",
        "The family has one KV head or as many as query heads.",
    ),
    Reason(
        "rotary channels per head",
        "Their number sets the frequencies",
        "Their number sets the frequencies of all of them, and the target does not have those of the source.",
    ),
    Reason(WEIGHTS, "It decides whether the model has", "It decides which weights a layer has."),
    Reason("rope_.*", "It sets the frequencies", "It sets the frequencies of the rotary channels."),
    Reason("head_dim", "The rotary channels keep their", "The target does not have the source's rotary frequencies."),
    Reason("sliding_window", "It decides which positions", "It decides which positions a token attends to."),
    Reason("alibi", "The function depends on it.", "It decides how scores depend on the distance of tokens."),
    Reason(SCALES, "The function depends on it.", "It scales the attention scores or the logits."),
)


@dataclass(frozen=True)
class Difference:
    """What no exact recipe changes between two models.

    what: a config key, or what an axis counts.
    text: the same, with both values.
    reason: why no exact recipe changes it, if the error says so in a known way.
    removable: whether a lossy recipe takes the target's value.
    """

    what: str
    text: str
    reason: Reason | None
    removable: bool


@dataclass(frozen=True)
class Found:
    """What `growth recipe` finds for a pair of models: an exact recipe, or all differences that stand in its way."""

    recipe: Recipe | None
    differences: tuple[Difference, ...] = ()

    @property
    def kind(self) -> str:
        """Which recipe there is, as the table names it."""
        if self.recipe is not None:
            return EXACT
        return LOSSY if all(each.removable for each in self.differences) else NONE


@cache
def found(source: str, target: str) -> Found:
    """Return what `growth recipe` finds for two published models."""
    ours, theirs = (published()[name].config for name in (source, target))
    try:
        return Found(derive_recipe(ours, theirs)[0])
    except RecipeError as error:
        return Found(None, tuple(_differences(str(error).splitlines())))


def pair_tables() -> str:
    """Return a summary, a table of what stands in the way, and for each series a table of its pairs."""
    series = all_series()
    results = [found(*pair) for each in series for pair in each.pairs]
    kinds = Counter(result.kind for result in results)
    summary = (
        f"{kinds.total()} pairs of {len(published())} models: {kinds[EXACT]} have an exact recipe, {kinds[LOSSY]} only "
        f"one that `growth recipe --lossy` writes, {kinds[NONE]} none."
    )
    return "\n\n".join([summary, _reasons(results), *(_table(each) for each in series if each.pairs)])


def _differences(lines: Iterable[str]) -> Iterable[Difference]:
    """Yield the differences that the lines of an error name; a heading says which ones a lossy recipe removes."""
    removable = False
    for line in lines:
        stated = OBSTACLE.match(line)
        if stated is not None:
            what, ours, theirs, why = stated.groups()
            kinds = (kind for kind in REASONS if re.fullmatch(kind.what, what) and why.startswith(kind.says))
            yield Difference(what, f"{what} {_value(ours)} → {_value(theirs)}", next(kinds, None), removable)
        elif line.startswith("  - "):
            yield Difference(line, line.removeprefix("  - "), None, removable)
        else:
            removable = "--lossy" in line


def _value(text: str) -> str:
    """Return a value of a config as JSON has it.

    >>> [_value(text) for text in ("1000000.0", "999999.4420358813", "None", "'linear'", "32")]
    ['1000000', '999999.442', 'null', 'linear', '32']
    """
    value = literal_eval(text)
    if isinstance(value, float):
        return f"{value:.9g}"
    return value if isinstance(value, str) else json.dumps(value)


def _reasons(results: list[Found]) -> str:
    rows = []
    for kind in REASONS:
        pairs = [{each for each in result.differences if each.reason == kind} for result in results]
        named = set().union(*pairs)
        if named:
            names = ", ".join(sorted({f"`{each.what}`" if "_" in each.what else each.what for each in named}))
            recipe = LOSSY if all(each.removable for each in named) else NONE
            rows.append(f"| {names} | {kind.why} | {recipe} | {sum(map(bool, pairs))} |")
    return "\n".join(["| what differs | why it stands in the way | recipe | pairs |", "|---|---|---|---|", *rows])


def _table(series: Series) -> str:
    rows = [_row(*pair) for pair in series.pairs]
    return "\n".join(
        [f"## {series.title}", "", "| from | to | recipe | steps, or what differs |", "|---|---|---|---|", *rows]
    )


def _row(source: str, target: str) -> str:
    result = found(source, target)
    if result.recipe is not None:
        growth, _ = growth_of(result.recipe, published()[source].config)
        text = "; ".join(step.operator for step in growth.steps)
    else:
        ordered = sorted(result.differences, key=lambda each: each.removable)
        text = "; ".join(each.text for each in ordered)
    return f"| {source.split('/')[1]} | {target.split('/')[1]} | {result.kind} | {text} |"
