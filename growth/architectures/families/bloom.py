"""BLOOM and MPT: LayerNorms, ALiBi, an MLP of four times the stream, a tied head.

The widths of the stream and of the MLP grow together, as do residual = heads * head_dim. BLOOM normalises its
embedding, so its stream begins as a LayerNorm's output, and only equally many copies of every unit preserve its mean.
"""

from dataclasses import replace

from growth.architectures.alibi import largest_with_slopes, sloped
from growth.architectures.base import Architecture, Axis, family, norm
from growth.architectures.blocks import Attention, layer_norms, mlp, square_head_dim
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import CLIPPED, OWN_KEYS, decoder
from growth.architectures.families.opt import POST_NORM
from growth.errors import ConfigError

BLOOM = {"hidden_size": "residual", "n_head": "heads", "head_dim": "head_dim", "vocab_size": "vocab"}
MPT = {"d_model": "residual", "n_heads": "heads", "head_dim": "head_dim", "vocab_size": "vocab"}
SHARED_CLIPPED = (
    "clip_qkv clamps queries and keys, so copies of a channel cannot share its products: the half of a clamped number "
    "is not the clamped half."
)


@family
def bloom(config: Config) -> Architecture:
    """Return the table of a BLOOM.

    Raises:
        ConfigError: its residual connections start behind the norms.
    """
    if flag(config, "apply_residual_connection_post_layernorm", False):
        raise ConfigError(
            "config.json has apply_residual_connection_post_layernorm = true: a stream that every branch normalises "
            "cannot grow. Choose a source without it, as the published BLOOM models are."
        )
    table = decoder(
        config,
        Attention("self_attention", ("query_key_value",) * 3 + ("dense",), bias=(True, True), within=("heads",)),
        mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=True),
        layer_norms("input_layernorm", "post_attention_layernorm", eps="layer_norm_epsilon"),
        names=("transformer.word_embeddings", "transformer.h.{layer}", "transformer.ln_f"),
        default_tied=True,
        depth="n_layer",
        sizes=BLOOM,
        defaults={"head_dim": square_head_dim(config, "hidden_size", "n_head")},
        heads=_heads(size(config, "n_head")),
        rotary=0,
    )
    embedding, *others = table.weights
    first = norm("transformer.word_embeddings_layernorm", "residual", "residual", bias=True)
    residual = replace(table.axes["residual"], equal_copies=POST_NORM)
    return replace(table.with_axes(residual, Axis("ffn", 4 * residual.size)), weights=(embedding, *first, *others))


@family
def mpt(config: Config) -> Architecture:
    """Return the table of an MPT, whose config has another config of its attention."""
    attention = config.get("attn_config") or {}
    table = decoder(
        config,
        Attention("attn", ("Wqkv",) * 3 + ("out_proj",), scaled=attention.get("softmax_scale") is None),
        mlp("ffn.up_proj", "ffn.down_proj", bias=False),
        layer_norms("norm_1", "norm_2", eps="layer_norm_epsilon", bias=False),
        names=("transformer.wte", "transformer.blocks.{layer}", "transformer.norm_f"),
        default_tied=True,
        depth="n_layers",
        sizes=MPT,
        defaults={"head_dim": square_head_dim(config, "d_model", "n_heads")},
        heads=_heads(size(config, "n_heads")),
        rotary=0,
    )
    head_dim = table.axes["head_dim"]
    if attention.get("clip_qkv"):
        scaled = attention.get("softmax_scale") is None
        head_dim = replace(head_dim, refusal=CLIPPED) if scaled else replace(head_dim, single=SHARED_CLIPPED)
    return table.with_axes(head_dim, Axis("ffn", 4 * table.axes["residual"].size))


def _heads(units: int) -> tuple[Axis, Axis]:
    return sloped("heads", units, largest_with_slopes(units)), Axis("queries", 1, refusal=OWN_KEYS)
