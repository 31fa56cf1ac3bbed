"""Llama's layers with an MLP that has no gate: arcee, apertus, jais2, nanochat, nemotron.

Its activation is a squared ReLU, or xIELU, whose scalars are trained and stay what they are at any width.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import (
    Attention,
    Norms,
    attention_bias,
    implied_head_dim,
    layer_norms,
    mlp,
)
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import decoder
from growth.architectures.families.llama import check_whole_heads
from growth.architectures.rotary import rotary_channels


@family
def arcee(config: Config) -> Architecture:
    """Return the table of an Arcee (AFM)."""
    check_whole_heads(config, "Arcee")
    bias = flag(config, "mlp_bias", False)
    return decoder(
        config,
        Attention(bias=attention_bias(config)),
        mlp("mlp.up_proj", "mlp.down_proj", bias=bias),
        Norms(eps_default=1e-5),
    )


@family
def nemotron(config: Config) -> Architecture:
    """Return the table of a Nemotron: LayerNorms whose gains are stored as their difference from 1."""
    head_dim = implied_head_dim(config)
    size(config, "num_key_value_heads")  # which the class takes no default for
    return decoder(
        config,
        Attention(bias=attention_bias(config)),
        mlp("mlp.up_proj", "mlp.down_proj", bias=flag(config, "mlp_bias", False)),
        replace(layer_norms("input_layernorm", "post_attention_layernorm", eps="norm_eps"), offset=1.0),
        rotary=rotary_channels(config, head_dim, 0.5),
    )


@family
def jais2(config: Config) -> Architecture:
    """Return the table of a Jais 2: LayerNorms, and biases everywhere by default."""
    check_whole_heads(config, "Jais 2")
    bias = flag(config, "attention_bias", True)
    return decoder(
        config,
        Attention(bias=(bias, bias)),
        mlp("mlp.up_proj", "mlp.down_proj", bias=flag(config, "mlp_bias", True)),
        layer_norms("input_layernorm", "post_attention_layernorm"),
    )
