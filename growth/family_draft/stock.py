"""The stock class of a model type at small sizes: its tensors, and how they answer to the keys of its config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.core_model_loading import revert_weight_conversion

from growth.architectures.config import DEPTHS, NEUTRAL
from growth.errors import ConfigError, did_you_mean

Shapes = Mapping[str, tuple[int, ...]]
TIED = "tie_word_embeddings"
NOT_OF_DECODERS = ("add_cross_attention", "is_decoder", "is_encoder_decoder")
# the names that config keys have in different families, by the axes whose product they are
NAMES = {
    "residual": ("hidden_size", "n_embd", "d_model"),
    "heads queries": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "heads": ("num_key_value_heads", "num_kv_heads"),
    "head_dim": ("head_dim",),
    "ffn": ("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "vocab": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions", "max_seq_len"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "depth": DEPTHS,
}
# 4 heads of 24 channels are not as many as the stream has, so that shapes tell them apart
SMALL = {"residual": 64, "heads queries": 4, "heads": 2, "head_dim": 24, "ffn": 40, "vocab": 61, "positions": 48}
SMALL |= {"experts": 6, "depth": 4}
PROBES = {"residual": 128, "heads queries": 8, "heads": 4, "head_dim": 32, "ffn": 44, "vocab": 67, "positions": 52}
PROBES |= {"experts": 8}
# sizes at which defaults show: no KV heads, head_dim or pattern of layers is the default of a class by chance, and most
# defaults divide what they have to
WIDE = {"residual": 3840, "heads queries": 96, "heads": 48, "head_dim": 48, "ffn": 96, "experts": 96, "depth": 48}
SQUARE = {**SMALL, "head_dim": 16}
# numbers of a default config that small sizes do not allow
SETTINGS = {"rotary_dim": 8, "num_experts_per_tok": 2, "moe_topk": 2, "n_group": 1, "topk_group": 1}


@dataclass(frozen=True)
class StockClass:
    """The classes of a model type in transformers, with the settings of a config that this draft is made for.

    settings: values of config keys besides the sizes.
    sizes: by axes, as in `NAMES`.
    idle: keys of the config that are listed there, and change no tensor.
    """

    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=lambda: SMALL)
    idle: frozenset[str] = frozenset()

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The content of a config that states nothing.

        Raises:
            ConfigError: transformers has no causal model of this type.
        """
        known = self.model_type in CONFIG_MAPPING
        if not known or CONFIG_MAPPING[self.model_type] not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ConfigError(
                f"transformers has no causal language model of model_type {self.model_type!r}."
                f"{did_you_mean(self.model_type, CONFIG_MAPPING)} If it is private, name the module that registers it: "
                "--import MODULE."
            )
        try:
            return dict(CONFIG_MAPPING[self.model_type]().to_dict())
        except Exception:  # a class may need sizes
            return dict(self.config().to_dict())

    @cached_property
    def answers(self) -> dict[str, list[set[str]]]:
        """For each dimension of each tensor, the axes whose config key changes it."""
        small = self.shapes()
        found: dict[str, list[set[str]]] = {name: [set() for _ in shape] for name, shape in small.items()}
        for axes, size in PROBES.items():
            if axes in self.keys or (axes == "head_dim" and self.states_head_dim):
                larger = self.shapes(**{axes: size})
                for name, shape in small.items():
                    changed = (old != new for old, new in zip(shape, larger[name], strict=True))
                    for axes_of, differs in zip(found[name], changed, strict=True):
                        axes_of |= {axes} if differs else set()
        return found

    @property
    def is_square(self) -> bool:
        """Whether its heads have as many channels together as the stream."""
        return self.sizes is not SMALL

    @cached_property
    def keys(self) -> dict[str, str]:
        """The config's own keys of sizes, by axes."""
        known: Any = CONFIG_MAPPING[self.model_type]
        try:
            names = known().to_dict().keys()
        except Exception:  # a class may need sizes
            names = known.__dataclass_fields__.keys()
        found = {axes: [key for key in keys if key in {*names} - self.idle] for axes, keys in NAMES.items()}
        return {axes: keys[0] for axes, keys in found.items() if keys}

    def stated(self, **sizes: int) -> dict[str, Any]:
        """What a config of some sizes, by axes, states; the others are small."""
        chosen = {**self.sizes, **sizes}
        named = {"head_dim": "head_dim", **self.keys}
        stated = {key: chosen[axes] for axes, key in named.items() if chosen.get(axes)}
        tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
        return {**tokens, **stated, **deepcopy(dict(self.settings))}

    def config(self, **sizes: int) -> PreTrainedConfig:
        """The config of some sizes, by axes; the others are small."""
        return CONFIG_MAPPING[self.model_type](**self.stated(**sizes))

    def filled(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The content of a config as the class fills it in."""
        known = {key: value for key, value in config.items() if key != "model_type"}
        return dict(CONFIG_MAPPING[self.model_type](**deepcopy(known)).to_dict())

    def taken_for(self, key: str, sizes: Mapping[str, int]) -> Any:
        """What the class takes for a key that a config of some sizes leaves out; None if it has no such config."""
        stated = {name: value for name, value in self.stated(**sizes).items() if name != key}
        with suppress(Exception):  # classes raise many kinds of error
            return self.filled(stated).get(key)

    def model(self, device: str, **sizes: int) -> PreTrainedModel:
        """The model of some sizes.

        Raises:
            ConfigError: transformers cannot build it.
        """
        try:
            with torch.device(device):
                return AutoModelForCausalLM.from_config(
                    self.config(**sizes),
                    attn_implementation="eager",
                    experts_implementation="eager",
                    trust_remote_code=False,
                ).eval()
        except Exception as error:  # classes raise many kinds of error
            raise ConfigError(
                f"transformers cannot build a small {self.model_type}: {error}. State what it needs: --set KEY=VALUE."
            ) from error

    def shapes(self, **sizes: int) -> Shapes:
        """The tensors that files of the model hold, on the meta device."""
        model = self.model("meta", **sizes)
        tied = getattr(model, "all_tied_weights_keys", {})
        named = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
        return {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, named).items()}

    def with_settings(self, **settings: Any) -> StockClass:
        """The same class with more settings."""
        return replace(self, settings={**self.settings, **settings})

    @cached_property
    def states_head_dim(self) -> bool:
        """Whether the class reads a head_dim from the config, whatever the stream's size."""
        try:
            return self.shapes(head_dim=16) != self.shapes(head_dim=24)
        except ConfigError:
            return False

    def runs(self, **sizes: int) -> bool:
        """Whether the forward of a model of some sizes works."""
        try:
            with torch.no_grad():
                self.model("cpu", **sizes)(torch.zeros((1, 4), dtype=torch.long))
        except (RuntimeError, ConfigError):
            return False
        return True

    @classmethod
    def of(cls, model_type: str, **settings: Any) -> StockClass:
        """The class of a model type with the tensors of every flag that only adds some, and heads that run.

        Raises:
            ConfigError: transformers has no causal model of this type, or its config names no sizes of a decoder.
        """
        plain = cls(model_type)
        needed = ("residual", "heads queries", "ffn", "vocab", "depth")
        missing = [axes for axes in needed if axes not in plain.keys] if plain.defaults else []
        if missing:
            raise ConfigError(
                f"The config of {model_type} has none of the keys {', '.join(NAMES[missing[0]])}: it is no decoder of "
                "attention and MLP, or calls its sizes otherwise. Write its table by hand (docs/add-a-family.md)."
            )
        plain = cls(model_type, {key: value for key, value in SETTINGS.items() if key in plain.defaults} | settings)
        if not plain.states_head_dim:
            plain = replace(plain, sizes={**SQUARE, "head_dim": 0})
        more = {
            key: on for key, (_, on, names) in plain.flags.items() if names and key not in (*NOT_OF_DECODERS, *settings)
        }
        if not any(".experts." in name for name in plain.shapes()):
            plain = replace(plain, idle=frozenset(NAMES["experts"]) | {"moe_intermediate_size"})
        full = plain.with_settings(**more)
        return full if not full.states_head_dim or full.runs() else replace(full, sizes=SQUARE)

    def variants(self) -> Iterator[tuple[str, StockClass]]:
        """The same class with one boolean of its config set to the other value, each, and `KEY=VALUE`."""
        for key, default in self.defaults.items():
            if type(default) is bool and key not in (*NEUTRAL, *NOT_OF_DECODERS):
                other = not self.settings.get(key, default)
                yield f"{key}={str(other).lower()}", self.with_settings(**{key: other})

    @cached_property
    def flags(self) -> dict[str, tuple[bool, bool, frozenset[str]]]:
        """By config key of a boolean: its default, the value with which the model has more tensors, and these.

        None are listed where each of its values has tensors that the other lacks.
        """
        found = {}
        for key, value in self.defaults.items():
            if type(value) is bool:
                try:
                    off, on = (self.with_settings(**{key: choice}).shapes().keys() for choice in (False, True))
                except ConfigError:
                    continue
                if off != on:
                    more = on > off
                    found[key] = value, more, frozenset(off ^ on if more or off > on else ())
        return found
