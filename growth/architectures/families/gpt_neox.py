"""GPT-NeoX and Pythia: LayerNorms with biases, partial rotary embedding, attention and MLP in parallel or not.

Queries, keys and values of each head stand together in one weight. Old configs name the rotary parameters
rotary_pct and rotary_emb_base, old files the head embed_out.
"""

from growth.architectures.base import Architecture, Axis, family, norm, weight
from growth.architectures.blocks import (
    OWN_KEYS,
    attention,
    axes_by_name,
    lm_head,
    mlp,
    square_head_dim,
    stream_spaces,
)
from growth.architectures.config import Config, flag, size
from growth.architectures.rotary import rotary_channels

LAYER = "gpt_neox.layers.{layer}"
ROPE_NAMES = {"partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"}


@family
def gpt_neox(config: Config) -> Architecture:
    """Return the table of a GPT-NeoX or Pythia."""
    head_dim = square_head_dim(config)
    rotary = rotary_channels(config, head_dim, 0.25, ROPE_NAMES["partial_rotary_factor"])
    bias = flag(config, "attention_bias", True)
    tied = flag(config, "tie_word_embeddings", False)
    return Architecture(
        config=config,
        axes=axes_by_name(
            Axis("residual", size(config, "hidden_size"), norm="layer"),
            Axis("ffn", size(config, "intermediate_size")),
            Axis("heads", size(config, "num_attention_heads")),
            Axis("queries", 1, refusal=OWN_KEYS),
            Axis("head_dim", head_dim, uncopyable=rotary),
            Axis("vocab", size(config, "vocab_size"), external=True),
        ),
        depth=size(config, "num_hidden_layers"),
        weights=(
            weight("gpt_neox.embed_in.weight", "vocab residual"),
            *norm(f"{LAYER}.input_layernorm", "residual", "normed", bias=True),
            *attention(
                f"{LAYER}.attention",
                bias=(bias, bias),
                fused="query_key_value",
                within=("heads",),
                names=("q", "k", "v", "dense"),
            ),
            *norm(f"{LAYER}.post_attention_layernorm", "residual", "normed", bias=True),
            *mlp(f"{LAYER}.mlp.dense_h_to_4h", f"{LAYER}.mlp.dense_4h_to_h", bias=True),
            *norm("gpt_neox.final_layer_norm", "residual", "head_input", bias=True),
            *lm_head(tied),
        ),
        spaces=stream_spaces(tied),
        sizes={
            "hidden_size": "residual",
            "intermediate_size": "ffn",
            "num_attention_heads": "heads",
            "head_dim": "head_dim",
            "vocab_size": "vocab",
        },
        eps="layer_norm_eps",
        rotary=rotary,
        rope_names=ROPE_NAMES,
        other_names={"lm_head.": "embed_out."},
    )
