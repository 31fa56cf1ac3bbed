"""GPT-OSS: attention sinks, and experts with biases and a clamped gate, stacked with gate and up projection in turns.

A sink is a score of its head's softmax: it is copied with the head, and no other axis changes the scores. The gate is
computed for each unit by itself.
"""

from growth.architectures.base import Architecture, Weight, WeightPart, family, linear, weight
from growth.architectures.blocks import Attention, Norms, alternating_layers, optional_head_dim
from growth.architectures.config import Config, flag, number
from growth.architectures.decoder import SIZES, decoder
from growth.architectures.mixtures import mixture
from growth.architectures.rotary import with_default_rope

INTERLEAVED = WeightPart("experts normed ffn", ("normed",))


@family
def gpt_oss(config: Config) -> Architecture:
    """Return the table of a GPT-OSS; of its layers, every second one has a sliding window, from the first."""
    bias = flag(config, "attention_bias", True)
    config = with_default_rope(
        config,
        rope_type="yarn",
        rope_theta=number(config, "rope_theta", 1.5e5),
        factor=32.0,
        beta_fast=32.0,
        beta_slow=1.0,
        truncate=False,
        original_max_position_embeddings=4096,
    )
    experts = (
        *linear("mlp.router", "experts", "normed", bias=True),
        Weight("mlp.experts.gate_up_proj", (INTERLEAVED, INTERLEAVED), fused=2, within=("ffn",)),
        Weight("mlp.experts.gate_up_proj_bias", (WeightPart("experts ffn"),) * 2, fused=1, within=("ffn",)),
        weight("mlp.experts.down_proj", "experts ffn residual", ("ffn",), branch_end=True),
        weight("mlp.experts.down_proj_bias", "experts residual", branch_end=True),
    )
    table = decoder(
        config,
        Attention(bias=(bias, bias), sinks="sinks"),
        experts,
        Norms(eps_default=1e-5),
        sizes={**SIZES, "num_local_experts": "experts"},
        defaults={"heads": 8, "head_dim": optional_head_dim(config, 64), "experts": 128},
        bases=(("", "rope_theta", 1.5e5),),
        layer_types=alternating_layers(config, 2),
    )
    return mixture(table, top_k=4)
