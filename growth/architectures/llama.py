"""Llama and the families that differ from it in a few rows: mistral, ministral, qwen2, qwen3, granite.

RMSNorm before attention and MLP, gated MLP, grouped queries, rotary embedding on all channels of a head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from growth.architecture import Architecture, Axis, Config, Family, Weight, flag, linear, norm, size, weight
from growth.architectures.blocks import (
    LAYER,
    TURNS,
    attention,
    axes_by_name,
    gated_mlp,
    grouped_heads,
    head_spaces,
    implied_head_dim,
)
from growth.errors import ConfigError

SIZES = {
    "hidden_size": "residual",
    "intermediate_size": "ffn",
    "num_attention_heads": "heads queries",
    "num_key_value_heads": "heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab",
}


def llama(config: Config) -> Architecture:
    """The table of one Llama, TinyLlama, SmolLM, …"""
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    if hidden % heads:
        raise ConfigError(
            f"Llama's config needs hidden_size to be a multiple of num_attention_heads, and {hidden} is not one of "
            f"{heads}. Choose residual and heads so that it is."
        )
    attention_bias, mlp_bias = flag(config, "attention_bias", False), flag(config, "mlp_bias", False)
    return decoder(config, llama, bias=(attention_bias, attention_bias), mlp_bias=mlp_bias)


def mistral(config: Config) -> Architecture:
    """The table of one Mistral."""
    return decoder(config, mistral, default_kv=8)


def ministral(config: Config) -> Architecture:
    """The table of one Ministral: each layer with or without a sliding window."""
    depth = size(config, "num_hidden_layers")
    kind = "full_attention" if config.get("sliding_window") is None else "sliding_attention"
    return decoder(config, ministral, default_kv=8, layer_types=config.get("layer_types") or [kind] * depth)


def qwen2(config: Config) -> Architecture:
    """The table of one Qwen2 or Qwen2.5: biases on queries, keys and values."""
    return decoder(config, qwen2, bias=(True, False), default_kv=32, layer_types=windowed_layers(config))


def qwen3(config: Config) -> Architecture:
    """The table of one Qwen3: a norm on each head's queries and keys."""
    bias = flag(config, "attention_bias", False)
    layer_types = windowed_layers(config)
    return decoder(
        config,
        qwen3,
        bias=(bias, bias),
        default_kv=32,
        head_dim=size(config, "head_dim", 128),
        qk_norm=True,
        layer_types=layer_types,
    )


def granite(config: Config) -> Architecture:
    """The table of one Granite: its multipliers are numbers of the config, which no width changes."""
    attention_bias, mlp_bias = flag(config, "attention_bias", False), flag(config, "mlp_bias", False)
    return decoder(config, granite, bias=(attention_bias, attention_bias), mlp_bias=mlp_bias)


def windowed_layers(config: Config) -> list[str]:
    """Qwen's layer_types: stated, or sliding from layer max_window_layers on where the config says so."""
    if config.get("layer_types"):
        return list(config["layer_types"])
    depth = size(config, "num_hidden_layers")
    sliding = flag(config, "use_sliding_window", False) and config.get("sliding_window", 4096) is not None
    first = size(config, "max_window_layers", 28) if sliding else depth
    return ["sliding_attention" if layer >= first else "full_attention" for layer in range(depth)]


def decoder(
    config: Config,
    family: Family,
    *,
    bias: tuple[bool, bool] = (False, False),
    mlp_bias: bool = False,
    default_kv: int | None = None,
    default_tied: bool = False,
    default_eps: float = 1e-6,
    head_dim: int | None = None,
    rotary: int | None = None,
    qk_norm: bool = False,
    fused_qkv: str | None = None,
    fused_mlp: str | None = None,
    post_norms: tuple[str, str] | None = None,
    layer_types: Sequence[str] | None = None,
    mlp: tuple[Weight, ...] | None = None,
    axes: tuple[Axis, ...] = (),
    sizes: Mapping[str, str] = SIZES,
) -> Architecture:
    """A table of Llama's kind.

    bias: of q, k, v; of the attention's output.
    default_kv, default_tied, default_eps: what the config means where it does not state it.
    head_dim: where it is not hidden_size / num_attention_heads by default.
    rotary: how many leading channels of a head turn, where that need not be all of them.
    qk_norm: an RMSNorm over each head's queries and keys.
    fused_qkv, fused_mlp: names of the weights that hold q, k, v; gate and up.
    post_norms: names of the RMSNorms behind attention and MLP, where each branch ends in one.
    mlp, axes, sizes: in place of a gated MLP and its ffn: another table, its axes, and its config keys.
    """
    heads, queries = grouped_heads(config, default_kv)
    head_dim = head_dim or implied_head_dim(config)
    turns = Axis("head_dim", head_dim, norm="rms" if qk_norm else None, fixed=head_dim, refusal=TURNS)
    tied = flag(config, "tie_word_embeddings", default_tied)
    out = "branch" if post_norms else "residual"
    ends = tuple(
        norm(f"{LAYER}.{name}", "branch", "residual", bias=False, branch_end=True) for name in post_norms or ()
    )
    behind_attention, behind_mlp = ends or ((), ())
    return Architecture(
        model_type=str(config["model_type"]),
        family=family,
        config=config,
        axes=axes_by_name(
            Axis("residual", size(config, "hidden_size"), norm="rms"),
            *(axes or (Axis("ffn", size(config, "intermediate_size")),)),
            Axis("heads", heads),
            Axis("queries", queries),
            turns if rotary is None else replace(turns, fixed=rotary, refusal=""),
            Axis("vocab", size(config, "vocab_size"), outer=True),
        ),
        depth=size(config, "num_hidden_layers"),
        weights=(
            weight("model.embed_tokens.weight", "vocab residual"),
            *norm(f"{LAYER}.input_layernorm", "residual", "normed", bias=False),
            *attention(f"{LAYER}.self_attn", bias=bias, qk_norm=qk_norm, fused=fused_qkv, out=out, branch_end=not ends),
            *behind_attention,
            *norm(f"{LAYER}.post_attention_layernorm", "residual", "normed", bias=False),
            *(
                gated_mlp(f"{LAYER}.mlp", bias=mlp_bias, fused=fused_mlp, out=out, branch_end=not ends)
                if mlp is None
                else mlp
            ),
            *behind_mlp,
            *norm("model.norm", "residual", "predicted", bias=False),
            *(() if tied else linear("lm_head", "vocab", "predicted", reads=("predicted",), bias=False)),
        ),
        spaces={
            "normed": ("residual", "normed"),
            "branch": ("residual",),
            "predicted": ("residual", "mirrored" if tied else "normed"),
            **head_spaces(qk_norm=qk_norm),
        },
        sizes=sizes,
        layer_lists={} if layer_types is None else {"layer_types": layer_types},
        eps="rms_norm_eps",
        eps_default=default_eps,
        rotary=rotary or None,
        recomputed=("rotary_emb.inv_freq",),
    )
