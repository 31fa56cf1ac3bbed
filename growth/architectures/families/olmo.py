"""OLMo, OLMo 2 and OLMo 3.

OLMo has LayerNorms without weights, whose eps its code fixes. OLMo 2 and 3 have RMSNorms on the outputs of attention
and MLP instead of their inputs, and one each on the queries and on the keys of all heads.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import (
    Attention,
    Norms,
    alternating_layers,
    attention_bias,
    implied_head_dim,
    layer_types,
)
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import decoder
from growth.architectures.rotary import rotary_of_layers

BASES = tuple((layer_type, "rope_theta", 5e5) for layer_type in ("full_attention", "sliding_attention"))
BARE = Norms(kind="layer", gain=False, eps=None)
AFTER = Norms(before=(), after=("post_attention_layernorm", "post_feedforward_layernorm"), eps_default=1e-5)
# Let the tied matrix hold a unit's copies with coefficients w, a = sum(w^2). The logits are then
#     a x E / sqrt(a n/N var + eps),   and must be   x E / sqrt(var + eps)   for every var:
# a^2 = a n/N by the terms in var, a^2 = 1 by those in eps. So N = n; fresh units of any energy only add to eps.
TIED = (
    "its norms have no gain that could undo what a wider stream does to a head that is also the embedding. Untie the "
    "head first (op: untie)."
)


@family
def olmo(config: Config) -> Architecture:
    """Return the table of an OLMo."""
    table = decoder(config, Attention(bias=attention_bias(config)), norms=BARE)
    if not flag(config, "tie_word_embeddings", False):
        return table
    return table.with_axes(replace(table.axes["residual"], refusal=TIED))


@family
def olmo2(config: Config) -> Architecture:
    """Return the table of an OLMo 2."""
    return decoder(config, Attention(bias=attention_bias(config), qk_norm="across"), norms=AFTER)


@family
def olmo3(config: Config) -> Architecture:
    """Return the table of an OLMo 3: all layers but every fourth have a sliding window."""
    return replace(olmo2(config), layer_lists={"layer_types": alternating_layers(config, 4)}, bases=BASES)


@family
def exaone4(config: Config) -> Architecture:
    """Return the table of an EXAONE 4: norms like OLMo 2's, but of each head's queries and keys.

    RoPE applies to the layers with a sliding window alone, or to all if sliding_window is null.
    """
    windows = config.get("sliding_window", 4096) is not None
    kinds = layer_types(config, lambda layer: (layer + 1) % size(config, "sliding_window_pattern", 4) != 0)
    rope = [kind == "sliding_attention" or not windows for kind in kinds]
    return decoder(
        config,
        Attention(qk_norm="shared"),
        norms=AFTER,
        defaults={"heads": 32},
        rotary=rotary_of_layers(rope, implied_head_dim(config)),
        layer_types=kinds,
    )
