"""StarCoder2: Llama's layers with LayerNorms, a plain MLP and biases, and a tied head."""

from growth.architecture import Architecture, Axis, Config, flag, linear, norm, size, weight
from growth.architectures.blocks import (
    LAYER,
    TURNS,
    attention,
    axes_by_name,
    grouped_heads,
    head_spaces,
    implied_head_dim,
    mlp,
)
from growth.architectures.llama import SIZES


def starcoder2(config: Config) -> Architecture:
    """The table of one StarCoder2."""
    heads, queries = grouped_heads(config, 2)
    head_dim = implied_head_dim(config)
    bias = flag(config, "use_bias", True)
    tied = flag(config, "tie_word_embeddings", True)
    return Architecture(
        model_type="starcoder2",
        family=starcoder2,
        config=config,
        axes=axes_by_name(
            Axis("residual", size(config, "hidden_size"), norm="layer"),
            Axis("ffn", size(config, "intermediate_size")),
            Axis("heads", heads),
            Axis("queries", queries),
            Axis("head_dim", head_dim, fixed=head_dim, refusal=TURNS),
            Axis("vocab", size(config, "vocab_size"), outer=True),
        ),
        depth=size(config, "num_hidden_layers"),
        weights=(
            weight("model.embed_tokens.weight", "vocab residual"),
            *norm(f"{LAYER}.input_layernorm", "residual", "normed", bias=True),
            *attention(f"{LAYER}.self_attn", bias=(bias, bias)),
            *norm(f"{LAYER}.post_attention_layernorm", "residual", "normed", bias=True),
            *mlp(f"{LAYER}.mlp.c_fc", f"{LAYER}.mlp.c_proj", bias=bias),
            *norm("model.norm", "residual", "predicted", bias=True),
            *(() if tied else linear("lm_head", "vocab", "predicted", reads=("predicted",), bias=False)),
        ),
        spaces={
            "normed": ("residual", "normed"),
            "predicted": ("residual", "mirrored" if tied else "normed"),
            **head_spaces(),
        },
        sizes=SIZES,
        eps="norm_epsilon",
        recomputed=("rotary_emb.inv_freq",),
    )
