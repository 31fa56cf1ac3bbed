"""Llama and the families that differ from it in a few weights: mistral, ministral, qwen2, qwen3, granite.

RMSNorm in front of attention and MLP, gated MLP, grouped-query attention, RoPE on the whole head.
"""

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Attention, attention_bias, gated_mlp, layer_types
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import decoder
from growth.errors import ConfigError


@family
def llama(config: Config) -> Architecture:
    """Return the table of a Llama, TinyLlama or SmolLM."""
    check_whole_heads(config, "Llama")
    return decoder(config, Attention(bias=attention_bias(config)), gated_mlp(bias=flag(config, "mlp_bias", False)))


def check_whole_heads(config: Config, name: str) -> None:
    """Check what the config class checks.

    Raises:
        ConfigError: hidden_size is not a multiple of the number of heads.
    """
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    if hidden % heads:
        raise ConfigError(
            f"{name}'s config needs hidden_size to be a multiple of num_attention_heads, and {hidden} is not a "
            f"multiple of {heads}. Choose residual and heads so that it is."
        )


@family
def mistral(config: Config) -> Architecture:
    """Return the table of a Mistral."""
    return decoder(config, defaults={"heads": 8})


@family
def ministral(config: Config) -> Architecture:
    """Return the table of a Ministral: each layer with or without a sliding window."""
    has_window = config.get("sliding_window", 4096) is not None
    kinds = layer_types(config, lambda layer: has_window)
    return decoder(config, defaults={"heads": 8}, layer_types=kinds)


@family
def qwen2(config: Config) -> Architecture:
    """Return the table of a Qwen2 or Qwen2.5: biases on queries, keys and values."""
    attention = Attention(bias=(True, False))
    return decoder(config, attention, defaults={"heads": 32}, layer_types=windowed_layers(config))


@family
def qwen3(config: Config) -> Architecture:
    """Return the table of a Qwen3: a norm on each head's queries and keys."""
    return decoder(
        config,
        Attention(bias=attention_bias(config), qk_norm="shared"),
        defaults={"heads": 32, "head_dim": 128},
        layer_types=windowed_layers(config),
    )


@family
def granite(config: Config) -> Architecture:
    """Return the table of a Granite: its multipliers are numbers of the config, which no width changes."""
    attention = Attention(bias=attention_bias(config), scaled=False)
    return decoder(config, attention, gated_mlp(bias=flag(config, "mlp_bias", False)))


def windowed_layers(config: Config) -> list[str]:
    """Return Qwen's layer_types as stated, or sliding attention from layer max_window_layers on, if configured."""

    def has_window(layer: int) -> bool:
        sliding = flag(config, "use_sliding_window", False) and config.get("sliding_window", 4096) is not None
        return sliding and layer >= size(config, "max_window_layers", 28, least=0)

    return layer_types(config, has_window)
