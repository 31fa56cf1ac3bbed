"""Command R (model_type "cohere") and R7B (cohere2).

Attention and gated MLP in parallel behind one LayerNorm without bias, a tied head. Cohere can normalise each head's
queries and keys, with a gain of its own for each head. In Cohere2, RoPE applies to the sliding layers alone.
"""

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Norms, alternating_layers, attention_bias, implied_head_dim, rotary_of_layers
from growth.architectures.config import Config, flag, size
from growth.architectures.families.llama import decoder

NORMS = Norms(before=("input_layernorm",), kind="layer", eps="layer_norm_eps", eps_default=1e-5)


@family
def cohere(config: Config) -> Architecture:
    """Return the table of a Cohere model."""
    qk_norm = flag(config, "use_qk_norm", False)
    bias = attention_bias(config)
    return decoder(config, bias=bias, default_tied=True, norms=NORMS, qk_norm=qk_norm, own_gains=qk_norm)


@family
def cohere2(config: Config) -> Architecture:
    """Return the table of a Cohere2 model."""
    layer_types = alternating_layers(config, size(config, "sliding_window_pattern", 4))
    rotary = rotary_of_layers([kind == "sliding_attention" for kind in layer_types], implied_head_dim(config))
    bias = attention_bias(config)
    return decoder(config, bias=bias, default_tied=True, norms=NORMS, rotary=rotary, layer_types=layer_types)
