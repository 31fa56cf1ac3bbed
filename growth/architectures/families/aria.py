"""The text model of Aria: experts in stacks stored (in, out), and experts that all tokens share."""

from growth.architectures.base import Architecture, Weight, WeightPart, family, linear, weight
from growth.architectures.blocks import Attention, attention_bias, gated_mlp
from growth.architectures.config import Config, flag
from growth.architectures.decoder import SIZES, decoder
from growth.architectures.families.llama import check_whole_heads
from growth.architectures.mixtures import mixture

PROJECTION = WeightPart("experts normed ffn", ("normed",))


@family
def aria_text(config: Config) -> Architecture:
    """Return the table of the text model of an Aria."""
    check_whole_heads(config, "Aria")
    table = decoder(
        config,
        Attention(bias=attention_bias(config)),
        (
            *linear("mlp.router", "experts", "normed"),
            Weight("mlp.experts.fc1.weight", (PROJECTION, PROJECTION), fused=2),
            weight("mlp.experts.fc2.weight", "experts ffn residual", ("ffn",), branch_end=True),
            *gated_mlp("mlp.shared_experts", bias=flag(config, "mlp_bias", False), axis="(shared_experts ffn)"),
        ),
        sizes={**SIZES, "moe_num_experts": "experts", "moe_num_shared_experts": "shared_experts"},
        defaults={"experts": 8, "shared_experts": 2},
    )
    return mixture(table, 2, "moe_topk")
