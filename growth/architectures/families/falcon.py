"""Falcon: one weight for queries, keys and values, LayerNorms with biases, attention and MLP in parallel or not.

The query heads of each KV head stand in front of its key and value. With multi_query there is one KV head, without it
each query head has its own, and Falcon-40B and later (new_decoder_architecture) state the number of KV heads.

With ALiBi, a score is (q·k + slope · position) / sqrt(head_dim). No weight reaches the positions, so head_dim cannot
grow. The slope of a head depends on its position and on the largest power of two up to the number of heads: 2^k heads
have 2^(-8 i / 2^k), i = 1 … 2^k, and further heads those of 2^(k+1) at odd i. So fresh heads may stand behind the old
ones as long as there are fewer than 2^(k+1), and none can be a copy.
"""

from growth.architectures.base import Architecture, Axis, Weight, family, norm, weight
from growth.architectures.blocks import (
    BASE,
    OWN_KEYS,
    attention,
    axes_by_name,
    lm_head,
    mlp,
    square_head_dim,
    stream_spaces,
)
from growth.architectures.config import Config, divide, flag, size
from growth.architectures.families.llama import rope_refusal

BLOCK = "transformer.h.{layer}"
ONE_GROUP = "all query heads share one KV head (multi_query). Widen queries instead."
SLOPES = (
    "with ALiBi, so many query heads would have other slopes, because the next power of two changes all of them. Stay "
    "below it, or widen ffn instead."
)
PLACES = (
    "with ALiBi, the slope of a query head depends on its position, which more query heads per KV head would change. "
    "Widen heads instead."
)
POSITIONS = (
    "with ALiBi, the softmax scale would change, and no weight undoes that for the positions. Widen heads instead."
)


@family
def falcon(config: Config) -> Architecture:
    """Return the table of a Falcon."""
    hidden, all_queries = size(config, "hidden_size"), size(config, "num_attention_heads")
    new = flag(config, "new_decoder_architecture", False)
    multi_query = not new and flag(config, "multi_query", True)
    heads = 1 if multi_query else size(config, "num_kv_heads", all_queries) if new else all_queries
    queries = divide("num_attention_heads", all_queries, "num_kv_heads", heads)
    head_dim = square_head_dim(config)
    alibi = flag(config, "alibi", False)
    fewer = 2 ** all_queries.bit_length() - 1  # than the next power of two
    tied = flag(config, "tie_word_embeddings", True)
    return Architecture(
        config=config,
        axes=axes_by_name(
            Axis("residual", hidden, norm="layer"),
            Axis("ffn", size(config, "ffn_hidden_size", 4 * hidden)),
            *(_one_group if multi_query else _groups if new else _no_groups)(heads, queries, fewer if alibi else 0),
            Axis(
                "head_dim",
                head_dim,
                uncopyable=head_dim,
                rotary_pairs=not alibi,
                refusal=POSITIONS if alibi else rope_refusal(config),
            ),
            Axis("vocab", size(config, "vocab_size"), external=True),
        ),
        depth=size(config, "num_hidden_layers"),
        weights=(
            weight("transformer.word_embeddings.weight", "vocab residual"),
            *_layer(config, new),
            *norm("transformer.ln_f", "residual", "head_input", bias=True),
            *lm_head(tied),
        ),
        spaces=stream_spaces(tied),
        sizes={
            "hidden_size": "residual",
            "ffn_hidden_size": "ffn",
            "num_attention_heads": "heads queries",
            "num_kv_heads": "heads" if new else "heads queries",
            "head_dim": "head_dim",
            "vocab_size": "vocab",
        },
        eps="layer_norm_epsilon",
        bases=() if alibi else BASE,
    )


def _one_group(heads: int, queries: int, upto: int) -> tuple[Axis, Axis]:
    return Axis("heads", heads, refusal=ONE_GROUP), _sloped("queries", queries, upto)


def _groups(heads: int, queries: int, upto: int) -> tuple[Axis, Axis]:
    return _sloped("heads", heads, upto // queries), Axis("queries", queries, refusal=PLACES if upto else "")


def _no_groups(heads: int, queries: int, upto: int) -> tuple[Axis, Axis]:
    return _sloped("heads", heads, upto), Axis("queries", queries, refusal=OWN_KEYS)


def _sloped(name: str, size: int, upto: int) -> Axis:
    return Axis(name, size, uncopyable=size, refusal=SLOPES, max_size=upto) if upto else Axis(name, size)


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
