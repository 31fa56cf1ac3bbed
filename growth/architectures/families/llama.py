"""Llama and the families that differ from it in a few weights, defaults or names.

RMSNorm in front of attention and MLP, gated MLP, grouped-query attention, RoPE on the whole head.
"""

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import (
    Attention,
    Norms,
    attention_bias,
    check_square,
    gated_mlp,
    layer_types,
    optional_head_dim,
)
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import decoder
from growth.architectures.rotary import with_default_rope
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


@family
def hyperclovax(config: Config) -> Architecture:
    """Return the table of a HyperCLOVA X: a Granite with norms behind its branches, too (use_post_norm)."""
    check_whole_heads(config, "HyperCLOVA X")
    behind = flag(config, "use_post_norm", True)
    return decoder(
        config,
        Attention(bias=attention_bias(config), scaled=config.get("attention_multiplier") is None),
        gated_mlp(bias=flag(config, "mlp_bias", False)),
        Norms(after=("post_norm1", "post_norm2") if behind else ()),
    )


@family
def internlm3(config: Config) -> Architecture:
    """Return the table of an InternLM3, which runs as a Llama and has one flag for all biases.

    Raises:
        ConfigError: the two names of that flag disagree.
    """
    bias = flag(config, "attention_bias", False)
    if flag(config, "mlp_bias", False) != bias:
        raise ConfigError(
            f"config.json has attention_bias (qkv_bias) = {bias} and mlp_bias (bias) = {not bias}, and InternLM3's "
            "class needs the same. Correct one of the two."
        )
    return _llama_of(config, "InternLM3", kv_heads=2)


@family
def iquestcoder(config: Config) -> Architecture:
    """Return the table of an IQuest-Coder, which runs as a Llama.

    Raises:
        ConfigError: it clips its queries or has windows, which its class refuses.
    """
    if config.get("clip_qkv") is not None or flag(config, "use_sliding_window", False):
        raise ConfigError(
            "config.json has clip_qkv or use_sliding_window, which IQuest-Coder's class refuses. Remove them."
        )
    return _llama_of(config, "IQuest-Coder", kv_heads=8)


def _llama_of(config: Config, name: str, kv_heads: int) -> Architecture:
    """Return the table of a family that runs as a Llama, with defaults of its own."""
    check_whole_heads(config, name)
    return decoder(
        config,
        Attention(bias=attention_bias(config)),
        gated_mlp(bias=flag(config, "mlp_bias", False)),
        Norms(eps_default=1e-5),
        defaults={"heads": kv_heads, "head_dim": optional_head_dim(config, 128)},
    )


@family
def seed_oss(config: Config) -> Architecture:
    """Return the table of a Seed-OSS: a flag of its own for the bias of the output projection."""
    bias = flag(config, "attention_bias", True), flag(config, "attention_out_bias", False)
    return decoder(
        config,
        Attention(bias=bias),
        gated_mlp(bias=flag(config, "mlp_bias", False)),
        defaults={"heads": 8, "head_dim": optional_head_dim(config, 128)},
    )


@family
def ernie4_5(config: Config) -> Architecture:
    """Return the table of an ERNIE 4.5: one flag for all biases, rotary pairs of neighbours."""
    bias = flag(config, "use_bias", False)
    return decoder(
        config,
        Attention(bias=(bias, bias)),
        gated_mlp(bias=bias),
        Norms(eps_default=1e-5),
        default_tied=True,
        defaults={"heads": 2, "head_dim": optional_head_dim(config, 128)},
        bases=(("", "rope_theta", 5e5),),
        pairs="neighbours",
    )


@family
def helium(config: Config) -> Architecture:
    """Return the table of a Helium: rotary pairs of neighbours, an output projection of as many channels as it has."""
    check_square({**config, "head_dim": size(config, "head_dim", 128)}, "Helium projects")
    return decoder(
        config,
        Attention(bias=(flag(config, "attention_bias", False), False)),
        gated_mlp(bias=flag(config, "mlp_bias", False)),
        Norms(eps_default=1e-8),
        defaults={"heads": 20, "head_dim": 128},
        bases=(("", "rope_theta", 1e5),),
        pairs="neighbours",
    )


@family
def hunyuan_v1_dense(config: Config) -> Architecture:
    """Return the table of a HunYuan: a norm on each head's queries and keys after RoPE, which keeps their energy."""
    return decoder(
        config,
        Attention(bias=attention_bias(config), qk_norm="shared", qk_norm_names=("query_layernorm", "key_layernorm")),
        norms=Norms(eps_default=1e-5),
        defaults={"head_dim": size(config, "head_dim")},
    )


@family
def cwm(config: Config) -> Architecture:
    """Return the table of a CWM: all layers but every fourth, from the first, have a sliding window."""
    check_whole_heads(config, "CWM")
    config = with_default_rope(
        config,
        rope_type="llama3",
        rope_theta=1e6,
        factor=16.0,
        high_freq_factor=4.0,
        low_freq_factor=1.0,
        original_max_position_embeddings=8192,
    )
    return decoder(
        config,
        mlp=gated_mlp(bias=flag(config, "mlp_bias", False)),
        norms=Norms(eps_default=1e-5),
        defaults={"heads": 8, "head_dim": optional_head_dim(config, 128)},
        bases=(("", "rope_theta", 1e6),),
        layer_types=layer_types(config, lambda layer: layer % 4 != 0),
    )


@family
def ministral3(config: Config) -> Architecture:
    """Return the table of a Ministral 3: queries grow with the logarithm of their position, at any width."""
    config = with_default_rope(
        config,
        type="yarn",
        rope_type="yarn",
        rope_theta=1e6,
        factor=16.0,
        original_max_position_embeddings=16384,
        max_position_embeddings=size(config, "max_position_embeddings", 262144),
        beta_fast=32.0,
        beta_slow=1.0,
        mscale_all_dim=1.0,
        mscale=1.0,
        llama_4_scaling_beta=0.1,
    )
    return decoder(
        config,
        norms=Norms(eps_default=1e-5),
        defaults={"heads": 8, "head_dim": optional_head_dim(config, 128)},
        bases=(("", "rope_theta", 1e4),),
    )


def windowed_layers(config: Config) -> list[str]:
    """Return Qwen's layer_types as stated, or sliding attention from layer max_window_layers on, if configured."""

    def has_window(layer: int) -> bool:
        sliding = flag(config, "use_sliding_window", False) and config.get("sliding_window", 4096) is not None
        return sliding and layer >= size(config, "max_window_layers", 28, least=0)

    return layer_types(config, has_window)
