"""Gemma 1 to 3 (text) and VaultGemma: gains stored as their difference from 1, an embedding times sqrt(hidden_size).

Gemma 2 and 3 also normalise what attention and MLP add to the stream: the gains of those norms end the branches, and
stored as -1 they are zero. Their soft-caps act on single scores and logits, which growth does not change.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Attention, Norms, alternating_layers, attention_bias
from growth.architectures.config import Config, size
from growth.architectures.decoder import BASE, decoder
from growth.architectures.families.llama import check_whole_heads

BASES = (("full_attention", "rope_theta", 1e6), ("sliding_attention", "rope_local_base_freq", 1e4))
SANDWICH = Norms(
    before=("input_layernorm", "pre_feedforward_layernorm"),
    after=("post_attention_layernorm", "post_feedforward_layernorm"),
    offset=1.0,
)


@family
def gemma(config: Config) -> Architecture:
    """Return the table of a Gemma."""
    return decoder(
        config,
        Attention(bias=attention_bias(config)),
        norms=Norms(offset=1.0),
        embed_scaled=True,
        default_tied=True,
        defaults={"heads": 16, "head_dim": 256},
    )


@family
def gemma2(config: Config) -> Architecture:
    """Return the table of a Gemma 2: every other layer has a sliding window; the config states the softmax scale."""
    check_whole_heads(config, "Gemma 2")
    return _with_windows(config, Attention(bias=attention_bias(config), scaled=False), pattern=2)


@family
def gemma3_text(config: Config) -> Architecture:
    """Return the table of a Gemma 3 text model: a norm on each head's queries and keys, two rotary bases."""
    check_whole_heads(config, "Gemma 3")
    attention = Attention(bias=attention_bias(config), qk_norm="shared", scaled=False)
    return _with_windows(config, attention, size(config, "sliding_window_pattern", 6), BASES)


@family
def vaultgemma(config: Config) -> Architecture:
    """Return the table of a VaultGemma: a Gemma 2 without norms after attention and MLP."""
    check_whole_heads(config, "VaultGemma")
    attention = Attention(bias=attention_bias(config), scaled=False)
    return _with_windows(config, attention, pattern=2, norms=replace(SANDWICH, after=()))


def _with_windows(
    config: Config,
    attention: Attention,
    pattern: int,
    bases: tuple[tuple[str, str, float], ...] = BASE,
    norms: Norms = SANDWICH,
) -> Architecture:
    return decoder(
        config,
        attention,
        norms=norms,
        embed_scaled=True,
        default_tied=True,
        defaults={"heads": 4, "head_dim": 256},
        bases=bases,
        layer_types=alternating_layers(config, pattern),
    )
