"""JetMoE: experts of attention (MoA), each with query heads of its own that share keys and values, and of the MLP.

A token's attention experts have num_key_value_heads query heads each, which attend with the same keys and values. What
they read is added with the router's weights, like the outputs of MLP experts. So num_attention_heads, which the class
computes, counts the heads of all experts of a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from growth.architectures.base import Architecture, Axis, Weight, family, linear, weight
from growth.architectures.blocks import side_by_side
from growth.architectures.config import Config, size
from growth.architectures.decoder import decoder
from growth.architectures.mixtures import mixture, stacked_mlp

SIZES = {
    "hidden_size": "residual",
    "intermediate_size": "ffn",
    "num_key_value_heads": "heads",
    "kv_channels": "head_dim",
    "num_local_experts": "experts",
    "vocab_size": "vocab",
}
OWN_QUERIES = "the query heads of a KV head are those of the experts that a token goes to. Grow experts instead."
OWN_EPS = "the norms of its layers have an eps of the class"


@dataclass(frozen=True)
class ExpertAttention:
    """The attention of a layer."""

    qk_norm: ClassVar[Literal[""]] = ""
    spaces: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "channels": ("head_dim",),
        "query_scaled": ("head_dim", "query_scaled"),
    }

    def weights(self, norm_offset: float = 0.0) -> tuple[Weight, ...]:
        """Return the experts with their router, and the keys and values that they share. norm_offset: of no use."""
        experts, joint = "self_attention.experts", "self_attention.kv_proj"
        return (
            weight(f"{experts}.bias", "residual", branch_end=True),
            weight(f"{experts}.input_linear.weight", "experts (heads query_scaled) normed", ("normed",)),
            weight(
                f"{experts}.output_linear.weight",
                "experts residual (heads channels)",
                ("heads", "channels"),
                branch_end=True,
            ),
            *linear(f"{experts}.router.layer", "experts", "normed"),
            *side_by_side(
                *linear(joint, "(heads channels)", "normed", also_reads=("channels",)),
                *linear(joint, "(heads channels)", "normed"),
            ),
        )


@family
def jetmoe(config: Config) -> Architecture:
    """Return the table of a JetMoE."""
    table = decoder(
        {key: value for key, value in config.items() if key != "num_attention_heads"},
        ExpertAttention(),
        (
            weight("mlp.bias", "residual", branch_end=True),
            *stacked_mlp("mlp.input_linear.weight", "mlp.output_linear.weight"),
            *linear("mlp.router.layer", "experts", "normed"),
        ),
        default_tied=True,
        sizes=SIZES,
        defaults={"head_dim": size(config, "kv_channels", 128), "experts": 8, "heads": 16},
        heads=(Axis("heads", size(config, "num_key_value_heads", 16)), Axis("queries", 1, refusal=OWN_QUERIES)),
    )
    return replace(mixture(table, top_k=2), eps=None, no_rescale=OWN_EPS)
