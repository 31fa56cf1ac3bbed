"""Phi-3, Phi-3.5 and Phi-4 (model_type "phi3"): Llama's mathematics in fused weights, partial rotary embedding."""

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Attention, Norms, gated_mlp, implied_head_dim
from growth.architectures.config import Config, size
from growth.architectures.decoder import decoder
from growth.architectures.rotary import rope, rotary_channels, rotary_share
from growth.errors import ConfigError


@family
def phi3(config: Config) -> Architecture:
    """Return the table of a Phi-3."""
    _check_factors(config)
    return decoder(
        config,
        Attention(projections=("qkv_proj", "qkv_proj", "qkv_proj", "o_proj")),
        gated_mlp(projections=("gate_up_proj", "gate_up_proj", "down_proj")),
        Norms(eps_default=1e-5),
        rotary=rotary_channels(config, implied_head_dim(config), 1.0),
    )


def _check_factors(config: Config) -> None:
    """Check the number of longrope's factors, one per frequency, which the config class counts without head_dim."""
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    rotary = int(hidden // heads * rotary_share(config, 1.0))
    for key in ("short_factor", "long_factor"):
        factors = rope(config, key, None)
        if not isinstance(factors, list | None):
            raise ConfigError(f"config.json has {key} = {factors!r}; a list of numbers is needed.")
        if factors is not None and len(factors) != rotary // 2:
            raise ConfigError(
                f"Phi3's config takes hidden_size // num_attention_heads = {hidden // heads} as head_dim and needs "
                f"{rotary // 2} numbers in {key}, which has {len(factors)}. Grow residual together with heads, "
                "queries or head_dim so that the quotient is head_dim."
            )
