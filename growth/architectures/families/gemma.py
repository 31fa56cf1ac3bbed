"""Gemma, Gemma 2 and Gemma 3 (text): gains stored as their difference from 1, an embedding times sqrt(hidden_size).

Gemma 2 and 3 also normalise what attention and MLP add to the stream: the gains of those norms end the branches, and
stored as -1 they are zero. Their soft-caps act on single scores and logits, which growth does not change.
"""

from collections.abc import Sequence

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import BASE, Norms, alternating_layers, attention_bias
from growth.architectures.config import Config, size
from growth.architectures.families.llama import check_whole_heads, decoder

BASES = (("full_attention", "rope_theta", 1e6), ("sliding_attention", "rope_local_base_freq", 1e4))
SANDWICH = Norms(
    before=("input_layernorm", "pre_feedforward_layernorm"),
    after=("post_attention_layernorm", "post_feedforward_layernorm"),
    offset=1.0,
)


@family
def gemma(config: Config) -> Architecture:
    """Return the table of a Gemma."""
    return _gemma(config, default_kv=16, scaled=True, norms=Norms(offset=1.0))


@family
def gemma2(config: Config) -> Architecture:
    """Return the table of a Gemma 2: every other layer has a sliding window; the config states the softmax scale."""
    check_whole_heads(config, "Gemma 2")
    return _gemma(config, layer_types=alternating_layers(config, 2))


@family
def gemma3_text(config: Config) -> Architecture:
    """Return the table of a Gemma 3 text model: a norm on each head's queries and keys, two rotary bases."""
    check_whole_heads(config, "Gemma 3")
    layer_types = alternating_layers(config, size(config, "sliding_window_pattern", 6))
    return _gemma(config, qk_norm=True, layer_types=layer_types, bases=BASES)


def _gemma(
    config: Config,
    *,
    default_kv: int = 4,
    qk_norm: bool = False,
    scaled: bool = False,
    norms: Norms = SANDWICH,
    layer_types: Sequence[str] | None = None,
    bases: tuple[tuple[str, str, float], ...] = BASE,
) -> Architecture:
    return decoder(
        config,
        bias=attention_bias(config),
        default_kv=default_kv,
        default_head_dim=256,
        default_tied=True,
        qk_norm=qk_norm,
        scaled=scaled,
        embedding="before_embed_scale",
        norms=norms,
        layer_types=layer_types,
        bases=bases,
    )
