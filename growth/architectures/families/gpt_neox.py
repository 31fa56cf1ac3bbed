"""GPT-NeoX, Pythia, Persimmon: LayerNorms with biases, partial rotary embedding, attention and MLP in parallel or not.

Queries, keys and values of each head stand together in one weight. Old configs name the rotary parameters
rotary_pct and rotary_emb_base, old files the head embed_out.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Attention, layer_norms, mlp, square_head_dim
from growth.architectures.config import Config, flag
from growth.architectures.decoder import UNGROUPED, decoder
from growth.architectures.rotary import rotary_channels

ROPE_NAMES = {"partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"}


@family
def gpt_neox(config: Config) -> Architecture:
    """Return the table of a GPT-NeoX or Pythia."""
    head_dim = square_head_dim(config)
    bias = flag(config, "attention_bias", True)
    table = decoder(
        config,
        Attention("attention", ("query_key_value",) * 3 + ("dense",), bias=(bias, bias), within=("heads",)),
        mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=True),
        layer_norms("input_layernorm", "post_attention_layernorm"),
        names=("gpt_neox.embed_in", "gpt_neox.layers.{layer}", "gpt_neox.final_layer_norm"),
        sizes=UNGROUPED,
        defaults={"head_dim": head_dim},
        rotary=rotary_channels(config, head_dim, 0.25, ROPE_NAMES["partial_rotary_factor"]),
    )
    return replace(table, rope_names=ROPE_NAMES, other_names={"lm_head.": "embed_out."})


@family
def persimmon(config: Config) -> Architecture:
    """Return the table of a Persimmon: in sequence, with a LayerNorm on each head's queries and keys."""
    head_dim = square_head_dim(config)
    return decoder(
        config,
        Attention(
            projections=("query_key_value",) * 3 + ("dense",),
            bias=(True, True),
            within=("heads",),
            qk_norm="shared" if flag(config, "qk_layernorm", True) else "",
            qk_norm_names=("q_layernorm", "k_layernorm"),
            qk_norm_bias=True,
        ),
        mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=True),
        layer_norms("input_layernorm", "post_attention_layernorm"),
        names=("model.embed_tokens", "model.layers.{layer}", "model.final_layernorm"),
        sizes=UNGROUPED,
        defaults={"head_dim": head_dim},
        rotary=rotary_channels(config, head_dim, 0.5),
    )
