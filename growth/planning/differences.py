"""Differences: what two configs of a family say differently, apart from the sizes of axes and the number of layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

from growth.architectures.base import PATTERNS, Architecture
from growth.architectures.config import DROPOUT, NEUTRAL, UNSAID, Config, TrackedConfig, number, size
from growth.architectures.rotary import nested_rope, rope, rope_bases, rope_config
from growth.errors import ConfigError, GrowthError
from growth.operators.configure import is_neutral
from growth.planning.obstacles import Obstacle, obstacle

# config keys that only decide which layers and weights a table has
TABLED = (
    "use_sliding_window", "max_window_layers", "sliding_window_pattern", "no_rope_layer_interval",
    "decoder_sparse_step", "mlp_only_layers", "intermediate_size", "multi_query",
)  # fmt: skip
CONTEXT, TRAINED = "max_position_embeddings", "original_max_position_embeddings"
KEEP = "Keep the source's value, or start from another source."

# keys that change no logits, and that whoever uses or trains the grown model should know of
OF_TEXT = ("initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")

Found = Iterator[Obstacle | str]  # what differs: obstacles to an exact recipe, and remarks


def differences(before: Architecture, after: Architecture) -> Found:
    """Yield all obstacles that two configs state, and remarks on what differs without changing the function.

    before: the source, as the target's family reads it.
    """
    for compare in (_weights, _rotary_channels, _ratios, _depth_roots, _frequencies, _window, _other_keys):
        yield from compare(before, after)


# ------------------------------------------------- weights


def _weights(before: Architecture, after: Architecture) -> Found:
    """Name the keys that decide which weights a model has, then what is left unexplained."""
    ours, theirs = _names(before), _names(after)
    unexplained = ours ^ theirs
    for key in _differing(before.config, after.config) if unexplained else ():
        changed = _decided(before, after, key) & unexplained
        if changed:
            unexplained -= changed
            our, their = (built.config.get(key, UNSAID) for built in (before, after))
            reason = f"It decides whether the model has {_listed(changed)}; no recipe adds or removes these. {KEEP}"
            yield obstacle(key, our, their, reason)
    for names, one, other in ((ours - theirs, "source", "target"), (theirs - ours, "target", "source")):
        if names & unexplained:
            yield Obstacle(
                f"weights: the {one} has {_listed(names & unexplained)}, and the {other} does not; no recipe adds or "
                "removes these. Choose a target with the source's weights."
            )


def _names(built: Architecture) -> set[str]:
    return {weight.name for weight in built.weights}


def _decided(before: Architecture, after: Architecture, key: str) -> set[str]:
    """The weights that a key decides about: those that one config gains or loses with the key as in the other."""
    return (_names_with(before, key, after.config) ^ _names(before)) | (
        _names_with(after, key, before.config) ^ _names(after)
    )


def _names_with(built: Architecture, key: str, other: Config) -> set[str]:
    """The weights of a config with one key as in another; those it has if that is no config of the family."""
    others = {name: value for name, value in built.config.items() if name != key}
    try:
        return _names(built.family({**others, key: other[key]} if key in other else others))
    except GrowthError:
        return _names(built)


def _differing(ours: Config, theirs: Config) -> list[str]:
    keys = (ours.keys() | theirs.keys()) - set(NEUTRAL)
    return sorted(key for key in keys if ours.get(key, UNSAID) != theirs.get(key, UNSAID))


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(name.removeprefix("model.").replace("layers.{layer}.", "") for name in names))


# ------------------------------------------------- numbers that the tables know


def _rotary_channels(before: Architecture, after: Architecture) -> Found:
    ours, theirs = (_partly_rotary(built) for built in (before, after))
    if theirs != (ours and ours * rope_stride(before, after)):
        why = before.head_channels.one_stride or (
            "Their number sets the frequencies of all of them, unless they and head_dim grow by the same whole number."
        )
        reason = f"{why} Grow the number of heads instead of rotary channels."
        yield obstacle("rotary channels per head", ours, theirs, reason)


def _partly_rotary(built: Architecture) -> int | None:
    """The number of rotary channels of a head that need not be rotary as a whole."""
    axis = built.head_channels
    return axis.fixed if axis.rotary_pairs and axis.partly_rotary else None


def rope_stride(before: Architecture, after: Architecture) -> int:
    """Return the m for which old rotary pair k keeps its frequency as pair k * m of the target's heads."""
    ours, theirs = (built.head_channels for built in (before, after))
    ratio, rest = divmod(theirs.size, ours.size)
    spreads = ours.rotary_pairs and not ours.one_stride
    if rest or ratio < 2 or not spreads or ours.partly_rotary != theirs.partly_rotary:
        return 1
    bases = [{k: v for k, v in frequencies(built).items() if k.startswith("rope_theta")} for built in (before, after)]
    same_bases = all(same(bases[0].get(key), bases[1].get(key)) for key in bases[0].keys() | bases[1].keys())
    spread = theirs.fixed == ours.fixed * ratio if ours.partly_rotary else same_bases
    return ratio if spread else 1


def _ratios(before: Architecture, after: Architecture) -> Found:
    for key, axis in before.ratios.items():
        ours, theirs = (size(built.config, key) for built in (before, after))
        grown = ours * after.axes[axis].size // before.axes[axis].size
        if grown != theirs:
            reason = (
                f"{axis} grow by copies that are chosen together: with the target's {after.axes[axis].size} {axis}, "
                f"the result has {key} = {grown}. State that in the target."
            )
            yield obstacle(key, ours, theirs, reason)


def _depth_roots(before: Architecture, after: Architecture) -> Found:
    for key, grown in before.scaled_by_depth(after.depth).items():
        ours, theirs = (built.config.get(key, UNSAID) for built in (before, after))
        if not same(grown, theirs):
            reason = (
                f"The model divides it by the root of the number of layers, so the function stays with {key} = "
                f"{grown:.6g}. State that in the target."
            )
            yield obstacle(key, ours, theirs, reason)


def eps(built: Architecture) -> float:
    """Return the eps of a model's norms."""
    return number(built.config, built.eps or "", built.eps_default)


def eps_of_stream(before: Architecture, after: Architecture) -> dict[str, Any]:
    """Return how the residual stream must grow so that the norms have the target's eps, if the source's differs."""
    if before.eps is None or not before.axes["residual"].norm:
        return {}
    old, new = (eps(built) for built in (before, after))
    was, now = (built.axes["residual"].size for built in (before, after))
    for init, copies in (("tile", now // was), ("pad", 1)):
        if now > was and old != new and math.isclose(new, old * copies * was / now, rel_tol=1e-3):
            return {"init": init, "norm_eps": "rescale"}
    return {}


# ------------------------------------------------- rotary frequencies


def _frequencies(before: Architecture, after: Architecture) -> Found:
    """Compare what sets the rotary frequencies, after the growth of head_dim."""
    old, new = (built.head_channels.size for built in (before, after))
    ours, theirs = frequencies(before), frequencies(after)
    grown = frequencies(before, max(new / (old * rope_stride(before, after)), 1.0))
    differing = [key for key in sorted(grown.keys() | theirs.keys()) if not same(grown.get(key), theirs.get(key))]
    plain = differing == ["rope_theta"] and "rope_theta" in theirs and not before.rope_names
    keys = {"rope_theta": theirs["rope_theta"]} if plain else rope_keys(before, after)
    for key in _without_types_own(differing):
        if key not in ours or key not in theirs:
            yield remark(key, ours.get(key, UNSAID), theirs.get(key, UNSAID))
        elif same(ours[key], grown[key]):
            reason = f"It sets the frequencies of the rotary channels. {KEEP}"
            label = key if key.startswith(("rope_type", "rope_theta")) else f"rope_scaling {key}"
            yield obstacle(label, ours[key], theirs[key], reason, keys=keys)
        else:
            reason = (
                f"The rotary channels keep their frequencies only with {key} = {grown[key]:.6g}; the source has "
                f"{ours[key]:.6g} and the target {theirs[key]:.6g}. State that in the target, keep "
                f"{before.rotary_axis} and grow the number of heads, or choose a whole multiple of "
                f"{before.rotary_axis} at the source's {key}."
            )
            yield obstacle(before.rotary_axis, old, new, reason, keys=keys)


def _without_types_own(keys: list[str]) -> list[str]:
    """Leave out what belongs to one kind of RoPE, where the kinds differ."""
    types = {key.removeprefix("rope_type") for key in keys if key.startswith("rope_type")}
    general = ("rope_type", "rope_theta")
    return [key for key in keys if key.startswith(general) or not any(key.endswith(kind) for kind in types)]


def frequencies(built: Architecture, ratio: float = 1.0) -> dict[str, Any]:
    """Return what sets the rotary frequencies besides the number of rotary channels, by layer type.

    ratio: by which head_dim grows, where RoPE covers the whole head.
    """
    config = built.config
    nested = nested_rope(config)
    plain = {kind: form for kind, form in nested.items() if not isinstance(form, Mapping)}
    stray = {kind: form for kind, form in plain.items() if form is not None}  # null: no RoPE in layers of this kind
    for kind, form in stray.items() if len(plain) < len(nested) else ():
        raise ConfigError(
            f"The config's rotary parameters have {kind} = {form!r} beside an object for each layer type. "
            "State it in each of these objects."
        )
    stated = rope_bases(config, built.bases, ratio)["rope_parameters"] if built.bases else dict(nested)
    by_type = any(isinstance(form, Mapping) for form in stated.values())
    if built.rotary and not built.bases and not by_type:
        stated["rope_theta"] = rope(config, "rope_theta", 10000.0, built.rope_names.get("rope_theta"))
    found: dict[str, Any] = {}
    forms = {kind: form for kind, form in stated.items() if form is not None} if by_type else {"": stated}
    for kind, form in forms.items():
        name = form.get("rope_type", form.get("type", "default"))
        read = {"rope_theta"} if name == "default" else form.keys() - {"type", "partial_rotary_factor"}
        values = {**{key: form[key] for key in form.keys() & read}, "rope_type": name}
        found |= {f"{key} of {kind}" if kind else key: value for key, value in values.items()}
    return found


def rope_keys(before: Architecture, after: Architecture) -> dict[str, Any]:
    """Return the target's rotary parameters as config keys, in every form that the source's config may have."""
    if after.bases:
        keys = rope_bases(after.config, after.bases, 1.0)
    elif after.rotary:
        keys = rope_config(after.config, after.rotary, after.head_channels.size, after.rope_names)
    else:
        return {}
    return keys | ({"rope_scaling": None} if before.config.get("rope_scaling") and "rope_scaling" not in keys else {})


# ------------------------------------------------- windows, and what else the configs say


def _window(before: Architecture, after: Architecture) -> Found:
    ours, theirs = ({"sliding_window": window(built)} for built in (before, after))
    stated = {key: after.config[key] for key in ("sliding_window", "use_sliding_window") if key in after.config}
    reason = f"It decides which positions a token attends to. {KEEP}"
    yield from _compared(ours, theirs, lambda key: stated, reason)


def window(built: Architecture) -> Any:
    """Return the size of the sliding window, None if no layer has one."""
    listed = built.layer_lists.get("layer_types", ("sliding_attention",))
    if "sliding_attention" not in listed or built.config.get("use_sliding_window") is False:
        return None
    return built.config.get("sliding_window", UNSAID)


def _other_keys(before: Architecture, after: Architecture) -> Found:
    named = before.known_keys | after.known_keys | one_sided_flags(before, after)
    elsewhere = {*named, *TABLED, *PATTERNS, "sliding_window", *_of_weights(before, after)}
    elsewhere |= longer_context(before, after).keys()
    ours, theirs = ({k: v for k, v in built.config.items() if k not in elsewhere} for built in (before, after))
    free = {TRAINED} if all(is_neutral(TRAINED, built.config) for built in (before, after)) else set()
    reason = f"The function depends on it. {KEEP}"
    yield from _compared(ours, theirs, lambda key: {key: theirs[key]}, reason, kept={CONTEXT, *free})


def longer_context(before: Architecture, after: Architecture) -> dict[str, int]:
    """Return the target's longest context, if it is longer and the function does not depend on it."""
    ours, theirs = (built.config.get(CONTEXT) for built in (before, after))
    is_rotary = bool(before.rotary or before.bases) and CONTEXT not in before.sizes
    free = is_rotary and all(is_neutral(CONTEXT, built.config) for built in (before, after))
    return {CONTEXT: theirs} if free and type(ours) is type(theirs) is int and theirs > ours else {}


def _of_weights(before: Architecture, after: Architecture) -> set[str]:
    """The differing keys that decide which weights a model has, which are named as such."""
    if _names(before) == _names(after):
        return set()
    differing = _differing(before.config, after.config)
    return {key for key in differing if _decided(before, after, key)}


def one_sided_flags(before: Architecture, after: Architecture) -> set[str]:
    """Return the flags that only one config states: they are compared through the tables that they lead to."""
    read = TrackedConfig(after.config)
    after.family(read)
    either = {**before.config, **after.config}
    one_sided = (before.config.keys() ^ after.config.keys()) & read.asked
    return {key for key in one_sided if isinstance(either[key], bool)}


def _compared(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    keys: Callable[[str], Mapping[str, Any]],
    reason: str,
    *,
    kept: Set[str] = frozenset(),
) -> Found:
    """Yield obstacles where values differ, and remarks where that does not matter or only one config states a value.

    keys: the config keys that a lossy recipe states.
    kept: keys whose values do not matter and stay the source's.
    """
    for key in sorted(ours.keys() | theirs.keys()):
        our, their = ours.get(key, UNSAID), theirs.get(key, UNSAID)
        unsaid = UNSAID in (our, their)
        if same(our, their) or (unsaid and None in (our, their)):
            continue
        if key in kept or key in OF_TEXT or key.endswith(DROPOUT):
            yield from () if unsaid else (f"the result keeps {key}: {our}; the target has {their}",)
        elif key not in NEUTRAL:
            yield remark(key, our, their) if unsaid else obstacle(key, our, their, reason, keys=keys(key))


def remark(key: str, ours: Any, theirs: Any) -> str:
    """Return the remark that only one of two configs states a key."""
    if theirs is UNSAID:
        return f"the result has {key}: {ours}, and the target does not state it: see that they agree"
    return f"the target has {key}: {theirs}, and the source does not state it: see that they agree"


def same(ours: Any, theirs: Any) -> bool:
    """Whether two values are equal up to the rounding of a power."""
    if all(type(value) in (int, float) for value in (ours, theirs)):
        return math.isclose(ours, theirs)
    return bool(ours == theirs)
