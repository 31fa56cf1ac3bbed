"""Command R (model_type "cohere") and R7B (cohere2).

Attention and gated MLP in parallel behind one LayerNorm without bias, a tied head. Cohere can norm each head's
queries and keys, with a gain of its own for each head; Cohere2 turns channels in its sliding layers alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from growth.architectures.base import Architecture, Axis, Family, linear, norm, weight
from growth.architectures.blocks import (
    LAYER,
    SIZES,
    TURNS,
    attention,
    axes_by_name,
    gated_mlp,
    grouped_heads,
    head_spaces,
    implied_head_dim,
    rotary_of_layers,
)
from growth.architectures.config import Config, flag, of_layers, size


def cohere(config: Config) -> Architecture:
    """The table of one Cohere model."""
    return _cohere(config, cohere, qk_norm=flag(config, "use_qk_norm", False))


def cohere2(config: Config) -> Architecture:
    """The table of one Cohere2 model."""
    layer_types = _layer_types(config)
    slides = [kind == "sliding_attention" for kind in layer_types]
    turning = rotary_of_layers(slides, implied_head_dim(config)) is None
    return _cohere(config, cohere2, turning=turning, layer_lists={"layer_types": layer_types})


def _layer_types(config: Config) -> list[str]:
    """layer_types: as stated, or full attention in every fourth layer, or as often as older configs say."""
    stated = of_layers(config, "layer_types")
    if stated is not None:
        return stated
    period = size(config, "sliding_window_pattern", 4)
    depth = size(config, "num_hidden_layers")
    return ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(depth)]


def _cohere(
    config: Config,
    family: Family,
    *,
    qk_norm: bool = False,
    turning: bool = True,
    layer_lists: Mapping[str, Sequence[Any]] | None = None,
) -> Architecture:
    heads, queries = grouped_heads(config)
    head_dim = implied_head_dim(config)
    bias = flag(config, "attention_bias", False)
    tied = flag(config, "tie_word_embeddings", True)
    return Architecture(
        model_type=str(config["model_type"]),
        family=family,
        config=config,
        axes=axes_by_name(
            Axis("residual", size(config, "hidden_size"), norm="layer"),
            Axis("ffn", size(config, "intermediate_size")),
            Axis("heads", heads),
            Axis("queries", queries),
            Axis(
                "head_dim",
                head_dim,
                norm="layer" if qk_norm else None,
                fixed=head_dim if turning else 0,
                refusal=TURNS if turning else "",
            ),
            Axis("vocab", size(config, "vocab_size"), outer=True),
        ),
        depth=size(config, "num_hidden_layers"),
        weights=(
            weight("model.embed_tokens.weight", "vocab residual"),
            *norm(f"{LAYER}.input_layernorm", "residual", "normed", bias=False),
            *attention(f"{LAYER}.self_attn", bias=(bias, bias), qk_norm=qk_norm, own_gains=qk_norm),
            *gated_mlp(f"{LAYER}.mlp"),
            *norm("model.norm", "residual", "head_input", bias=False),
            *(() if tied else linear("lm_head", "vocab", "head_input", reads=("head_input",), bias=False)),
        ),
        spaces={
            "normed": ("residual", "normed"),
            "head_input": ("residual", "tied_head" if tied else "normed"),
            **head_spaces(qk_norm=qk_norm),
        },
        sizes=SIZES,
        layer_lists=layer_lists or {},
        eps="layer_norm_eps",
    )
