"""Derivation: the recipe that leads from one config to another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from growth.architectures import architecture
from growth.architectures.base import PATTERNS, Architecture
from growth.architectures.config import NEUTRAL, Config, TrackedConfig, number, size
from growth.architectures.rotary import nested_rope, rope, rope_bases
from growth.arrays.tensor_info import TensorInfo
from growth.errors import ConfigError, RecipeError, printable
from growth.operators.deepen import layer_order
from growth.operators.dense_to_moe import MIXTURES, as_mixture
from growth.operators.widen import default_init
from growth.planning.plan import make_plan
from growth.planning.recipe import Recipe, dump_recipe, recipe_of

UNSAID = "the family's default"
# config keys that only decide which layers and weights a table has
TABLED = (
    "use_sliding_window", "max_window_layers", "sliding_window_pattern", "no_rope_layer_interval",
    "decoder_sparse_step", "mlp_only_layers", "intermediate_size",
)  # fmt: skip
DROPOUT = ("dropout", "_pdrop", "layerdrop")  # endings of keys that only training reads


def derive_recipe(source: Config, target: Config, *, name: str = "source") -> tuple[Recipe, list[str]]:
    """Return the exact recipe from one config to another, and remarks on what it leaves different.

    The target is of the source's family, or of its family's mixture of experts. If it has more tokens, the source's
    tokens keep their logits.

    Raises:
        RecipeError: no preserving recipe leads there; the message says why.
        ConfigError: a config that is not of a known family.
    """
    start, after = architecture(source), architecture(target)
    untie = start.tied and not after.tied
    dense = start.with_head(tied=False) if untie else start
    before = dense if dense.model_type == after.model_type else _as_mixture(dense, after)
    _check_alike(before, after)
    steps = [*([{"op": "untie"}] if untie else []), *_widths(before, after), *_depth(before, after)]
    if before is not dense:
        experts, top_k = after.axes["experts"].size, size(after.config, "num_experts_per_tok")
        steps = [step for step in steps if step.get("axis") != "experts"]
        steps.insert(0, {"op": "upcycle", "experts": experts, "top_k": top_k})
    exact = "exact" if before.axes["vocab"].size == after.axes["vocab"].size else "the source's logits and more tokens"
    description = f"{name} to {after.depth} layers of {after.axes['residual'].size}, {exact}"
    steps = steps or [{"op": "deepen", "to": before.depth}]
    recipe = recipe_of({"description": description, "steps": steps}, "derived recipe")
    result = make_plan(start, recipe.grow(start, recipe.seed), _headers(start)).target
    remarks = list(_differences(result, after))
    known = ("model_type",) * (before is not dense), after.sizes, after.depth_keys, after.ratios
    stated = [key for keys in known for key in keys if key in target and key in result.config]
    return recipe.model_copy(update={"expect": {key: result.config[key] for key in stated}}), remarks


def recipe_text(recipe: Recipe, remarks: list[str]) -> str:
    """Return the recipe as YAML, with its remarks as comments."""
    return "".join(f"# {printable(remark)}\n" for remark in remarks) + dump_recipe(recipe)


def _headers(built: Architecture) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, "F32", shape) for name, shape in built.shapes().items()}


# ------------------------------------------------- what must be the same before anything can grow


def _as_mixture(dense: Architecture, after: Architecture) -> Architecture:
    """Return the source as the target's family sees it: a mixture with one expert."""
    mixture = MIXTURES.get(dense.model_type)
    if mixture is None or mixture.model_type != after.model_type:
        raise RecipeError(
            f"A {dense.model_type} cannot grow into a {after.model_type}: the families differ. Choose a target "
            f"config of the family {dense.model_type}."
        )
    return as_mixture(dense, _headers(dense), size(after.config, "num_experts_per_tok"))[0]


def _check_alike(before: Architecture, after: Architecture) -> None:
    ours, theirs = ({weight.name for weight in built.weights} for built in (before, after))
    if ours != theirs:
        raise RecipeError(
            f"The target has weights that the source does not have or lacks some: {sorted(ours ^ theirs)[:4]}. "
            "No preserving recipe adds or removes them."
        )
    if before.rotary != after.rotary:
        raise RecipeError(
            f"The source has {before.rotary} rotary channels per head and the target {after.rotary}: their number sets "
            "the frequencies, so no recipe preserves the function. Grow the number of heads instead of the rotary "
            "channels."
        )


# ------------------------------------------------- steps


def _widths(before: Architecture, after: Architecture) -> Iterator[dict[str, Any]]:
    for name, axis in before.axes.items():
        old, new = axis.size, after.axes[name].size
        if new < old:
            raise RecipeError(f"The target has {name} {new}, the source {old}: growth only makes models larger.")
        if new > old:
            yield _widen(before, after, name)


def _widen(before: Architecture, after: Architecture, name: str) -> dict[str, Any]:
    axis, new = before.axes[name], after.axes[name].size
    # recipes count query heads, and a KV head still has the source's number of them at this step
    to = new * before.axes["queries"].size if name == "heads" else new
    init = "pad" if axis.external and not axis.equal_copies else default_init(axis, axis.size)
    step: dict[str, Any] = {"op": "widen", "axis": name, "to": to, "init": init}
    if name == "residual" and axis.norm:
        step |= _with_eps_of(before, after)
    return step


def _with_eps_of(before: Architecture, after: Architecture) -> dict[str, Any]:
    """Return how the residual stream must grow so that the norms have the target's eps, if the source's differs."""
    if before.eps is None:
        return {}
    old, new = (_eps(built) for built in (before, after))
    was, now = (built.axes["residual"].size for built in (before, after))
    for init, copies in (("tile", now // was), ("pad", 1)):
        if old != new and math.isclose(new, old * copies * was / now, rel_tol=1e-3):
            return {"init": init, "norm_eps": "rescale"}
    return {}


def _eps(built: Architecture) -> float:
    return number(built.config, built.eps or "", built.eps_default)


def _depth(before: Architecture, after: Architecture) -> Iterator[dict[str, Any]]:
    if after.depth < before.depth:
        raise RecipeError(f"The target has {after.depth} layers, the source {before.depth}: growth only adds layers.")
    order = layers_by_kind(_kinds(before), _kinds(after))
    if after.depth > before.depth:
        even = order == layer_order("interleave", before.depth, after.depth)
        yield {"op": "deepen", "to": after.depth, "order": "interleave" if even else order, "init": "identity"}


def _kinds(built: Architecture) -> list[str]:
    """Return the kind of each layer in words: whether it has a window, RoPE, experts."""
    layers = range(built.depth)
    sets = {key: [layer in members for layer in layers] for key, members in built.layer_sets.items()}
    lists = {**built.layer_lists, **sets}
    return [", ".join(f"{key} {values[layer]}" for key, values in lists.items()) for layer in layers]


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
            f"Layer {place} of the target has {want[place]}, and the layer of the source that it would copy "
            f"{have[even[place]]}. In no other order do the source's layers, one after the other, give the target's."
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


# ------------------------------------------------- what else the two configs say


def _differences(result: Architecture, target: Architecture) -> Iterator[str]:
    """Yield remarks on differences that do not change the function, and on keys that only one config states.

    Raises:
        RecipeError: a difference that changes the function.
    """
    for key, axis in target.ratios.items():
        ours, theirs = (size(built.config, key) for built in (result, target))
        if ours != theirs:
            raise RecipeError(
                f"The target has {key} = {theirs}, but {axis} grow by copies that are chosen together: with the "
                f"target's number of {axis}, the result has {key} = {ours}. Correct the target config."
            )
    if result.eps and not math.isclose(_eps(result), _eps(target), rel_tol=1e-3):
        _refuse_difference(result.eps, _eps(result), _eps(target))
    yield from _compared(_frequencies(result), _frequencies(target))
    yield from _compared({"sliding_window": _window(result)}, {"sliding_window": _window(target)})
    read = TrackedConfig(target.config)
    target.family(read)
    # flags that only one config states are compared through the tables that they lead to
    one_sided = (result.config.keys() ^ target.config.keys()) & read.asked
    flags = {key for key in one_sided if isinstance({**result.config, **target.config}[key], bool)}
    elsewhere = result.known_keys | target.known_keys | flags | {*TABLED, *PATTERNS, "sliding_window"}
    yield from _compared(*({k: v for k, v in built.config.items() if k not in elsewhere} for built in (result, target)))
    if (result.weights, result.spaces) != (target.weights, target.spaces):
        raise RecipeError(
            f"The two configs differ in a key that one of them leaves to a default, one of {', '.join(sorted(flags))}: "
            "no recipe preserves the function. State these keys in both configs."
        )


def _compared(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """Yield remarks on keys that differ without changing the function, or that only one config states."""
    for key in sorted(ours.keys() | theirs.keys()):
        our, their = ours.get(key, UNSAID), theirs.get(key, UNSAID)
        unsaid = UNSAID in (our, their)
        if _same(our, their) or (unsaid and None in (our, their)):
            continue
        if key == "max_position_embeddings" or key.endswith(DROPOUT):
            yield from () if unsaid else (f"the result keeps {key}: {our}; the target has {their}",)
        elif key not in NEUTRAL:
            if not unsaid:
                _refuse_difference(key, our, their)
            yield f"the result has {key}: {our}; the target has {their}: see that they agree"


def _same(ours: Any, theirs: Any) -> bool:
    """Whether two values are equal up to the rounding of a power."""
    if all(type(value) in (int, float) for value in (ours, theirs)):
        return math.isclose(ours, theirs)
    return bool(ours == theirs)


def _frequencies(built: Architecture) -> dict[str, Any]:
    """Return what sets the rotary frequencies besides the number of rotary channels, by layer type."""
    config = built.config
    nested = nested_rope(config)
    plain = {kind: form for kind, form in nested.items() if not isinstance(form, Mapping)}
    for kind, form in plain.items() if len(plain) < len(nested) else ():
        raise ConfigError(
            f"The config's rotary parameters have {kind} = {form!r} beside an object for each layer type. "
            "State it in each of these objects."
        )
    stated = rope_bases(config, built.bases, 1.0)["rope_parameters"] if built.bases else dict(nested)
    by_type = any(isinstance(form, Mapping) for form in stated.values())
    base = rope(config, "rope_theta", None, built.rope_names.get("rope_theta"))
    if not by_type and base is not None:
        stated["rope_theta"] = base
    found: dict[str, Any] = {}
    for kind, form in (stated if by_type else {"": stated}).items():
        name = form.get("rope_type", form.get("type", "default"))
        read = {"rope_theta"} if name == "default" else form.keys() - {"type", "partial_rotary_factor"}
        values = {**{key: form[key] for key in form.keys() & read}, "rope_type": name}
        found |= {f"{key} of {kind}" if kind else key: value for key, value in values.items()}
    return found


def _window(built: Architecture) -> Any:
    """Return the size of the sliding window, None if no layer has one."""
    listed = built.layer_lists.get("layer_types", ("sliding_attention",))
    if "sliding_attention" not in listed or built.config.get("use_sliding_window") is False:
        return None
    return built.config.get("sliding_window", UNSAID)


def _refuse_difference(key: str, ours: Any, theirs: Any) -> None:
    raise RecipeError(
        f"The source has {key} = {ours!r} and the target {theirs!r}: no recipe preserves the function. Correct the "
        "target config, or start from another source."
    )
