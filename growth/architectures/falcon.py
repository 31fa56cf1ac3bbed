"""Falcon: one weight for queries, keys and values, LayerNorms with biases, attention and MLP in parallel or not.

In each group of heads the queries stand in front of their key and value. All query heads are one group where
the config says multi_query, each is its own where it does not, and Falcon-40B and later (new_decoder_architecture)
say how many groups there are.

With ALiBi a score is (q·k + slope · position) / sqrt(head_dim). The slopes hang on the number of heads and no
weight of queries and keys reaches the positions, so that neither heads nor head_dim can grow, and with them the
hidden size, which is their product.
"""

from growth.architecture import Architecture, Axis, Config, Weight, divide, flag, linear, norm, size, weight
from growth.architectures.blocks import OWN_KEYS, TURNS, attention, axes_by_name, head_spaces, mlp, square_head_dim

BLOCK = "transformer.h.{layer}"
ONE_GROUP = "all query heads share one head of keys and values (multi_query). Widen queries instead."
SLOPES = (
    "with ALiBi, heads and head_dim set the slopes and the scale of the positions in every score, and hidden_size is "
    "their product. Widen ffn, or deepen."
)


def falcon(config: Config) -> Architecture:
    """The table of one Falcon."""
    hidden, all_queries = size(config, "hidden_size"), size(config, "num_attention_heads")
    new = flag(config, "new_decoder_architecture", False)
    multi_query = not new and flag(config, "multi_query", True)
    heads = 1 if multi_query else size(config, "num_kv_heads", all_queries) if new else all_queries
    queries = divide("num_attention_heads", all_queries, "num_kv_heads", heads)
    head_dim = square_head_dim(config)
    alibi = SLOPES if flag(config, "alibi", False) else ""
    tied = flag(config, "tie_word_embeddings", True)
    ungrouped = "" if new or multi_query else OWN_KEYS
    return Architecture(
        model_type="falcon",
        family=falcon,
        config=config,
        axes=axes_by_name(
            Axis("residual", hidden, norm="layer", refusal=alibi),
            Axis("ffn", size(config, "ffn_hidden_size", 4 * hidden)),
            Axis("heads", heads, refusal=alibi or (ONE_GROUP if multi_query else "")),
            Axis("queries", queries, refusal=alibi or ungrouped),
            Axis("head_dim", head_dim, fixed=0 if alibi else head_dim, refusal=alibi or TURNS),
            Axis("vocab", size(config, "vocab_size"), outer=True),
        ),
        depth=size(config, "num_hidden_layers"),
        weights=(
            weight("transformer.word_embeddings.weight", "vocab residual"),
            *_layer(config, new),
            *norm("transformer.ln_f", "residual", "predicted", bias=True),
            *(() if tied else linear("lm_head", "vocab", "predicted", reads=("predicted",), bias=False)),
        ),
        spaces={
            "normed": ("residual", "normed"),
            "predicted": ("residual", "mirrored" if tied else "normed"),
            **head_spaces(),
        },
        sizes={
            "hidden_size": "residual",
            "ffn_hidden_size": "ffn",
            "num_attention_heads": "heads queries",
            "num_kv_heads": "heads" if new else "heads queries",
            "head_dim": "head_dim",
            "vocab_size": "vocab",
        },
        eps="layer_norm_epsilon",
        recomputed=("rotary_emb.inv_freq",),
    )


def _layer(config: Config, new: bool) -> tuple[Weight, ...]:
    bias = flag(config, "bias", False)
    both = new and size(config, "num_ln_in_parallel_attn", 2) == 2
    parallel = new or flag(config, "parallel_attn", True)
    norms = ("ln_attn", "ln_mlp") if both else ("input_layernorm", *(() if parallel else ("post_attention_layernorm",)))
    return (
        *(weight for name in norms for weight in norm(f"{BLOCK}.{name}", "residual", "normed", bias=True)),
        *attention(
            f"{BLOCK}.self_attention",
            bias=(bias, bias),
            fused="query_key_value",
            within=("heads",),
            names=("q", "k", "v", "dense"),
        ),
        *mlp(f"{BLOCK}.mlp.dense_h_to_4h", f"{BLOCK}.mlp.dense_4h_to_h", bias=bias),
    )
