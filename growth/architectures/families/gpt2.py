"""GPT-2: LayerNorms with biases, learned positions, a tied head, weights stored (in, out).

Queries, keys and values are one weight, c_attn. Files of the bare model (early ones, such as "gpt2") omit the prefix
"transformer." of all names.
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
def gpt2(config: Config) -> Architecture:
    """Return the table of a GPT-2.

    Raises:
        ConfigError: the model attends to an encoder.
    """
    if flag(config, "add_cross_attention", False):
        raise ConfigError(
            "config.json has add_cross_attention = true: this GPT-2 is half of an encoder-decoder model, and only "
            "decoder-only models can grow."
        )
    hidden = size(config, "n_embd")
    tied = flag(config, "tie_word_embeddings", True)
    layer_scaled = flag(config, "scale_attn_by_inverse_layer_idx", False)
    positions = size(config, "n_positions", 1024)
    context = {"n_ctx": "positions"} if config.get("n_ctx") == positions else {}  # the same number in old configs
    return Architecture(
        config=config,
        axes=axes_by_name(
            Axis("residual", hidden, norm="layer"),
            Axis("ffn", size(config, "n_inner", 4 * hidden)),
            Axis("heads", size(config, "n_head")),
            Axis("queries", 1, refusal=OWN_KEYS),
            Axis("head_dim", square_head_dim(config, "n_embd", "n_head")),
            Axis("vocab", size(config, "vocab_size"), external=True),
            Axis("positions", positions, external=True),
        ),
        depth=size(config, "n_layer"),
        weights=(
            weight("transformer.wte.weight", "vocab residual"),
            weight("transformer.wpe.weight", "positions residual"),
            *norm(f"{BLOCK}.ln_1", "residual", "normed", bias=True),
            *attention(
                f"{BLOCK}.attn",
                bias=(True, True),
                fused="c_attn",
                transposed=True,
                layer_scaled=layer_scaled,
                names=("q", "k", "v", "c_proj"),
            ),
            *norm(f"{BLOCK}.ln_2", "residual", "normed", bias=True),
            *mlp(f"{BLOCK}.mlp.c_fc", f"{BLOCK}.mlp.c_proj", bias=True, transposed=True),
            *norm("transformer.ln_f", "residual", "head_input", bias=True),
            *lm_head(tied),
        ),
        spaces=stream_spaces(tied, scaled=flag(config, "scale_attn_weights", True)),
        sizes={
            "n_embd": "residual",
            "n_inner": "ffn",
            "n_head": "heads",
            "head_dim": "head_dim",
            "vocab_size": "vocab",
            "n_positions": "positions",
            **context,
        },
        depth_keys=("n_layer",),
        eps="layer_norm_epsilon",
        other_names={"transformer.": ""},
    )
