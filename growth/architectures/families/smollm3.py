"""SmolLM3: a Llama in which some layers have no RoPE (NoPE) and may have a sliding window."""

from dataclasses import replace

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import attention_bias, implied_head_dim, rotary_of_layers
from growth.architectures.config import Config, flag, of_layers, size
from growth.architectures.families.llama import decoder


@family
def smollm3(config: Config) -> Architecture:
    """Return the table of a SmolLM3."""
    rope = rope_layers(config)
    table = decoder(
        config,
        bias=attention_bias(config),
        mlp_bias=flag(config, "mlp_bias", False),
        default_kv=4,
        default_tied=True,
        rotary=rotary_of_layers(rope, implied_head_dim(config)),
        bases=(("", "rope_theta", 2e6),),
    )
    return replace(table, layer_lists={"no_rope_layers": rope, "layer_types": _layer_types(config, rope)})


def rope_layers(config: Config) -> list[int]:
    """Return no_rope_layers, which is 1 for layers with RoPE: as stated, or 0 for every fourth layer or so."""
    depth = size(config, "num_hidden_layers")
    stated = of_layers(config, "no_rope_layers", (int, bool), spare=True)
    if stated is not None:
        return stated
    interval = size(config, "no_rope_layer_interval", 4)
    return [int((layer + 1) % interval != 0) for layer in range(depth)]


def _layer_types(config: Config, rope: list[int]) -> list[str]:
    """Return layer_types as stated, or a window on every layer without RoPE."""
    stated = of_layers(config, "layer_types")
    if stated is not None:
        return stated
    windows = flag(config, "use_sliding_window", False) and config.get("sliding_window") is not None
    return ["sliding_attention" if windows and not has_rope else "full_attention" for has_rope in rope]
