"""StarCoder2: Llama's layers with LayerNorms, a plain MLP and biases, and a tied head."""

from dataclasses import replace

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Attention, layer_norms, mlp
from growth.architectures.config import Config, flag
from growth.architectures.decoder import decoder


@family
def starcoder2(config: Config) -> Architecture:
    """Return the table of a StarCoder2."""
    bias = flag(config, "use_bias", True)
    table = decoder(
        config,
        Attention(bias=(bias, bias)),
        mlp("mlp.c_fc", "mlp.c_proj", bias=bias),
        layer_norms("input_layernorm", "post_attention_layernorm", eps="norm_epsilon"),
        default_tied=True,
        defaults={"heads": 2},
    )
    return replace(table, initial_std=("initializer_range", 0.018042))
