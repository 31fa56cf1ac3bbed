"""GLM-4 as `glm`, and as `glm4` with a norm behind each branch: partial rotary embedding, gate and up in one weight.

The rotary channels are the leading ones. Neighbours are a pair, which makes no difference here.
"""

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Norms
from growth.architectures.config import Config, flag, size
from growth.architectures.families.llama import decoder
from growth.architectures.rotary import rotary_channels


@family
def glm(config: Config) -> Architecture:
    """Return the table of a GLM."""
    return _glm(config)


@family
def glm4(config: Config) -> Architecture:
    """Return the table of a GLM-4 of 2025: RMSNorms behind attention and MLP."""
    return _glm(config, post_norms=("post_self_attn_layernorm", "post_mlp_layernorm"))


def _glm(config: Config, post_norms: tuple[str, ...] = ()) -> Architecture:
    head_dim = size(config, "head_dim", 128)
    return decoder(
        config,
        bias=(flag(config, "attention_bias", True), False),
        default_kv=2,
        head_dim=head_dim,
        rotary=rotary_channels(config, head_dim, 0.5),
        fused_mlp="gate_up_proj",
        norms=Norms(after=post_norms, eps_default=1.5625e-7),
    )
