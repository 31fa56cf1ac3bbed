"""Llama and the families that differ from it in a few weights: mistral, ministral, qwen2, qwen3, granite.

RMSNorm in front of attention and MLP, gated MLP, grouped-query attention, RoPE on the whole head.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from growth.architectures.base import Architecture, Axis, Weight, family, weight
from growth.architectures.blocks import (
    BASE,
    LAYER,
    SIZES,
    WHOLE_ROPE,
    Norms,
    attention,
    attention_bias,
    axes_by_name,
    gated_mlp,
    grouped_heads,
    head_spaces,
    implied_head_dim,
    lm_head,
)
from growth.architectures.config import Config, flag, of_layers, size
from growth.architectures.rotary import rope_types
from growth.errors import ConfigError


@family
def llama(config: Config) -> Architecture:
    """Return the table of a Llama, TinyLlama or SmolLM."""
    check_whole_heads(config, "Llama")
    return decoder(config, bias=attention_bias(config), mlp_bias=flag(config, "mlp_bias", False), bases=BASE)


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
    return decoder(config, default_kv=8, bases=BASE)


@family
def ministral(config: Config) -> Architecture:
    """Return the table of a Ministral: each layer with or without a sliding window."""
    depth = size(config, "num_hidden_layers")
    kind = "full_attention" if config.get("sliding_window") is None else "sliding_attention"
    layer_types = of_layers(config, "layer_types") or [kind] * depth
    return decoder(config, default_kv=8, layer_types=layer_types, bases=BASE)


@family
def qwen2(config: Config) -> Architecture:
    """Return the table of a Qwen2 or Qwen2.5: biases on queries, keys and values."""
    layer_types = windowed_layers(config)
    return decoder(config, bias=(True, False), default_kv=32, layer_types=layer_types, bases=BASE)


@family
def qwen3(config: Config) -> Architecture:
    """Return the table of a Qwen3: a norm on each head's queries and keys."""
    return decoder(
        config,
        bias=attention_bias(config),
        default_kv=32,
        default_head_dim=128,
        qk_norm=True,
        layer_types=windowed_layers(config),
        bases=BASE,
    )


@family
def granite(config: Config) -> Architecture:
    """Return the table of a Granite: its multipliers are numbers of the config, which no width changes."""
    mlp_bias = flag(config, "mlp_bias", False)
    return decoder(config, bias=attention_bias(config), mlp_bias=mlp_bias, scaled=False, bases=BASE)


def windowed_layers(config: Config) -> list[str]:
    """Return Qwen's layer_types as stated, or sliding attention from layer max_window_layers on, if configured."""
    stated = of_layers(config, "layer_types")
    if stated is not None:
        return stated
    depth = size(config, "num_hidden_layers")
    sliding = flag(config, "use_sliding_window", False) and config.get("sliding_window", 4096) is not None
    first = size(config, "max_window_layers", 28, least=0) if sliding else depth
    return ["sliding_attention" if layer >= first else "full_attention" for layer in range(depth)]


UNTRAINED = (
    "one norm runs over all heads, so fresh queries and keys must be zero in front of it, and where both are zero "
    "neither ever has a gradient."
)
UNTRAINED_CHANNELS = (
    "an RMSNorm runs over the channels of a head, so fresh channels of queries and keys must be zero in front of it, "
    "and where both are zero neither ever has a gradient."
)


def decoder(
    config: Config,
    *,
    bias: tuple[bool, bool] = (False, False),
    mlp_bias: bool = False,
    default_kv: int | None = None,
    default_head_dim: int | None = None,
    default_tied: bool = False,
    head_dim: int | None = None,
    rotary: int | None = None,
    bases: tuple[tuple[str, str, float], ...] = (),
    qk_norm: bool = False,
    qk_norm_across: bool = False,
    qk_norm_names: tuple[str, str] = ("q_norm", "k_norm"),
    own_gains: bool = False,
    scaled: bool = True,
    embedding: str = "residual",
    norms: Norms = Norms(),  # noqa: B008 (frozen)
    fused_qkv: str | None = None,
    fused_mlp: str | None = None,
    layer_types: Sequence[str] | None = None,
    mlp: tuple[Weight, ...] | None = None,
    axes: tuple[Axis, ...] = (),
    sizes: Mapping[str, str] = SIZES,
) -> Architecture:
    """Return the table of a decoder-only model like Llama.

    bias: whether q, k, v have one; whether the attention's output has one.
    default_kv, default_head_dim, default_tied: num_key_value_heads, head_dim and tie_word_embeddings if the config
        does not state them.
    head_dim: if the family computes it in its own way.
    rotary: number of leading rotary channels of a head, if RoPE may cover only a part of it.
    bases: of the rotary embedding, as in `Architecture`; without them, a head that RoPE covers cannot widen.
    qk_norm: a norm over each head's queries and keys, or with `qk_norm_across` over those of all heads together.
    own_gains: each head has its own gain in that norm.
    scaled: the softmax scale is head_dim ** -0.5.
    embedding: the space that the embedding writes: the residual stream, or the stream before a scale.
    fused_qkv, fused_mlp: names of the weights that hold q, k and v; gate and up.
    mlp, axes, sizes: instead of a gated MLP with its ffn: the weights, their axes, and all config keys.
    """
    heads, queries = grouped_heads(config, default_kv)
    if head_dim is None:
        head_dim = size(config, "head_dim", default_head_dim) if default_head_dim else implied_head_dim(config)
    tied = flag(config, "tie_word_embeddings", default_tied)
    across: Literal["rms"] | None = "rms" if qk_norm_across else None
    untrained = UNTRAINED if qk_norm_across else ""
    attended = attention(
        f"{LAYER}.self_attn",
        bias=bias,
        qk_norm=qk_norm,
        qk_norm_offset=norms.offset,
        qk_norm_across=qk_norm_across,
        own_gains=own_gains,
        norm_names=qk_norm_names,
        fused=fused_qkv,
        into=norms.into,
        out=norms.out,
        branch_end=not norms.after,
    )
    if mlp is None:
        mlp = gated_mlp(
            f"{LAYER}.mlp", bias=mlp_bias, fused=fused_mlp, into=norms.into, out=norms.out, branch_end=not norms.after
        )
    whole_rope = rotary is None
    channels = Axis(
        "head_dim",
        head_dim,
        norm=norms.kind if qk_norm else None,
        uncopyable=head_dim if rotary is None else rotary,
        rotary_pairs=whole_rope,
        refusal="" if not whole_rope else rope_refusal(config) if bases else WHOLE_ROPE,
        untrained=untrained or (UNTRAINED_CHANNELS if qk_norm and norms.kind == "rms" else ""),
    )
    return Architecture(
        config=config,
        axes=axes_by_name(
            Axis("residual", size(config, "hidden_size"), norm=norms.kind),
            *(axes or (Axis("ffn", size(config, "intermediate_size")),)),
            Axis("heads", heads, norm=across, untrained=untrained),
            Axis("queries", queries, norm=across, untrained=untrained),
            channels,
            Axis("vocab", size(config, "vocab_size"), external=True),
        ),
        depth=size(config, "num_hidden_layers"),
        weights=(
            weight("model.embed_tokens.weight", f"vocab {embedding}"),
            *norms.around(LAYER, 0, attended),
            *norms.around(LAYER, 1, mlp),
            *norms.weights("model.norm", "residual", "head_input"),
            *lm_head(tied),
        ),
        spaces={
            "normed": ("residual", "normed" if norms.gain else "norm_without_gain"),
            "branch": ("residual",),
            "before_embed_scale": ("residual", "before_embed_scale"),
            "head_input": ("residual", *predicted(norms, embedding, tied)),
            **head_spaces(qk_norm=qk_norm, across=qk_norm_across, scaled=scaled),
        },
        sizes=sizes,
        layer_lists={} if layer_types is None else {"layer_types": layer_types},
        norms=(("heads", "head_dim"), ("queries", "heads", "head_dim")) if qk_norm_across else (),
        eps=norms.eps,
        eps_default=norms.eps_default,
        rotary=rotary or None,
        bases=bases if whole_rope else (),
    )


def rope_refusal(config: Config) -> str:
    """Return why head_dim cannot grow by another rotary base, or an empty string if it can."""
    unknown = rope_types(config) - {"default", "linear", "llama3"}
    if unknown:
        return (
            f"RoPE covers the whole head here, and with '{', '.join(sorted(unknown))}' frequencies no other base adds "
            "channels without changing the old ones. Widen heads instead."
        )
    if config.get("clip_qkv") is not None:
        return (
            "the softmax scale would change, and clip_qkv bounds queries and keys, so that they cannot undo it. Widen "
            "heads instead."
        )
    return ""


def predicted(norms: Norms, embedding: str, tied: bool) -> tuple[str, ...]:
    """Return the views through which the head sees the residual stream."""
    if not norms.gain:
        return ("norm_without_gain",)
    if not tied:
        return ("normed",)
    return ("tied_head",) if embedding == "residual" else (embedding, "tied_head")
