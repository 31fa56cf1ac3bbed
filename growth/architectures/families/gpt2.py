"""GPT-2: LayerNorms with biases, learned positions, a tied head, weights stored (in, out).

Queries, keys and values are one weight, c_attn. Files of the bare model (early ones, such as "gpt2") omit the prefix
"transformer." of all names.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, Weight, family
from growth.architectures.blocks import Attention, layer_norms, mlp, square_head_dim
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import decoder, with_learned_positions
from growth.errors import ConfigError

SIZES = {"n_embd": "residual", "n_inner": "ffn", "n_head": "heads", "head_dim": "head_dim", "vocab_size": "vocab"}


@family
def gpt2(config: Config) -> Architecture:
    """Return the table of a GPT-2.

    Raises:
        ConfigError: the model attends to an encoder.
    """
    check_decoder_only(config)
    layer_scaled = flag(config, "scale_attn_by_inverse_layer_idx", False)
    same = config.get("n_ctx") == size(config, "n_positions", 1024)
    context = {"n_ctx": "positions"} if same else {}  # the same number in old configs
    table = decoder(
        config,
        Attention(
            "attn",
            ("c_attn", "c_attn", "c_attn", "c_proj"),
            bias=(True, True),
            scaled=flag(config, "scale_attn_weights", True),
        ),
        mlp("mlp.c_fc", "mlp.c_proj", bias=True),
        layer_norms("ln_1", "ln_2", eps="layer_norm_epsilon"),
        names=("transformer.wte", "transformer.h.{layer}", "transformer.ln_f"),
        default_tied=True,
        depth="n_layer",
        sizes=SIZES,
        defaults={"ffn": 4 * size(config, "n_embd"), "head_dim": square_head_dim(config, "n_embd", "n_head")},
        rotary=0,
    )
    table = with_learned_positions(table, "transformer.wpe.weight", "n_positions", 1024)
    return replace(
        table,
        sizes={**table.sizes, **context},
        weights=tuple(stored(weight, layer_scaled) for weight in table.weights),
        other_names={"transformer.": ""},
        scaled_ends=True,
    )


def check_decoder_only(config: Config) -> None:
    """Check that a model does not attend to an encoder.

    Raises:
        ConfigError: it does.
    """
    if flag(config, "add_cross_attention", False):
        raise ConfigError(
            "config.json has add_cross_attention = true: the model is half of an encoder-decoder model, and only "
            "decoder-only models can grow."
        )


def stored(weight: Weight, layer_scaled: bool = False) -> Weight:
    """Return a weight of a layer as GPT-2 stores it: matrices as (in, out); the model divides queries by the layer."""
    if "c_attn" in weight.name:
        queries, *others = weight.parts
        weight = replace(weight, parts=(replace(queries, layer_scaled=layer_scaled), *others))
    if not weight.per_layer or len(weight.parts[0].dimensions) == 1:
        return weight
    parts = (replace(part, pattern=_reversed(part.dimensions)) for part in weight.parts)
    return replace(weight, parts=tuple(parts), fused=int(len(weight.parts) > 1))


def _reversed(dimensions: tuple[tuple[str, ...], ...]) -> str:
    return " ".join(f"({' '.join(spaces)})" for spaces in reversed(dimensions))
