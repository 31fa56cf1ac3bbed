"""SmolLM3: a Llama in which some layers have no RoPE (NoPE) and may have a sliding window."""

from dataclasses import replace

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import (
    Attention,
    attention_bias,
    gated_mlp,
    implied_head_dim,
    layer_types,
)
from growth.architectures.config import Config, flag, of_layers, size
from growth.architectures.decoder import decoder
from growth.architectures.rotary import rotary_of_layers


@family
def smollm3(config: Config) -> Architecture:
    """Return the table of a SmolLM3."""
    rope = rope_layers(config)

    def has_window(layer: int) -> bool:
        windows = flag(config, "use_sliding_window", False) and config.get("sliding_window") is not None
        return windows and not rope[layer]

    table = decoder(
        config,
        Attention(bias=attention_bias(config)),
        gated_mlp(bias=flag(config, "mlp_bias", False)),
        default_tied=True,
        defaults={"heads": 4},
        rotary=rotary_of_layers(rope, implied_head_dim(config)),
        bases=(("", "rope_theta", 2e6),),
    )
    return replace(table, layer_lists={"no_rope_layers": rope, "layer_types": layer_types(config, has_window)})


def rope_layers(config: Config) -> list[int]:
    """Return no_rope_layers, which is 1 for layers with RoPE: as stated, or 0 for every fourth layer or so."""
    depth = size(config, "num_hidden_layers")
    stated = of_layers(config, "no_rope_layers", (int, bool), spare=True)
    if stated is not None:
        return stated
    interval = size(config, "no_rope_layer_interval", 4)
    return [int((layer + 1) % interval != 0) for layer in range(depth)]
