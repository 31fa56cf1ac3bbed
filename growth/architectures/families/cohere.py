"""Command R (model_type "cohere") and R7B (cohere2).

Attention and gated MLP in parallel after one LayerNorm without bias, a tied head, rotary pairs of neighbours. Cohere
can normalise each head's queries and keys, with a gain of its own for each head. In Cohere2, RoPE applies to the
sliding layers alone; in the text model of Cohere Compass, each kind of layer has a base of its own or no RoPE.
"""

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import (
    Attention,
    alternating_layers,
    attention_bias,
    implied_head_dim,
    layer_norms,
    layer_types,
    square_head_dim,
)
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import decoder
from growth.architectures.rotary import nested_rope, rotary_of_layers
from growth.errors import ConfigError

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


@family
def cohere_compass_text(config: Config) -> Architecture:
    """Return the table of the text model of a Cohere Compass: rotary pairs of halves, RoPE or none by kind of layer."""
    kinds = layer_types(config, lambda layer: False)
    head_dim, rope = square_head_dim(config), nested_rope(config)
    unsaid = sorted({*kinds} - rope.keys())
    if unsaid:
        raise ConfigError(
            f"config.json has no rope_parameters of {', '.join(unsaid)}, which the class needs for every type in "
            "layer_types. State them, or null for layers without RoPE."
        )
    return decoder(
        config,
        Attention(bias=attention_bias(config)),
        norms=NORMS,
        default_tied=True,
        defaults={"head_dim": head_dim},
        rotary=rotary_of_layers([rope[kind] for kind in kinds], head_dim),
        bases=tuple((kind, "rope_theta", 1e4) for kind in sorted({*kinds}) if rope[kind]),
        layer_types=kinds,
    )
