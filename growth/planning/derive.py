"""Derivation: the recipe that leads from one config to another, or a list of what prevents it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from growth.architectures import architecture
from growth.architectures.base import Architecture
from growth.architectures.config import Config
from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.open import format_of
from growth.errors import GrowthError, RecipeError, printable
from growth.operators.base import Growth
from growth.operators.deepen import layer_order
from growth.operators.dense_to_moe import MIXTURES, Upcycling
from growth.operators.widen import default_init
from growth.planning.differences import (
    KEEP,
    differences,
    eps,
    eps_of_stream,
    longer_context,
    one_sided_flags,
    rope_stride,
)
from growth.planning.obstacles import Obstacle, no_recipe, obstacle
from growth.planning.plan import Plan, make_plan
from growth.planning.prepare import planned
from growth.planning.recipe import Recipe, dump_recipe, parse_recipe, recipe_of

Step = dict[str, Any]
LARGER = "Growth only makes models larger."


def derive_recipe(
    source: Config, target: Config, *, name: str = "source", lossy: bool = False
) -> tuple[Recipe, list[str]]:
    """Return the recipe from one config to another, and remarks on what it leaves different.

    The target is of the source's family, or of its family's mixture of experts. If it has more tokens, the source's
    tokens keep their logits.

    lossy: whether config keys that no exact recipe changes are taken from the target.

    Raises:
        RecipeError: no recipe leads there; the message names everything that stands in the way.
        ConfigError: a config that is not of a known family.
    """
    start, after = architecture(source), architecture(target)
    dense = start if start.tied == after.tied else start.with_head(tied=after.tied)
    before = dense if dense.model_type == after.model_type else _as_mixture(dense, after)
    implied = before if before.depth else before.with_depth(after.depth)
    found = [*_steps(start, before, after), *differences(implied, after), *_around(start, after)]
    steps = [each for each in found if isinstance(each, dict)]
    obstacles = [each for each in found if isinstance(each, Obstacle)]
    remarks = [each for each in found if isinstance(each, str)]
    keys = {key: value for each in obstacles for key, value in each.keys.items()}
    stated_keys = {**longer_context(before, after), **keys}
    steps += [{"op": "configure", "keys": stated_keys}] if stated_keys else []  # no step may follow it
    obstacles += _refused_steps(start, steps)
    recipe = _recipe(name, before, after, steps or [{"op": "deepen", "to": before.depth}], lossy=bool(keys))
    if all(each.keys for each in obstacles):
        plan = _planned(start, recipe)
        obstacles += [plan] if isinstance(plan, Obstacle) else _left(plan.target, after)
    if obstacles and not (lossy and all(each.keys for each in obstacles)):
        raise no_recipe(obstacles, lossy=lossy)
    assert isinstance(plan, Plan)
    known = ("model_type",) * (before.model_type != start.model_type), after.sizes, after.depth_keys, after.ratios
    stated = [key for keys in known for key in keys if key in after.config and key in plan.target.config]
    remarks = [f"LOSSY: {each.text.removesuffix(KEEP).rstrip()}" for each in obstacles] + remarks
    return recipe.model_copy(update={"expect": {key: plan.target.config[key] for key in stated}}), remarks


def recipe_text(recipe: Recipe, remarks: list[str]) -> str:
    """Return the recipe as YAML, with its remarks as comments."""
    return "".join(f"# {printable(remark)}\n" for remark in remarks) + dump_recipe(recipe)


def plan_text(text: str, source: Path, *, dequantize: bool = False) -> None:
    """Read a derived recipe back and plan it on a checkpoint folder, if `source` is one with weights.

    dequantize: as for `growth.plan`.

    Raises:
        GrowthError: it does not apply to this checkpoint.
    """
    recipe = parse_recipe(text, "derived recipe")
    if source.is_dir() and format_of(source).recognises(source):
        planned(recipe, source, None, None, headers_only=True, dequantize=dequantize)


def _recipe(name: str, before: Architecture, after: Architecture, steps: list[Step], *, lossy: bool) -> Recipe:
    exact = "exact" if before.axes["vocab"].size == after.axes["vocab"].size else "the source's logits and more tokens"
    kept = "lossy" if lossy else exact
    description = f"{name} to {after.depth} layers of {after.axes['residual'].size}, {kept}"
    return recipe_of({"description": description, "steps": steps}, "derived recipe")


def _headers(built: Architecture) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, "F32", shape) for name, shape in built.example_shapes().items()}


def _as_mixture(dense: Architecture, after: Architecture) -> Architecture:
    """Return the source as the target's family sees it: a mixture with one expert."""
    mixture = MIXTURES.get(dense.model_type)
    if mixture is None or mixture.model_type != after.model_type:
        raise RecipeError(
            f"A {dense.model_type} cannot grow into a {after.model_type}: the families differ. Choose a target "
            f"config of the family {dense.model_type}."
        )
    return _upcycling(dense, after).table(dense)


def _upcycling(dense: Architecture, after: Architecture) -> Upcycling:
    """Return how the source is read as a mixture: its MLP is divided into parts that the target's experts can hold."""
    ffn, top_k = dense.axes["ffn"].size, after.chosen
    common = math.gcd(ffn, after.axes["experts"].size, top_k)
    fits = [parts for parts in range(1, common + 1) if common % parts == 0 and ffn <= parts * after.axes["ffn"].size]
    return Upcycling(dense.model_type, top_k, 0.0, parts=fits[0] if fits else 1)


def _around(start: Architecture, after: Architecture) -> Iterator[Obstacle]:
    """Yield what differs around a text model inside another model."""
    ours, theirs = (built.outer.rest if built.outer else {} for built in (start, after))
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            reason = "It is outside of the text model, and nothing else grows. Choose a target with the source's."
            yield obstacle(key, ours.get(key), theirs.get(key), reason)


# ------------------------------------------------- plans


def _refused_steps(source: Architecture, steps: list[Step]) -> Iterator[Obstacle]:
    """Apply the steps one after the other and yield those that the source refuses, each for its own reason."""
    growth = Growth.start(source)
    for step in steps:
        try:
            growth = recipe_of({"description": "", "steps": [step]}, "derived recipe").steps[0].operator(0)(growth)
        except GrowthError as error:
            yield Obstacle(str(error))


def _planned(source: Architecture, recipe: Recipe) -> Plan | Obstacle:
    try:
        return make_plan(source, recipe.grow(source, recipe.seed), _headers(source))
    except GrowthError as error:
        return Obstacle(str(error))


def _left(result: Architecture, after: Architecture) -> Iterator[Obstacle]:
    """Yield what a planned recipe leaves different in the tables."""
    named = after.named_as_in(_headers(after))
    if (result.weights, result.spaces) != (named.weights, named.spaces):
        flags = ", ".join(sorted(one_sided_flags(result, after)))
        yield Obstacle(
            f"The two configs differ in a key that one of them leaves to a default, one of {flags}: the function "
            "depends on it. State these keys in both configs."
        )


# ------------------------------------------------- steps


def _steps(source: Architecture, before: Architecture, after: Architecture) -> Iterator[Step | Obstacle]:
    """Yield the steps from one table to the other, and what stands in the way of one.

    before: the source as the target's family and its head read it.
    """
    upcycled = before.model_type != source.model_type
    if upcycled:
        yield _upcycle(source, after)
    yield from _head(source, after)
    for name in before.axes:
        if name == "heads":
            yield from _heads(before, after)
        elif name != "queries" and (name != "experts" or not upcycled):
            yield from _width(before, after, name)
    yield from _eps(before, after)
    yield from _depth(before, after)


def _eps(before: Architecture, after: Architecture) -> Iterator[Step | Obstacle]:
    """Yield the step to the target's eps, if the growth of the residual stream does not lead there."""
    if before.eps is None or eps_of_stream(before, after):
        return
    old, new = eps(before), eps(after)
    if not math.isclose(old, new, rel_tol=1e-3):
        if 0 < old < 1 and 0 < new < 1:
            yield {"op": "rescale", "norm_eps": new}
        else:
            reason = f"A scale of the residual stream makes up for another eps between 0 and 1 only. {KEEP}"
            yield obstacle(before.eps, old, new, reason, keys={before.eps: new})


def _head(source: Architecture, after: Architecture) -> Iterator[Step | Obstacle]:
    if source.tied and not after.tied:
        yield {"op": "untie"}
    elif after.tied and not source.tied:
        reason = (
            "The source has a head of its own, and a tied model has none. Choose an untied target, or add the step "
            "retie by hand if the source's head equals its embedding."
        )
        yield obstacle("tie_word_embeddings", False, True, reason)


def _upcycle(source: Architecture, after: Architecture) -> Step:
    found = _upcycling(source, after)
    divided = {"granularity": found.parts} if found.parts > 1 else {}
    return {"op": "upcycle", "experts": after.axes["experts"].size, "top_k": found.top_k, **divided}


def _width(before: Architecture, after: Architecture, name: str) -> Iterator[Step | Obstacle]:
    if name not in after.axes:  # and the weights differ, which is told of them
        return
    axis, new = before.axes[name], after.axes[name].size
    if new < axis.size:
        yield obstacle(name, axis.size, new, f"{LARGER} Choose a target with {axis.size} or more.")
    elif new > axis.size:
        yield _widen(before, name, new) | _how(before, after, name)


def _how(before: Architecture, after: Architecture, name: str) -> Step:
    """Return the arguments of a step of `widen` that the target decides beside the size."""
    if name == "residual":
        return eps_of_stream(before, after)
    spread = name == before.rotary_axis and rope_stride(before, after) > 1
    return {"init": "pad", "rope_pairs": "spread"} if spread else {}


def _widen(before: Architecture, name: str, to: int) -> Step:
    axis = before.axes[name]
    init = "pad" if name == "positions" else default_init(axis, axis.size)
    return {"op": "widen", "axis": name, "to": to, "init": init}


def _heads(before: Architecture, after: Architecture) -> Iterator[Step | Obstacle]:
    """Yield the growth of KV heads and of the query heads of each, which may become fewer where KV heads are copied."""
    (heads, queries), (new_heads, new_queries) = _attention(before), _attention(after)
    axis = before.axes["heads"]
    if new_heads > max(heads, axis.max_size) and axis.refusal:
        yield obstacle("KV heads", heads, new_heads, f"Cannot add KV heads: {axis.refusal}")
        return
    copies = -(-queries // new_queries)  # that a KV head needs for its query heads
    if new_heads < heads * copies:
        yield _few_heads((heads, queries), (new_heads, new_queries), copies)
        return
    if copies > 1:
        yield {"op": "regroup", "factor": copies}
        heads, queries = heads * copies, -(-queries // copies)
    if new_heads > heads:
        yield _widen(before, "heads", new_heads * queries)  # which counts query heads
    if new_queries > queries:
        yield _widen(before, "queries", new_queries)


def _attention(built: Architecture) -> tuple[int, int]:
    """Return the number of KV heads, and of query heads per KV head."""
    return built.axes["heads"].size, built.axes["queries"].size


def _few_heads(source: tuple[int, int], target: tuple[int, int], copies: int) -> Obstacle:
    """Return the obstacle that the target has too few heads, named as what it has too few of."""
    (heads, queries), (new_heads, new_queries) = source, target
    if new_heads < heads:
        label = "heads" if queries == new_queries == 1 else "KV heads"
        return obstacle(label, heads, new_heads, f"{LARGER} Choose a target with {heads} or more.")
    if new_heads * new_queries < heads * queries:
        reason = f"{LARGER} Choose a target with {heads * queries} or more."
        return obstacle("query heads", heads * queries, new_heads * new_queries, reason)
    least = heads * copies
    reason = (
        f"The {queries} query heads of each KV head of the source need {copies} KV heads of the target, {least} in "
        f"all, and the target has {new_heads}. Choose a target with {least} KV heads or more."
    )
    return obstacle("query heads per KV head", queries, new_queries, reason)


def _depth(before: Architecture, after: Architecture) -> Iterator[Step | Obstacle]:
    if after.depth < before.depth:
        yield obstacle("layers", before.depth, after.depth, f"{LARGER} Choose a target with {before.depth} or more.")
        return
    if after.depth and not before.depth:
        implied = before.with_depth(after.depth)
        if _kinds(implied, after) != _kinds(after, implied):
            reason = f"the source has no layers, and its config implies others than the target has. {KEEP}"
            yield Obstacle(f"layers' kinds: {reason}", _layer_keys(before, after))
        if before.no_identity:
            yield obstacle("layers", 0, after.depth, f"Cannot add identity layers: {before.no_identity}")
        else:
            yield {"op": "deepen", "to": after.depth, "init": "fresh"}
        return
    even = layer_order("interleave", before.depth, after.depth)
    try:
        order = layers_by_kind(_kinds(before, after), _kinds(after, before))
    except RecipeError as error:
        order = even
        yield Obstacle(f"layers' kinds: {error} {KEEP}", _layer_keys(before, after))
    if after.depth > before.depth and before.no_identity:
        reason = f"Cannot add identity layers: {before.no_identity}"
        yield obstacle("layers", before.depth, after.depth, reason)
    elif after.depth > before.depth:
        yield {"op": "deepen", "to": after.depth, "order": "interleave" if order == even else order, "init": "identity"}


def _layer_keys(before: Architecture, after: Architecture) -> Mapping[str, Any]:
    """Return the config keys that decide the kinds of the target's layers, if they decide nothing about weights."""
    sets = before.layer_sets or after.layer_sets or before.layer_counts
    return {} if sets else {key: list(values) for key, values in after.layer_lists.items()}


def _kinds(built: Architecture, other: Architecture) -> list[str]:
    """Return the kind of each layer in words: whether it has a window, RoPE, experts."""
    layers = range(built.depth)
    keys = built.layer_sets.keys() | other.layer_sets.keys()
    sets = {key: [layer in built.layer_sets.get(key, ()) for layer in layers] for key in sorted(keys)}
    counts = {key: [layer < count for layer in layers] for key, count in built.layer_counts.items()}
    first = min(built.leading, other.leading, built.depth - 1, other.depth - 1)
    leading = {"leading": [min(layer, first) for layer in layers]} if built.leading else {}
    bases = {key: _bases(built, other, key) for key in built.base_lists}
    lists = {**built.layer_lists, **bases, **sets, **counts, **leading}
    return [", ".join(f"{key} {values[layer]}" for key, values in lists.items()) for layer in layers]


def _bases(built: Architecture, other: Architecture, key: str) -> Sequence[float]:
    """Return the bases of RoPE of the layers; if the other table has others, a power of them that no size changes."""
    stated = built.layer_lists[key]
    if {*stated} == {*other.layer_lists.get(key, ())}:
        return stated
    return [round(math.log(base) / built.head_channels.size, 9) if base else 0 for base in stated]


def layers_by_kind(have: list[str], want: list[str]) -> list[int]:
    """Return the source layer that each target layer copies, interleaved as evenly as their kinds allow.

    >>> layers_by_kind(["a", "a"], ["a"] * 4), layers_by_kind(["a", "b"], ["a", "b", "a", "b"])
    ([0, 0, 1, 1], [0, 1, 0, 1])
    """
    old, new = len(have), len(want)
    latest: list[int] = []  # positions of the source's layers, the last one first
    for kind in reversed(have):
        fits = [place for place in range(latest[-1] if latest else new) if want[place] == kind]
        latest += fits[-1:]
    if len(latest) < old or not set(want) <= set(have):
        even = layer_order("interleave", old, new)
        place = next(place for place in range(new) if want[place] != have[even[place]])
        raise RecipeError(
            f"Layer {place} of the target has {want[place]}, and layer {even[place]} of the source, which it would "
            "copy, "
            f"has {have[even[place]]}. No other order of the new layers fits either."
        )
    places: list[int] = []
    for layer, last in enumerate(reversed(latest)):
        free = range(places[-1] + 1 if places else 0, last + 1)
        fits = [place for place in free if want[place] == have[layer]]
        places.append(next((place for place in fits if place >= layer * new / old), fits[-1]))
    alike = [[layer for layer in range(old) if have[layer] == kind] for kind in want]
    return [
        max((layer for layer in alike[place] if places[layer] <= place), default=alike[place][0])
        for place in range(new)
    ]
