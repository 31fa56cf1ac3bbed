"""The first GPT: GPT-2's weights, with a LayerNorm after each sum of branch and stream, and none behind all layers.

All norms run over the stream itself, so every unit must be copied equally often, and no layer can be the identity. The
last of them writes what the head reads, so with a tied head the stream cannot grow.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, Weight, named_family, norm
from growth.architectures.blocks import Attention, Norms, mlp, square_head_dim
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import decoder, with_learned_positions
from growth.architectures.families.bert import NO_IDENTITY
from growth.architectures.families.gpt2 import SIZES, stored
from growth.architectures.families.opt import EMBEDDED_ONCE, POST_NORM
from growth.errors import ConfigError

NO_EPS = "its embedding passes no norm, so that its size is a part of the function"


@named_family("openai-gpt")
def openai_gpt(config: Config) -> Architecture:
    """Return the table of an OpenAI GPT."""
    tied = flag(config, "tie_word_embeddings", True)
    table = decoder(
        config,
        Attention("attn", ("c_attn", "c_attn", "c_attn", "c_proj"), bias=(True, True)),
        mlp("mlp.c_fc", "mlp.c_proj", bias=True),
        Norms((), kind="layer", bias=True, eps=None),
        names=("transformer.tokens_embed", "transformer.h.{layer}", "transformer.none"),
        default_tied=True,
        depth="n_layer",
        sizes=SIZES,
        defaults={"ffn": _four_times(config), "head_dim": square_head_dim(config, "n_embd", "n_head")},
        rotary=0,
    )
    table = with_learned_positions(table, "transformer.positions_embed.weight", "n_positions", 512)
    return replace(
        table.with_axes(replace(table.axes["residual"], equal_copies=POST_NORM, refusal=EMBEDDED_ONCE if tied else "")),
        weights=sum(map(_with_norm, table.weights), ()),
        other_names={"transformer.": ""},
        no_rescale=NO_EPS,
        no_identity=NO_IDENTITY,
    )


def _with_norm(one: Weight) -> tuple[Weight, ...]:
    """Return a weight with the norm that follows it; a decoder has one behind all layers, which this model has not."""
    layer = "transformer.h.{layer}"
    if one.name.startswith("transformer.none"):
        return ()
    if one.name == f"{layer}.attn.c_proj.bias":
        return (stored(one), *norm(f"{layer}.ln_1", "residual", "residual", bias=True))
    if one.name == f"{layer}.mlp.c_proj.bias":
        return (stored(one), *norm(f"{layer}.ln_2", "residual", "residual", bias=True))
    return (stored(one),)


def _four_times(config: Config) -> int:
    """Return the width of the MLP.

    Raises:
        ConfigError: the config states another.
    """
    width = 4 * size(config, "n_embd")
    if config.get("n_inner") not in (None, width):
        raise ConfigError(
            f"n_inner = {config['n_inner']} is not 4 * n_embd = {width}, which the class makes it: grow residual "
            "and ffn so that they agree."
        )
    return width
