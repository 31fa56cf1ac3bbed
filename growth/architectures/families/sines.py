"""XGLM and CTRL: positions that are sines of fixed frequencies, added to the embedding.

Channel i of the stream holds a sine or cosine of its own at every position. So with more channels, each old one has one
place at most, where its frequency occurs, and each other channel holds a sine of another frequency. It is a function of
the position that no weight can make up for, because no weight reads the position, and it moves the mean that the
LayerNorms subtract. So the residual stream cannot grow, nor can the heads, which have as many channels together.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Attention, layer_norms, mlp, square_head_dim
from growth.architectures.config import Config, flag
from growth.architectures.decoder import decoder
from growth.architectures.families.biogpt import ATTENTION, MLP, NO_EPS, NORMS
from growth.architectures.families.gpt2 import check_decoder_only

SINES = (
    "the positions are sines of as many frequencies as the stream is wide, added to it: further channels would hold "
    "sines of other frequencies, which no weight can undo. Widen ffn instead."
)
XGLM = {
    "d_model": "residual",
    "ffn_dim": "ffn",
    "attention_heads": "heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab",
}
CTRL = {"n_embd": "residual", "dff": "ffn", "n_head": "heads", "head_dim": "head_dim", "vocab_size": "vocab"}


@family
def xglm(config: Config) -> Architecture:
    """Return the table of an XGLM."""
    check_decoder_only(config)
    table = decoder(
        config,
        ATTENTION,
        MLP,
        NORMS,
        names=("model.embed_tokens", "model.layers.{layer}", "model.layer_norm"),
        embed_scaled=flag(config, "scale_embedding", True),
        default_tied=True,
        depth="num_layers",
        sizes=XGLM,
        defaults={"head_dim": square_head_dim(config, "d_model", "attention_heads")},
        rotary=0,
    )
    return replace(_of_sines(table), initial_std=("init_std", 0.02))


@family
def ctrl(config: Config) -> Architecture:
    """Return the table of a CTRL."""
    table = decoder(
        config,
        Attention("multi_head_attention", ("Wq", "Wk", "Wv", "dense"), bias=(True, True)),
        mlp("ffn.0", "ffn.2", bias=True),
        replace(layer_norms("layernorm1", "layernorm2"), eps=None),
        names=("transformer.w", "transformer.h.{layer}", "transformer.layernorm"),
        embed_scaled=True,
        default_tied=True,
        head_bias=True,
        depth="n_layer",
        sizes=CTRL,
        defaults={"ffn": 8192, "head_dim": square_head_dim(config, "n_embd", "n_head")},
        rotary=0,
    )
    return _of_sines(table)


def _of_sines(table: Architecture) -> Architecture:
    """Return a table whose residual stream cannot grow: each of its channels has a sine of its own added to it."""
    stream = table.axes["residual"]
    return replace(table.with_axes(replace(stream, refusal=SINES, fixed=stream.size)), no_rescale=NO_EPS)
