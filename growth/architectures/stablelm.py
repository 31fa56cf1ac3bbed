"""StableLM: LayerNorms with biases, gated MLP, partial rotary embedding, attention and MLP in parallel or not.

With qk_layernorm every head norms its queries (and keys) by a gain of its own, stored as a tensor of its own.
"""

from growth.architecture import Architecture, Axis, Config, Weight, flag, linear, norm, rotary_channels, size, weight
from growth.architectures.blocks import (
    LAYER,
    attention,
    axes_by_name,
    gated_mlp,
    grouped_heads,
    head_spaces,
    square_head_dim,
)
from growth.architectures.llama import SIZES


def stablelm(config: Config) -> Architecture:
    """The table of one StableLM."""
    heads, queries = grouped_heads(config, 32)
    head_dim = square_head_dim(config)
    rotary = rotary_channels(config, head_dim, 0.25)
    qk_norm = flag(config, "qk_layernorm", False)
    tied = flag(config, "tie_word_embeddings", False)
    return Architecture(
        model_type="stablelm",
        family=stablelm,
        config=config,
        axes=axes_by_name(
            Axis("residual", size(config, "hidden_size"), norm="layer"),
            Axis("ffn", size(config, "intermediate_size")),
            Axis("heads", heads),
            Axis("queries", queries),
            Axis("head_dim", head_dim, norm="layer" if qk_norm else None, fixed=rotary),
            Axis("vocab", size(config, "vocab_size"), outer=True),
        ),
        depth=size(config, "num_hidden_layers"),
        weights=_weights(
            qk_norm=qk_norm,
            bias=flag(config, "use_qkv_bias", False),
            parallel=flag(config, "use_parallel_residual", False),
            tied=tied,
        ),
        spaces={
            "normed": ("residual", "normed"),
            "predicted": ("residual", "mirrored" if tied else "normed"),
            **head_spaces(qk_norm=qk_norm),
        },
        sizes=SIZES,
        eps="layer_norm_eps",
        rotary=rotary,
        recomputed=("rotary_emb.inv_freq",),
    )


def _weights(*, qk_norm: bool, bias: bool, parallel: bool, tied: bool) -> tuple[Weight, ...]:
    behind_attention = norm(f"{LAYER}.post_attention_layernorm", "residual", "normed", bias=True)
    return (
        weight("model.embed_tokens.weight", "vocab residual"),
        *norm(f"{LAYER}.input_layernorm", "residual", "normed", bias=True),
        *attention(
            f"{LAYER}.self_attn",
            bias=(bias, False),
            qk_norm=qk_norm,
            norm_names=("q_layernorm.norms.{query_head}", "k_layernorm.norms.{head}"),
        ),
        *(() if parallel else behind_attention),
        *gated_mlp(f"{LAYER}.mlp"),
        *norm("model.norm", "residual", "predicted", bias=True),
        *(() if tied else linear("lm_head", "vocab", "predicted", reads=("predicted",), bias=False)),
    )
