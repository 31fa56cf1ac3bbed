"""GPT-J: attention and MLP in parallel after one LayerNorm, a head with a bias.

The config states the number of rotary channels, neighbours are a pair, and the rotary base is fixed.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Attention, layer_norms, mlp, square_head_dim
from growth.architectures.config import Config, size
from growth.architectures.decoder import decoder
from growth.architectures.families.gpt2 import SIZES
from growth.errors import ConfigError


@family
def gptj(config: Config) -> Architecture:
    """Return the table of a GPT-J.

    Raises:
        ConfigError: rotary_dim is odd or above head_dim.
    """
    head_dim = square_head_dim(config, "n_embd", "n_head")
    rotary = size(config, "rotary_dim", 64)
    if rotary > head_dim or rotary % 2:
        raise ConfigError(
            f"config.json has rotary_dim = {rotary}, and heads of {head_dim} channels: they come in pairs, so an "
            f"even number of at most {head_dim} is needed."
        )
    table = decoder(
        config,
        Attention("attn", ("q_proj", "k_proj", "v_proj", "out_proj")),
        mlp("mlp.fc_in", "mlp.fc_out", bias=True),
        layer_norms("ln_1", eps="layer_norm_epsilon"),
        names=("transformer.wte", "transformer.h.{layer}", "transformer.ln_f"),
        head_bias=True,
        depth="n_layer",
        sizes=SIZES,
        defaults={"ffn": 4 * size(config, "n_embd"), "head_dim": head_dim},
        rotary=rotary,
        pairs="neighbours",
    )
    return replace(table, rotary=None, rotary_key="rotary_dim")  # not a fraction of head_dim in this config
