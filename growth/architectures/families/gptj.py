"""GPT-J: attention and MLP in parallel behind one LayerNorm, a head with a bias.

The config states the number of rotary channels, so it stays when head_dim grows.
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
from growth.errors import ConfigError

BLOCK = "transformer.h.{layer}"


@family
def gptj(config: Config) -> Architecture:
    """Return the table of a GPT-J.

    Raises:
        ConfigError: rotary_dim is odd or above head_dim.
    """
    hidden = size(config, "n_embd")
    head_dim = square_head_dim(config, "n_embd", "n_head")
    rotary = size(config, "rotary_dim", 64)
    if rotary > head_dim or rotary % 2:
        raise ConfigError(
            f"config.json has rotary_dim = {rotary}, and heads of {head_dim} channels: they come in pairs, so an "
            f"even number of at most {head_dim} is needed."
        )
    tied = flag(config, "tie_word_embeddings", False)
    return Architecture(
        config=config,
        axes=axes_by_name(
            Axis("residual", hidden, norm="layer"),
            Axis("ffn", size(config, "n_inner", 4 * hidden)),
            Axis("heads", size(config, "n_head")),
            Axis("queries", 1, refusal=OWN_KEYS),
            Axis("head_dim", head_dim, uncopyable=rotary),
            Axis("vocab", size(config, "vocab_size"), external=True),
        ),
        depth=size(config, "n_layer"),
        weights=(
            weight("transformer.wte.weight", "vocab residual"),
            *norm(f"{BLOCK}.ln_1", "residual", "normed", bias=True),
            *attention(f"{BLOCK}.attn", names=("q_proj", "k_proj", "v_proj", "out_proj")),
            *mlp(f"{BLOCK}.mlp.fc_in", f"{BLOCK}.mlp.fc_out", bias=True),
            *norm("transformer.ln_f", "residual", "head_input", bias=True),
            *lm_head(tied, bias=True),
        ),
        spaces=stream_spaces(tied),
        sizes={
            "n_embd": "residual",
            "n_inner": "ffn",
            "n_head": "heads",
            "head_dim": "head_dim",
            "vocab_size": "vocab",
        },
        depth_keys=("n_layer",),
        eps="layer_norm_epsilon",
    )
