"""Typed values of config.json: sizes, numbers, flags and lists, or an error that names the key and its value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from growth.errors import ConfigError

Config = Mapping[str, Any]
LARGEST_SIZE = 2**31
LARGEST_DEPTH = 2048  # layers; the deepest published transformer has 1,000 (DeepNet, Wang et al. 2022)
LARGEST_AXIS = 2**21  # units; the largest vocabularies have some 2**18, and each unit takes 24 bytes and more
LARGEST_TABLE = 2**18  # tensors; DeepSeek-V3 has some 92,000
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

# config keys that mean the same in different families
SYNONYMS = (
    ("hidden_size", "n_embd", "n_embed", "d_model"),
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"),
    ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
)

# config keys that do not change what a model computes
NEUTRAL = (
    "architectures", "auto_map", "model_type", "transformers_version", "_name_or_path", "dtype", "torch_dtype",
    "use_cache", "initializer_range", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
    "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout", "id2label", "label2id",
    "output_attentions", "output_hidden_states", "return_dict", "is_encoder_decoder", "problem_type",
    "chunk_size_feed_forward", "router_aux_loss_coef", "output_router_logits", "classifier_dropout",
    "cache_implementation", "pretraining_tp", "task_specific_params", "tokenizer_class", "summary_type",
    "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
    "quantization_config", "compression_config",
)  # fmt: skip
DROPOUT = ("dropout", "_pdrop", "layerdrop")  # endings of keys that only training reads
UNSAID = "the family's default"  # stands for the value of a key that a config leaves out


def shown(value: Any) -> str:
    """Return the value of a config key for a message.

    >>> shown("silu"), shown(UNSAID)
    ("'silu'", "the family's default")
    """
    return UNSAID if value is UNSAID else repr(value)


class TrackedConfig(dict[str, Any]):
    """A config that records which of its keys have been read."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or the default."""
        self.asked.add(key)
        return super().get(key, default)


def size(config: Config, key: str, default: int | None = None, *, least: int = 1) -> int:
    """Return a whole number of a config, positive unless `least` is 0 or it counts layers: a model may have none.

    Raises:
        ConfigError: the key is missing and has no default, or its value is something else.
    """
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise ConfigError(f"config.json has no '{key}', which its family needs. {_remedy(config, key)}")
    least = 0 if key in DEPTHS else least
    if type(value) is not int or not least <= value < LARGEST_SIZE:
        needed = "above 0" if least else "of 0 or more"
        raise ConfigError(f"config.json has {key} = {value!r}; a whole number {needed} is needed.")
    if key in DEPTHS and value > LARGEST_DEPTH:
        raise ConfigError(f"config.json has {key} = {value:,}; at most {LARGEST_DEPTH:,} layers are supported.")
    return value


def _remedy(config: Config, key: str) -> str:
    """What to do about a missing key; another family's name of it may be there."""
    other = next((name for names in SYNONYMS if key in names for name in names if name in config), None)
    family = config.get("model_type")
    return f"It has {other}, which transformers does not read for a {family}: rename it." if other else "Restore it."


def number(config: Config, key: str, default: float) -> float:
    """Return a finite, non-negative number of a config.

    Raises:
        ConfigError: the value is something else.
    """
    value = config.get(key, default)
    try:
        converted = float(value) if type(value) in (int, float) else -1.0
    except OverflowError:  # of a whole number
        converted = math.inf
    if not 0 <= converted < math.inf:
        raise ConfigError(f"config.json has {key} = {value!r}; a number of 0 or more is needed.")
    return converted


def flag(config: Config, key: str, default: bool) -> bool:
    """Return a boolean of a config.

    Raises:
        ConfigError: the value is something else.
    """
    value = config.get(key, default)
    if type(value) is not bool:
        raise ConfigError(f"config.json has {key} = {value!r}; true or false is needed.")
    return value


def of_layers(config: Config, key: str, kinds: tuple[type, ...] = (str,), *, spare: bool = False) -> list[Any] | None:
    """Return a list of a config with one entry per layer; None if it is missing, null or empty.

    spare: whether more entries are allowed; they are dropped, as the stock class does.

    Raises:
        ConfigError: not a list, another length, or entries of other types than `kinds`.
    """
    values = config.get(key)
    if values is None or values == []:
        return None
    depth = size(config, next((name for name in DEPTHS if name in config), DEPTHS[0]))
    if not isinstance(values, list) or any(type(value) not in kinds for value in values):
        raise ConfigError(f"config.json has {key} = {values!r}; a list with one entry per layer is needed.")
    if len(values) < depth or (len(values) > depth and not spare):
        raise ConfigError(f"config.json lists {len(values):,} {key} for {depth} layers: correct one of the two.")
    return values[:depth]


def divide(config_key: str, total: int, by_key: str, by: int) -> int:
    """Return `total / by` of two config values.

    Raises:
        ConfigError: not a whole number.
    """
    if total % by:
        raise ConfigError(
            f"config.json has {config_key} = {total}, which is not a multiple of {by_key} = {by}. Correct one of the "
            "two."
        )
    return total // by
