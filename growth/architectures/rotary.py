"""Rotary parameters of configs: which channels of a head are rotary, at which frequencies, in old and new forms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from growth.algebra.arithmetic import power
from growth.architectures.config import Config, number
from growth.errors import ConfigError

LARGEST_EXPONENT = 700.0  # whose exponential is a finite float64
CONTEXTS = ("max_position_embeddings", "original_max_position_embeddings")
PER_FREQUENCY = {"default", "linear", "llama3"}  # types of RoPE that change each frequency by itself
SECTIONS = "mrope_section"  # numbers of pairs that rotate by the position in time, by the row and by the column
MULTIMODAL = "mrope"  # the kind of RoPE that has them


def rope(config: Config, key: str, default: Any, top: str | None = None) -> Any:
    """Return a value that transformers 5 keeps in `rope_parameters` and older configs at top level.

    If `rope_parameters` are nested by layer type, so is the value.

    top: its key at top level, if that differs.

    Raises:
        ConfigError: both forms are present and disagree.
    """
    nested = nested_rope(config)
    by_layer_type = {kind: form[key] for kind, form in nested.items() if isinstance(form, Mapping) and key in form}
    if by_layer_type:
        return by_layer_type
    forms = (("rope_parameters", nested, key), ("top level", config, top or key))
    found = {name: form[where] for name, form, where in forms if where in form}
    if len(set(map(repr, found.values()))) > 1:
        raise ConfigError(f"config.json has two values of {key}: {found}. Remove one.")
    return next(iter(found.values()), default)


def nested_rope(config: Config) -> Mapping[str, Any]:
    """Return rope_parameters, or rope_scaling in older configs.

    Raises:
        ConfigError: it is not an object.
    """
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(config.get(key) or {}, Mapping):
            raise ConfigError(f"config.json has {key} = {config[key]!r}; an object is needed.")
    nested: Mapping[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return nested


def restated(config: Config, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with other values of some keys; a key that it has in rope_parameters is stated there."""
    merged = {**config, **keys}
    nested = merged.get("rope_parameters") or {}
    inside = {key: keys[key] for key in keys if isinstance(nested, Mapping) and key in nested}
    if inside:
        merged["rope_parameters"] = {**nested, **inside}
    return {key: value for key, value in merged.items() if key not in inside or key in config}


def with_default_rope(config: Config, **parameters: Any) -> Config:
    """Return a config with these rope_parameters if it has none; its rope_theta alone does not count then."""
    if nested_rope(config):
        return config
    return {**config, "rope_theta": parameters["rope_theta"], "rope_parameters": parameters}


def rotary_channels(config: Config, head_dim: int, default: float, top: str | None = None) -> int:
    """Return the number of rotary channels of a head: int(head_dim * partial_rotary_factor), as models compute it.

    top: the factor's key at top level, if that differs.

    Raises:
        ConfigError: the factor is not in [0, 1], the number is odd or 0, or the frequencies depend on head_dim itself
            instead of the number of rotary channels.
    """
    if rope(config, "rope_type", "default") == "proportional":
        raise ConfigError(
            "config.json has rope_type 'proportional', whose frequencies depend on head_dim instead of the number of "
            "rotary channels: such heads cannot grow in this family."
        )
    factor = rotary_share(config, default, top)
    channels = int(head_dim * factor)
    if channels < 2 or channels % 2:
        raise ConfigError(
            f"config.json has head_dim = {head_dim} and partial_rotary_factor = {factor}, hence {channels} rotary "
            "channels; they come in pairs, so an even number of at least 2 is needed."
        )
    return channels


def rotary_part(config: Config, head_dim: int, default: float) -> int | None:
    """Return the number of rotary channels of a head, None if RoPE covers the whole head.

    For classes that rotate as many channels as there are frequencies. Frequencies of type 'proportional' are always
    those of the whole head, of which some are 0.
    """
    whole = rope(config, "rope_type", "default") == "proportional"
    return None if whole else rotary_channels(config, head_dim, default)


def rotary_of_layers(has_rope: Sequence[object], head_dim: int) -> int | None:
    """Return 0 if no layer has RoPE (NoPE), None if some layer has it on the whole head.

    Raises:
        ConfigError: no layer has RoPE and head_dim is odd, which stock configs refuse.
    """
    if any(has_rope):
        return None
    if head_dim > 4 and head_dim % 2:
        raise ConfigError(
            f"config.json has head_dim = {head_dim}: stock configs need an even number, even if no layer has RoPE. "
            "Choose an even one."
        )
    return 0


def rotary_share(config: Config, default: float, top: str | None = None) -> float:
    """Return the config's partial_rotary_factor.

    Raises:
        ConfigError: it is not in (0, 1].
    """
    factor: float = rope(config, "partial_rotary_factor", default, top)
    if type(factor) not in (int, float) or not 0 < factor <= 1:
        raise ConfigError(f"config.json has partial_rotary_factor = {factor!r}; a number in (0, 1] is needed.")
    return factor


def partial_rotary_factor(channels: int, head_dim: int) -> float:
    """Return the factor for which int(head_dim * factor) is `channels`, nudged where the quotient truncates.

    >>> int(44 * (30 / 44)), int(44 * partial_rotary_factor(30, 44))
    (29, 30)
    """
    factor = channels / head_dim
    while int(head_dim * factor) < channels:
        factor = math.nextafter(factor, 1)
    assert int(head_dim * factor) == channels
    return factor


def rope_config(config: Config, channels: int, head_dim: int, names: Mapping[str, str]) -> dict[str, Any]:
    """Return both forms of the rotary parameters, for `channels` rotary channels in heads of `head_dim`.

    names: the keys at top level, if they differ.
    """
    theta = rope(config, "rope_theta", 10000.0, names.get("rope_theta"))
    values = {"rope_theta": theta, "partial_rotary_factor": partial_rotary_factor(channels, head_dim)}
    scaling = config.get("rope_scaling") or {}
    nested = dict(nested_rope(config))
    kind = nested.get("rope_type", nested.get("type", "default"))
    top = {names.get(key, key): value for key, value in values.items()}
    forms = {"rope_parameters": {**nested, "rope_type": kind, **values}, **top}
    if "partial_rotary_factor" in scaling:  # config classes prefer rope_scaling where both are there
        forms["rope_scaling"] = {**scaling, "partial_rotary_factor": values["partial_rotary_factor"]}
    return forms


def rope_types(config: Config) -> set[str]:
    """The kinds of rotary embedding that a config names, such as default, linear, llama3 and yarn."""
    return {kind for kind, _ in _rope_forms(config)}


def reads_context(config: Config, key: str) -> bool:
    """Whether rotary frequencies depend on `max_position_embeddings` or `original_max_position_embeddings`.

    >>> llama3 = {"rope_type": "llama3", "original_max_position_embeddings": 8192}
    >>> [reads_context({"rope_parameters": llama3}, key) for key in CONTEXTS]
    [False, True]
    """
    longest, original = CONTEXTS
    own = {"llama3"} if key == longest else set()  # if the original length is stated; otherwise it is the longest
    return any(
        kind not in {"default", "linear", MULTIMODAL} | (own if original in form else set())
        for kind, form in _rope_forms(config)
    )


def _rope_forms(config: Config) -> list[tuple[str, Mapping[str, Any]]]:
    """The kind and the parameters of each rotary embedding."""
    nested = nested_rope(config)
    forms = [form for form in nested.values() if isinstance(form, Mapping)] or [nested]
    kinds = [str(form.get("rope_type", form.get("type", "default"))) for form in forms]
    return [
        (MULTIMODAL if kind == "default" and SECTIONS in form else kind, form)
        for kind, form in zip(kinds, forms, strict=True)
    ]


def spread_refusal(config: Config) -> str:
    """Return why pair k has another frequency than pair k * m of m times as many at the same base; empty if it has not.

    Pair i of n / 2 has frequency f = base ** (-2 i / n), which linear divides by a number, and llama3 by a function of
    f alone. Other types compute it from the number of channels, or list a factor for each pair.
    """
    unknown = rope_types(config) - PER_FREQUENCY
    if not unknown:
        return ""
    return (
        f"with rope_type '{', '.join(sorted(unknown))}', the frequency of a pair depends on more than the base and the "
        f"pair's share of the channels. Leave out rope_pairs, or choose a source with rope_type "
        f"{' or '.join(sorted(PER_FREQUENCY))}."
    )


def rope_bases(config: Config, bases: Sequence[tuple[str, str, float]], ratio: float) -> dict[str, Any]:
    """Return the rotary parameters for heads `ratio` times as wide in which the old channels keep their frequencies.

    Pair i of n / 2 has frequency base ** (-2 i / n). With base ** (N / n), the first n / 2 of N / 2 pairs keep theirs,
    and the others continue below the lowest. Old and new forms of the config are both written.
    """
    nested = nested_rope(config)
    flat = nested if not any(isinstance(form, Mapping) for form in nested.values()) else {}
    without = {kind: form for kind, form in nested.items() if form is None and not flat}  # layers without RoPE
    forms: dict[str, dict[str, Any]] = {}
    result: dict[str, Any] = {"rope_parameters": forms}
    for layer_type, key, default in bases:
        # rope_scaling of an older config is that of the first layer type
        form = nested.get(layer_type) or ({} if forms else flat)
        if not isinstance(form, Mapping):
            raise ConfigError(f"config.json has rope_parameters of {layer_type} = {form!r}; an object is needed.")
        old = number(form, "rope_theta", number(config, key, default))
        if ratio * math.log(max(old, 1)) > LARGEST_EXPONENT:
            raise ConfigError(
                f"config.json has {key} = {old:g}; a head_dim {ratio:g} times as large needs this to the power of "
                f"{ratio:g}, which is too large. Widen heads instead."
            )
        base = power(old, ratio)
        forms[layer_type] = {"rope_type": form.get("type", "default"), **form, "rope_theta": base}
        if SECTIONS in form and not form.get("mrope_interleaved"):  # if interleaved, pairs are of time by default
            *others, last = form[SECTIONS]
            forms[layer_type][SECTIONS] = [*others, last + round((ratio - 1) * sum(form[SECTIONS]))]
        result.setdefault(key, base)
    if config.get("rope_scaling"):
        result["rope_scaling"] = forms[bases[0][0]]
    return result | {"rope_parameters": forms.get("", {**without, **forms})}
