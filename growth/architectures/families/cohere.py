"""Command R (model_type "cohere") and R7B (cohere2).

Attention and gated MLP in parallel after one LayerNorm without bias, a tied head, rotary pairs of neighbours. Cohere
can normalise each head's queries and keys, with a gain of its own for each head. In Cohere2, RoPE applies to the
sliding layers alone.
"""

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Attention, alternating_layers, attention_bias, implied_head_dim, layer_norms
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import decoder
from growth.architectures.rotary import rotary_of_layers

NORMS = layer_norms("input_layernorm", bias=False)
BASE_OF_COHERE = (("", "rope_theta", 5e5),)


@family
def cohere(config: Config) -> Architecture:
    """Return the table of a Cohere model."""
    attention = Attention(bias=attention_bias(config), qk_norm="own" if flag(config, "use_qk_norm", False) else "")
    return decoder(config, attention, norms=NORMS, default_tied=True, bases=BASE_OF_COHERE, pairs="neighbours")


@family
def cohere2(config: Config) -> Architecture:
    """Return the table of a Cohere2 model."""
    kinds = alternating_layers(config, size(config, "sliding_window_pattern", 4))
    rotary = rotary_of_layers([kind == "sliding_attention" for kind in kinds], implied_head_dim(config))
    attention = Attention(bias=attention_bias(config))
    return decoder(
        config, attention, norms=NORMS, default_tied=True, rotary=rotary, pairs="neighbours", layer_types=kinds
    )
