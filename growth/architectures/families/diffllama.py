"""DiffLlama: differential attention (Ye et al. 2024). A head's output is the difference of two heads' attention.

KV heads come in two halves, and query heads with them. A pair of heads, one of each half, has the values of both; what
the second reads is multiplied by λ and subtracted from what the first reads, and the difference passes an RMSNorm
without a gain over the channels of the pair:

    λ = exp(λq1 · λk1) - exp(λq2 · λk2) + 0.8 - 0.6 exp(-0.3 layer)

So λ depends on the layer's number: old layers keep theirs, and new ones follow them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from growth.architectures.base import Architecture, Axis, Weight, family, linear, weight
from growth.architectures.blocks import Norms, attention_bias, grouped_heads
from growth.architectures.config import Config
from growth.architectures.decoder import SIZES, decoder
from growth.errors import ConfigError

HALVES = "differential attention subtracts one half of the heads from the other, so there are two."
NUMBERED = "its attention depends on the layer's number"
LAMBDAS = (("lambda_q1", "lambda_k1"), ("lambda_q2", "lambda_k2"))


@dataclass(frozen=True)
class DifferentialAttention:
    """The attention of a layer. bias: whether its projections have one."""

    bias: bool
    qk_norm: ClassVar[Literal[""]] = ""
    spaces: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "channels": ("head_dim",),
        "query_scaled": ("head_dim", "query_scaled"),
        "paired_channels": ("head_dim", "norm_without_gain"),
    }

    def weights(self, norm_offset: float = 0.0) -> tuple[Weight, ...]:
        """Return the vectors of λ and the projections. norm_offset: of no use, because its norm has no gain."""
        q, k, v, o = (f"self_attn.{name}_proj" for name in "qkvo")
        return (
            *(weight(f"self_attn.{query}", "channels") for query, _ in LAMBDAS),
            *(weight(f"self_attn.{key}", "channels", ("channels",)) for _, key in LAMBDAS),
            *linear(q, "(halves heads queries query_scaled)", "normed", bias=self.bias),
            *linear(k, "(halves heads channels)", "normed", bias=self.bias, also_reads=("channels",)),
            *linear(v, "(halves heads channels)", "normed", bias=self.bias),
            *linear(o, "residual", "(heads queries halves paired_channels)", bias=self.bias, branch_end=True),
        )


@family
def diffllama(config: Config) -> Architecture:
    """Return the table of a DiffLlama.

    Raises:
        ConfigError: the KV heads do not come in two halves.
    """
    heads, queries = grouped_heads(config)
    if heads.size % 2:
        raise ConfigError(
            f"config.json has num_key_value_heads = {heads.size}: DiffLlama subtracts one half of the heads from the "
            "other, so an even number is needed."
        )
    table = decoder(
        config,
        DifferentialAttention(attention_bias(config)[0]),
        norms=Norms(eps_default=1e-5),
        sizes={**SIZES, "num_attention_heads": "halves heads queries", "num_key_value_heads": "halves heads"},
        heads=(replace(heads, size=heads.size // 2), queries),
    )
    channels = replace(table.axes["head_dim"], norm="rms")
    halves = Axis("halves", 2, fixed=2, refusal=HALVES)
    return replace(table.with_axes(halves, channels), leading=table.depth, leading_reason=NUMBERED)
