"""BioGPT: OPT's layers behind a scaled embedding. The eps of its LayerNorms is torch's, whatever its config states."""

from dataclasses import replace

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Attention, layer_norms, mlp, square_head_dim
from growth.architectures.config import Config, flag
from growth.architectures.decoder import SIZES, decoder, with_learned_positions

ATTENTION = Attention(projections=("q_proj", "k_proj", "v_proj", "out_proj"), bias=(True, True))
MLP = mlp("fc1", "fc2", bias=True)
NORMS = replace(layer_norms("self_attn_layer_norm", "final_layer_norm"), eps=None)
NO_EPS = "its class reads no eps from the config"
OWN_KEYS = {key: axes for key, axes in SIZES.items() if key != "num_key_value_heads"} | {"num_attention_heads": "heads"}


@family
def biogpt(config: Config) -> Architecture:
    """Return the table of a BioGPT."""
    table = decoder(
        config,
        ATTENTION,
        MLP,
        NORMS,
        names=("biogpt.embed_tokens", "biogpt.layers.{layer}", "biogpt.layer_norm"),
        head="output_projection",
        embed_scaled=flag(config, "scale_embedding", True),
        default_tied=True,
        sizes=OWN_KEYS,
        defaults={"head_dim": square_head_dim(config)},
        rotary=0,
    )
    learned = "biogpt.embed_positions.weight"
    return replace(
        with_learned_positions(table, learned, "max_position_embeddings", 1024, reserved=2), no_rescale=NO_EPS
    )
