"""Phi-1, Phi-1.5, Phi-2 (model_type "phi").

Attention and MLP in parallel behind one LayerNorm, biases everywhere, partial rotary embedding, an untied
head with a bias. Attention and MLP both end in the residual stream, so that zero `dense` and `fc2` make a
layer the identity.
"""

from growth.architecture import (
    Architecture,
    Axis,
    Config,
    Weight,
    divide,
    flag,
    linear,
    norm,
    rotary_channels,
    size,
    weight,
)
from growth.errors import ConfigError


def phi(config: Config) -> Architecture:
    """The table of one Phi model."""
    hidden = size(config, "hidden_size")
    all_queries = size(config, "num_attention_heads")
    heads = size(config, "num_key_value_heads", all_queries)
    queries = divide("num_attention_heads", all_queries, "num_key_value_heads", heads)
    head_dim = size(config, "head_dim", hidden // all_queries or None)
    qk_norm = flag(config, "qk_layernorm", False)
    tied = flag(config, "tie_word_embeddings", False)
    if qk_norm and hidden // all_queries != head_dim:
        raise ConfigError(
            f"Phi with qk_layernorm norms hidden_size // num_attention_heads = {hidden // all_queries} channels "
            f"a head, and head_dim is {head_dim}. Grow residual, heads and head_dim so that they agree."
        )
    rotary = rotary_channels(config, head_dim, 0.5)
    axes = (
        Axis("residual", hidden, norm="layer"),
        Axis("ffn", size(config, "intermediate_size")),
        Axis("heads", heads),
        Axis("queries", queries),
        Axis("head_dim", head_dim, norm="layer" if qk_norm else None, fixed=rotary),
        Axis("vocab", size(config, "vocab_size"), outer=True),
    )
    behind_qk_norm = ("normed",) if qk_norm else ()
    return Architecture(
        model_type="phi",
        family=phi,
        config=config,
        axes={axis.name: axis for axis in axes},
        depth=size(config, "num_hidden_layers"),
        weights=_weights(qk_norm, tied),
        spaces={
            "normed": ("residual", "normed"),
            "predicted": ("residual", "mirrored" if tied else "normed"),
            "channels": ("head_dim", *behind_qk_norm),
            "scored": ("head_dim", *behind_qk_norm, "scored"),
        },
        sizes={
            "hidden_size": "residual",
            "intermediate_size": "ffn",
            "num_attention_heads": "heads queries",
            "num_key_value_heads": "heads",
            "head_dim": "head_dim",
            "vocab_size": "vocab",
        },
        eps="layer_norm_eps",
        rotary=rotary,
        recomputed=("rotary_emb.inv_freq",),
    )


def _weights(qk_norm: bool, tied: bool) -> tuple[Weight, ...]:
    layer = "model.layers.{layer}"
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    # A score is a product of queries and keys: the queries write the channels, the keys read them.
    # With a norm on both, the projections write what the norms take there.
    query, key, read_by_key = ("head_dim", "head_dim", ()) if qk_norm else ("scored", "channels", ("channels",))
    return (
        weight("model.embed_tokens.weight", "vocab residual"),
        *norm(f"{layer}.input_layernorm", "residual", "normed", bias=True),
        *linear(f"{attention}.q_proj", f"(heads queries {query})", "normed", reads=("normed",), bias=True),
        *linear(f"{attention}.k_proj", f"(heads {key})", "normed", reads=("normed", *read_by_key), bias=True),
        *(norm(f"{attention}.q_layernorm", "head_dim", "scored", bias=True) if qk_norm else ()),
        *(norm(f"{attention}.k_layernorm", "head_dim", "channels", bias=True, reads=("channels",)) if qk_norm else ()),
        *linear(f"{attention}.v_proj", "(heads channels)", "normed", reads=("normed",), bias=True),
        *linear(
            f"{attention}.dense",
            "residual",
            "(heads queries channels)",
            reads=("heads", "queries", "channels"),
            bias=True,
            branch_end=True,
        ),
        *linear(f"{mlp}.fc1", "ffn", "normed", reads=("normed",), bias=True),
        *linear(f"{mlp}.fc2", "residual", "ffn", reads=("ffn",), bias=True, branch_end=True),
        *norm("model.final_layernorm", "residual", "predicted", bias=True),
        *linear("lm_head", "vocab", "predicted", reads=("predicted",), bias=True)[tied:],
    )
