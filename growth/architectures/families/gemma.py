"""Gemma, Gemma 2 and Gemma 3 (text): gains stored as what they differ from 1, an embedding times sqrt(hidden_size).

Gemma 2 and 3 norm what attention and MLP add to the stream as well: the gains of those norms end the branches,
and stored as -1 they are zero. Their soft-caps are elementwise, on scores and logits that stay as they are.
"""

from growth.architectures.base import Architecture
from growth.architectures.blocks import BASE, Norms, alternating_layers
from growth.architectures.config import Config, flag, size
from growth.architectures.families.llama import check_whole_heads, decoder

BASES = (("full_attention", "rope_theta", 1e6), ("sliding_attention", "rope_local_base_freq", 1e4))
NORMS = Norms(offset=1.0)
SANDWICH = Norms(
    before=("input_layernorm", "pre_feedforward_layernorm"),
    after=("post_attention_layernorm", "post_feedforward_layernorm"),
    offset=1.0,
)


def gemma(config: Config) -> Architecture:
    """The table of one Gemma."""
    bias = flag(config, "attention_bias", False)
    return decoder(
        config,
        gemma,
        bias=(bias, bias),
        default_kv=16,
        default_head_dim=256,
        default_tied=True,
        embedding="before_embed_scale",
        norms=NORMS,
        bases=BASE,
    )


def gemma2(config: Config) -> Architecture:
    """The table of one Gemma 2: every other layer has a sliding window; the softmax scale is in the config."""
    check_whole_heads(config, "Gemma 2")
    bias = flag(config, "attention_bias", False)
    return decoder(
        config,
        gemma2,
        bias=(bias, bias),
        default_kv=4,
        default_head_dim=256,
        default_tied=True,
        scaled=False,
        embedding="before_embed_scale",
        norms=SANDWICH,
        layer_types=alternating_layers(config, 2),
        bases=BASE,
    )


def gemma3_text(config: Config) -> Architecture:
    """The table of one Gemma 3 text model: a norm on each head's queries and keys, two rotary bases."""
    check_whole_heads(config, "Gemma 3")
    bias = flag(config, "attention_bias", False)
    return decoder(
        config,
        gemma3_text,
        bias=(bias, bias),
        default_kv=4,
        default_head_dim=256,
        default_tied=True,
        qk_norm=True,
        scaled=False,
        embedding="before_embed_scale",
        norms=SANDWICH,
        layer_types=alternating_layers(config, size(config, "sliding_window_pattern", 6)),
        bases=BASES,
    )
