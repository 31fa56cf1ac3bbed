"""Wrappers: models around a text model, such as vision-language models, of which the text model grows.

A wrapper is data: where the text model's config and tensors are, which other weights write into its residual stream,
and which tensors pass through. The text model's own table is used as it is, under other names. Its config is that of
the text model alone; `Outer` puts it back into the whole config.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from growth.architectures.base import Architecture, Weight, WeightPart, renamed, weight
from growth.architectures.config import NEUTRAL, Config, flag
from growth.architectures.registry import FAMILIES, Family, find_family
from growth.architectures.spelling import TEXT, current_keys
from growth.errors import ConfigError

TIED = "tie_word_embeddings"
PARTS = ("vision_config", "audio_config")  # configs of other parts, beside keys of the text model in a flat config
# what a text config may leave out, by its model_type; None where its class has no such key
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
CLASS_SIZES = {
    "cohere2": (256000, 8192, 22528, 40, 64),
    "gemma": (256000, 3072, 24576, 28, 16),
    "gemma2": (256000, 2304, 9216, 26, 8),
    "gemma3_text": (262208, 2304, 9216, 26, 8),
    "git": (30522, 768, 3072, 6, 12),
    "llama4_text": (202048, 5120, 8192, 48, 40),
    "llama": (32000, 4096, 11008, 32, 32),
    "mistral": (32000, 4096, 14336, 32, 32),
    "mllama_text_model": (128256, 4096, 14336, 40, 32),
    "persimmon": (262144, 4096, 16384, 36, 64),
    "phi4_multimodal": (200064, 3072, 8192, 32, 32),
    "qwen2": (151936, 4096, 22016, 32, 32),
    "qwen2_5_vl_text": (152064, 8192, 29568, 80, 64),
    "qwen2_vl_text": (152064, 8192, 29568, 80, 64),
    "qwen3": (151936, 4096, 22016, 32, 32),
    "qwen3_5_moe_text": (248320, 2048, None, 40, 16),
    "qwen3_5_text": (248320, 4096, 12288, 32, 16),
    "qwen3_vl_text": (151936, 4096, 22016, 32, 32),
}


@dataclass(frozen=True)
class Wrapper:
    """A kind of model around a text model.

    model_type: in config.json.
    text_type: the text model's, where its config states none.
    text, head: prefixes of the text model's tensors, in place of its own `model.` and `lm_head.`.
    inputs: the weights that write into the residual stream, or whose size is that of the stream. A space that is no
        axis stands for a dimension that stays, `{index}` in a name for any number.
    passes: prefixes of the tensors that pass through unchanged, where they are not among `inputs`.
    older: prefixes of tensor names, and what older files have in their place.
    sizes: keys of config.json outside the text config, as dotted paths, and the key of the text config that they equal.
    tied: tie_word_embeddings of the whole where config.json does not state it.
    tied_by_text: whether true in the text config ties the head, too.
    leading: the key of a list, as a dotted path, with one entry for each of the text model's leading layers
        (`Architecture.leading`), and the number of these where the config does not state it.
    flat: whether older config.json files have the text model's keys at top level.
    tables: tables of text models that have no causal language model of their own, by model_type.
    """

    model_type: str
    text_type: str
    text: str
    inputs: tuple[Weight, ...]
    passes: tuple[str, ...]
    head: str = "lm_head."
    older: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, str] = field(default_factory=dict)
    tied: bool = False
    tied_by_text: bool = False
    leading: tuple[str, int] | None = None
    flat: bool = False
    tables: Mapping[str, Family] = field(default_factory=dict)

    def __call__(self, config: Config) -> Architecture:
        """Return the table of a config.json of this kind."""
        return Outer(self, config).family(self.text_config(config))

    def text_config(self, config: Config) -> dict[str, Any]:
        """Return the text model's config on its own, with every key that its table needs.

        Raises:
            ConfigError: there is none, it is of a family that cannot grow, or what is around it is stated as no object.
        """
        for part in PARTS:
            if not isinstance(config.get(part) or {}, Mapping):
                raise ConfigError(f"config.json has {part} = {config[part]!r}; an object is needed. Restore it.")
        stated = self.stated_text(config)
        model_type = self.text_type if stated.get("model_type") is None else stated["model_type"]
        if not isinstance(model_type, str):
            raise ConfigError(f"config.json has {TEXT}.model_type = {model_type!r}; text is needed. Restore it.")
        model_type = self.text_type if model_type == self.model_type else model_type  # older files
        sizes = dict(zip(SIZES, CLASS_SIZES.get(model_type, ()), strict=False))
        sizes = {key: value for key, value in sizes.items() if value is not None}
        text = {**sizes, **current_keys({**stated, "model_type": model_type})}
        tied = flag(config, TIED, self.tied)
        if self.tied_by_text and not tied:
            tables = (self.table(model_type)(one) for one in (text, {**text, TIED: False}))
            with_head, without = (len(table.weights) for table in tables)
            tied = with_head < without
        return {**text, TIED: tied}

    def stated_text(self, config: Config) -> Config:
        """Return the text model's config as config.json states it."""
        nested = config.get(TEXT)
        if isinstance(nested, Mapping):
            return nested
        if nested is None and self.flat:
            return {key: value for key, value in config.items() if key not in ("model_type", "architectures", *PARTS)}
        raise ConfigError(
            f"config.json has model_type {self.model_type!r} and {TEXT} = {nested!r}; an object is needed. Restore it."
        )

    def table(self, model_type: str) -> Family:
        """Return the function that makes the table of a text model.

        Raises:
            ConfigError: of a family that cannot grow.
        """
        found = self.tables.get(model_type) or find_family(model_type)
        if found is None or isinstance(found, Wrapper):
            raise ConfigError(
                f"config.json has model_type {self.model_type!r} and in it a text model of type {model_type!r}. Text "
                f"models that can grow: {', '.join(sorted(FAMILIES))}."
            )
        return found


@dataclass(frozen=True)
class Outer:
    """What is around the text model of one config.json.

    config: the whole config.json.
    """

    wrapper: Wrapper
    config: Config

    def family(self, text: Config) -> Architecture:
        """Return the table of the text model of a config, with the names that its tensors have in the whole."""
        built = self.wrapper.table(str(text["model_type"]))(text)
        prefixes = {"model.": self.wrapper.text, "lm_head.": self.wrapper.head}
        weights = built.weights
        for ours, theirs in prefixes.items():
            weights = tuple(renamed(weight, ours, theirs) for weight in weights)
        spaces = {**built.spaces, "activated": ("residual", "activated")}
        return replace(
            built,
            weights=weights,
            spaces=spaces,
            other_names=self.wrapper.older,
            leading=min(self._leading, built.depth),
            outer=self,
        )

    @property
    def _leading(self) -> int:
        """The number of layers behind which something is added to the stream."""
        if self.wrapper.leading is None:
            return 0
        path, default = self.wrapper.leading
        found: Any = self.config
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        return len(found) if isinstance(found, list) else default

    def whole(self, text: Config) -> dict[str, Any]:
        """Return the config.json in which the text model has another config."""
        before, stated = self.wrapper.text_config(self.config), self.wrapper.stated_text(self.config)
        changed = {key for key, value in text.items() if before.get(key, _ABSENT) != value}
        own = {key: text[key] for key in text if key in stated or key in changed}
        own = {key: value if key in changed else stated.get(key, value) for key, value in own.items()}
        whole = dict(self.config)
        if isinstance(self.config.get(TEXT), Mapping):
            whole[TEXT] = own
        else:
            whole = {key: value for key, value in whole.items() if key not in stated} | own
        if TIED in changed:
            whole[TIED] = text[TIED]
        for path, key in self.wrapper.sizes.items():
            if key in changed:
                _set(whole, path.split("."), text[key])
        return {key: value for key, value in whole.items() if key != "auto_map"}

    @property
    def rest(self) -> dict[str, Any]:
        """The config.json without the text model, and without what follows from it or does not matter."""
        rest = {**self.config, **{part: dict(self.config[part]) for part in PARTS if self.config.get(part)}}
        for path in self.wrapper.sizes:
            _set(rest, path.split("."), None)
        flat = self.wrapper.stated_text(self.config) if self.config.get(TEXT) is None else {}
        return {key: value for key, value in rest.items() if key not in {*flat, *NEUTRAL, TEXT, TIED}}

    def bound(self, table: Architecture, tensors: Mapping[str, Any]) -> Architecture:
        """Return a table with the tensors around the text model that a checkpoint holds.

        tensors: by name, each with its shape.
        """
        prefixes = {ours: table.prefix_in(tensors, ours) for ours in self.wrapper.passes}
        text = tuple(one for one in table.weights if not one.name.startswith(tuple(prefixes.values())))
        found = tuple(
            self._weight(name, ours + name.removeprefix(theirs), tensors[name].shape, table)
            for name in tensors
            for ours, theirs in prefixes.items()
            if name.startswith(theirs)
        )
        return replace(table, weights=(*text, *found))

    def _weight(self, name: str, ours: str, shape: tuple[int, ...], table: Architecture) -> Weight:
        """Return the weight of a tensor around the text model: one of the inputs, or one that passes through.

        ours: its name in current files.
        """
        for entry in self.wrapper.inputs:
            if re.fullmatch(re.escape(entry.name).replace(r"\{index\}", r"\d+"), ours):
                known = {*table.axes, *table.spaces}
                stored = zip(entry.parts[0].pattern.split(), shape, strict=False)
                pattern = " ".join(space if space in known else str(size) for space, size in stored)
                return replace(entry, name=name, parts=(WeightPart(pattern, entry.parts[0].reads),))
        return weight(name, " ".join(map(str, shape)))

    def missing(self, table: Architecture) -> list[str]:
        """Return the matrices that write into the residual stream and that a table with bound tensors lacks."""
        names = {one.name for one in table.weights}
        needed = [one.name for one in self.wrapper.inputs if one.name.endswith("weight") and "{" not in one.name]
        return [name for name in needed if names.isdisjoint(self._spellings(name))]

    def stand_ins(self, table: Architecture) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the matrices that write into the stream, where no checkpoint is there to state them."""
        known = {*table.axes, *table.spaces}
        patterns = {one.name: one.parts[0].pattern.split() for one in self.wrapper.inputs}
        return {
            name.replace("{index}", "0"): tuple(table.length((space,)) if space in known else 1 for space in pattern)
            for name, pattern in patterns.items()
        }

    def passing(self, table: Architecture) -> dict[str, int]:
        """Return how many tensors of a table with bound tensors pass through unchanged, by their prefix."""
        names = [one.name for one in table.weights if one.passes]
        prefixes = [prefix for ours in self.wrapper.passes for prefix in sorted(self._spellings(ours))]
        counts = {prefix.rstrip("."): sum(name.startswith(prefix) for name in names) for prefix in prefixes}
        return {prefix: count for prefix, count in counts.items() if count}

    def _spellings(self, name: str) -> set[str]:
        """A name of current files, and what older ones have in its place."""
        older = self.wrapper.older.items()
        return {name} | {theirs + name.removeprefix(ours) for ours, theirs in older if name.startswith(ours)}


_ABSENT = object()


def _set(config: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a value at a path of keys, in copies of the objects on the way."""
    key, *inner = path
    if inner:
        config[key] = dict(config.get(key) or {})
        _set(config[key], inner, value)
    else:
        config[key] = value
