"""GLM-4 as `glm`, and as `glm4` with a norm after each branch: partial rotary embedding, gate and up in one weight.

The rotary channels are the leading ones, and neighbours are a pair.
"""

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Attention, Norms, gated_mlp
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import decoder
from growth.architectures.rotary import rotary_channels


@family
def glm(config: Config) -> Architecture:
    """Return the table of a GLM."""
    return _glm(config)


@family
def glm4(config: Config) -> Architecture:
    """Return the table of a GLM-4 of 2025: RMSNorms after attention and MLP."""
    return _glm(config, "post_self_attn_layernorm", "post_mlp_layernorm")


def _glm(config: Config, *after: str) -> Architecture:
    head_dim = size(config, "head_dim", 128)
    return decoder(
        config,
        Attention(bias=(flag(config, "attention_bias", True), False)),
        gated_mlp(projections=("gate_up_proj", "gate_up_proj", "down_proj")),
        Norms(after=after, eps_default=1.5625e-7),
        defaults={"heads": 2, "head_dim": head_dim},
        rotary=rotary_channels(config, head_dim, 0.5),
        pairs="neighbours",
    )
