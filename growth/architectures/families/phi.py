"""Phi-1, Phi-1.5, Phi-2 (model_type "phi").

Attention and MLP in parallel after one LayerNorm, biases everywhere, partial rotary embedding, an untied head with a
bias. Attention and MLP both end in the residual stream, so a layer is the identity if `dense` and `fc2` are zero.
"""

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Attention, grouped_heads, layer_norms, mlp
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import decoder
from growth.architectures.rotary import rotary_channels
from growth.errors import ConfigError


@family
def phi(config: Config) -> Architecture:
    """Return the table of a Phi model."""
    heads, queries = grouped_heads(config)
    per_head = size(config, "hidden_size") // (heads.size * queries.size)
    head_dim = size(config, "head_dim", per_head or None)
    qk_norm = flag(config, "qk_layernorm", False)
    if qk_norm and per_head != head_dim:
        raise ConfigError(
            f"Phi with qk_layernorm normalises hidden_size // num_attention_heads = {per_head} channels "
            f"per head, and head_dim is {head_dim}. Grow residual, heads and head_dim so that they agree."
        )
    return decoder(
        config,
        Attention(
            projections=("q_proj", "k_proj", "v_proj", "dense"),
            bias=(True, True),
            qk_norm="shared" if qk_norm else "",
            qk_norm_names=("q_layernorm", "k_layernorm"),
            qk_norm_bias=True,
        ),
        mlp("mlp.fc1", "mlp.fc2", bias=True),
        layer_norms("input_layernorm"),
        names=("model.embed_tokens", "model.layers.{layer}", "model.final_layernorm"),
        head_bias=True,
        defaults={"head_dim": head_dim},
        rotary=rotary_channels(config, head_dim, 0.5),
    )
