"""OPT and Galactica: learned positions of which two are reserved, LayerNorms before or after the branches.

The eps of the LayerNorms is torch's, 1e-5, and no config states it. OPT-350m projects its embeddings to the hidden size
and back, and has its norms after the branches. Then the residual stream is a LayerNorm's output, and:

- no layer can be the identity: even after a branch of zero, the stream is normalised once more;
- the mean of a LayerNorm's output differs from token to token, and no weight can write it into copies with unequal
  coefficients or into fresh units: every unit must be copied equally often.

A matrix that is both embedding and head writes the stream at the size that eps needs, sum(write^2) = N / n for each
unit, and reads as it writes. In between, the gain of the final norm or the projection must undo that factor. Without
either, the stream cannot grow.
"""

from growth.architectures.base import (
    Architecture,
    Axis,
    Weight,
    WeightPart,
    axes_by_name,
    external_axis,
    family,
    linear,
    norm,
    weight,
)
from growth.architectures.blocks import Attention, mlp, square_head_dim
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import OWN_KEYS, RESERVED, lm_head, named_inside

EMBEDDED_ONCE = (
    "the embedding matrix is also the head, and neither a final norm's gain nor a projection lies between them, so "
    "widening the residual stream would scale the logits. Widen ffn, or untie the head first (op: untie)."
)
POST_NORM = (
    "the residual stream is a LayerNorm's output, whose mean differs from token to token: only equally many copies of "
    "every unit preserve it."
)
NO_IDENTITY = (
    "every layer normalises the residual stream after its branches (do_layer_norm_before is false), even if they are "
    "zero, so no layer can be the identity. Use init: copy, which changes the function, or widen."
)


@family
def opt(config: Config) -> Architecture:
    """Return the table of an OPT."""
    hidden = size(config, "hidden_size")
    embedding = size(config, "word_embed_proj_dim", hidden)
    projected = embedding != hidden
    pre_norm = flag(config, "do_layer_norm_before", True)
    affine = flag(config, "layer_norm_elementwise_affine", True)
    final_norm = pre_norm and not flag(config, "_remove_final_layer_norm", False)
    tied = flag(config, "tie_word_embeddings", True)
    mirrored = tied and not projected
    behind = "normed" if affine else "norm_without_gain"
    predicted = ("tied_head" if mirrored and affine else behind,) if final_norm else ()
    bias = flag(config, "enable_bias", True)
    attention = Attention(projections=("q_proj", "k_proj", "v_proj", "out_proj"), bias=(bias, bias))
    # a norm after a branch maps the residual stream to itself
    stream = "normed" if pre_norm else "residual"

    def layer_norm(name: str, into: str) -> tuple[Weight, ...]:
        return norm(name, "residual", into, bias=True) if affine else ()

    layer = (
        *attention.weights(),
        *layer_norm("self_attn_layer_norm", stream),
        *mlp("fc1", "fc2", bias=bias),
        *layer_norm("final_layer_norm", stream),
    )
    return Architecture(
        config=config,
        axes=axes_by_name(
            Axis(
                "residual",
                hidden,
                norm="layer",
                refusal=EMBEDDED_ONCE if mirrored and not (final_norm and affine) else "",
                equal_copies="" if pre_norm else POST_NORM,
            ),
            *((Axis("embedding", embedding),) if projected else ()),
            Axis("ffn", size(config, "ffn_dim")),
            Axis("heads", size(config, "num_attention_heads")),
            Axis("queries", 1, refusal=OWN_KEYS),
            Axis("head_dim", square_head_dim(config)),
            external_axis("vocab", size(config, "vocab_size")),
            external_axis("positions", size(config, "max_position_embeddings", 2048)),
            Axis("reserved", 2, fixed=2, refusal=RESERVED),
        ),
        depth=size(config, "num_hidden_layers"),
        weights=(
            weight("model.decoder.embed_tokens.weight", f"vocab {'embedding' if projected else 'residual'}"),
            Weight(
                "model.decoder.embed_positions.weight",
                (WeightPart("reserved residual"), WeightPart("positions residual")),
            ),
            *(linear("model.decoder.project_in", "residual", "embedding") if projected else ()),
            *named_inside("model.decoder.layers.{layer}", layer),
            *(layer_norm("model.decoder.final_layer_norm", "head_input") if final_norm else ()),
            *(_projected_head(tied) if projected else lm_head(tied)),
        ),
        spaces={
            "normed": ("residual", *((behind,) if pre_norm else ())),
            "head_input": ("residual", *predicted),
            **attention.spaces,
        },
        sizes={
            "hidden_size": "residual",
            "word_embed_proj_dim": "embedding" if projected else "residual",
            "ffn_dim": "ffn",
            "num_attention_heads": "heads",
            "head_dim": "head_dim",
            "vocab_size": "vocab",
            "max_position_embeddings": "positions",
        },
        no_identity="" if pre_norm else NO_IDENTITY,
        initial_std=("init_std", 0.02),
        other_names={"model.decoder.": "decoder."},
    )


def _projected_head(tied: bool) -> tuple[Weight, ...]:
    """Return the weights of a head after a projection.

    A logit is a product of what is projected and of the head: one reads the channels, the other writes them.
    """
    projection = linear("model.decoder.project_out", "embedding", "head_input", also_reads=("embedding",))
    return projection if tied else (*projection, weight("lm_head.weight", "vocab embedding"))
