"""Phi-1, Phi-1.5, Phi-2 (model_type "phi").

Attention and MLP in parallel behind one LayerNorm, biases everywhere, partial rotary embedding, an untied head with a
bias. Attention and MLP both end in the residual stream, so a layer is the identity if `dense` and `fc2` are zero.
"""

from growth.architectures.base import Architecture, Axis, Weight, family, norm, weight
from growth.architectures.blocks import (
    LAYER,
    SIZES,
    attention,
    axes_by_name,
    grouped_heads,
    lm_head,
    mlp,
    stream_spaces,
)
from growth.architectures.config import Config, flag, size
from growth.architectures.rotary import rotary_channels
from growth.errors import ConfigError


@family
def phi(config: Config) -> Architecture:
    """Return the table of a Phi model."""
    hidden = size(config, "hidden_size")
    heads, queries = grouped_heads(config)
    all_queries = heads * queries
    head_dim = size(config, "head_dim", hidden // all_queries or None)
    qk_norm = flag(config, "qk_layernorm", False)
    tied = flag(config, "tie_word_embeddings", False)
    if qk_norm and hidden // all_queries != head_dim:
        raise ConfigError(
            f"Phi with qk_layernorm normalises hidden_size // num_attention_heads = {hidden // all_queries} channels "
            f"per head, and head_dim is {head_dim}. Grow residual, heads and head_dim so that they agree."
        )
    rotary = rotary_channels(config, head_dim, 0.5)
    axes = axes_by_name(
        Axis("residual", hidden, norm="layer"),
        Axis("ffn", size(config, "intermediate_size")),
        Axis("heads", heads),
        Axis("queries", queries),
        Axis("head_dim", head_dim, norm="layer" if qk_norm else None, uncopyable=rotary),
        Axis("vocab", size(config, "vocab_size"), external=True),
    )
    return Architecture(
        config=config,
        axes=axes,
        depth=size(config, "num_hidden_layers"),
        weights=_weights(qk_norm, tied),
        spaces=stream_spaces(tied, qk_norm=qk_norm),
        sizes=SIZES,
        eps="layer_norm_eps",
        rotary=rotary,
    )


def _weights(qk_norm: bool, tied: bool) -> tuple[Weight, ...]:
    return (
        weight("model.embed_tokens.weight", "vocab residual"),
        *norm(f"{LAYER}.input_layernorm", "residual", "normed", bias=True),
        *attention(
            f"{LAYER}.self_attn",
            bias=(True, True),
            qk_norm=qk_norm,
            qk_norm_bias=True,
            names=("q_proj", "k_proj", "v_proj", "dense"),
            norm_names=("q_layernorm", "k_layernorm"),
        ),
        *mlp(f"{LAYER}.mlp.fc1", f"{LAYER}.mlp.fc2", bias=True),
        *norm("model.final_layernorm", "residual", "head_input", bias=True),
        *lm_head(tied, bias=True),
    )
