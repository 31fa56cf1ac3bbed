"""StableLM: Llama's layers with LayerNorms and partial rotary embedding, attention and MLP in parallel or not.

With qk_layernorm, every head has its own gain for queries (and keys), stored as a tensor of its own.
"""

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Attention, layer_norms, square_head_dim
from growth.architectures.config import Config, flag
from growth.architectures.decoder import decoder
from growth.architectures.rotary import rotary_channels


@family
def stablelm(config: Config) -> Architecture:
    """Return the table of a StableLM."""
    head_dim = square_head_dim(config)
    parallel = flag(config, "use_parallel_residual", False)
    return decoder(
        config,
        Attention(
            bias=(flag(config, "use_qkv_bias", False), False),
            qk_norm="shared" if flag(config, "qk_layernorm", False) else "",
            qk_norm_names=("q_layernorm.norms.{query_head}", "k_layernorm.norms.{head}"),
        ),
        norms=layer_norms("input_layernorm", *([] if parallel else ["post_attention_layernorm"])),
        defaults={"heads": 32, "head_dim": head_dim},
        rotary=rotary_channels(config, head_dim, 0.25),
    )
