"""BitNet: Llama's layers with an RMSNorm in front of each branch's last weight, over all heads and over all neurons.

The up projection of the MLP is linear, so it takes the coefficients that the norm over the neurons undoes; its gate
takes none. In the same way the values of a head take those of the norm over all heads, and queries and keys take none.
But query heads share the values of their KV head, and no weight multiplies one of them alone. So all must have equally
many copies, and a fresh one would attend to these values, too, and change the mean square.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from growth.architectures.base import Architecture, Axis, Weight, family, linear, norm
from growth.architectures.blocks import Norms, attention_bias, check_square, grouped_heads, implied_head_dim
from growth.architectures.config import Config
from growth.architectures.decoder import decoder, rope_refusal

SHARED_VALUES = (
    "a norm runs over the outputs of all query heads, and those of one KV head share its values, so only equally many "
    "copies of each keep the mean square."
)
ATTENDED = "(normed_heads queries channels)"
MLP = (
    *linear("mlp.gate_proj", "gated", "normed"),
    *linear("mlp.up_proj", "ffn", "normed"),
    *norm("mlp.ffn_sub_norm", "ffn", "normed_ffn", bias=False),
    *linear("mlp.down_proj", "residual", "normed_ffn", branch_end=True),
)


@dataclass(frozen=True)
class _Attention:
    """An attention with a norm over the outputs of all heads. bias: of q, k and v, and of the output."""

    bias: tuple[bool, bool]
    qk_norm: str = ""

    @property
    def spaces(self) -> Mapping[str, tuple[str, ...]]:
        return {
            "channels": ("head_dim", "normed"),
            "query_scaled": ("head_dim", "normed", "query_scaled"),
            "scored_heads": ("heads", "in_full", "normed"),
            "normed_heads": ("heads", "normed"),
            "gated": ("ffn", "in_full", "normed"),
            "normed_ffn": ("ffn", "normed"),
        }

    def weights(self, norm_offset: float = 0.0) -> tuple[Weight, ...]:
        inner, outer = self.bias
        return (
            *linear("self_attn.q_proj", "(scored_heads queries query_scaled)", "normed", bias=inner),
            *linear("self_attn.k_proj", "(scored_heads channels)", "normed", bias=inner, also_reads=("channels",)),
            *linear("self_attn.v_proj", "(heads head_dim)", "normed", bias=inner),
            *norm("self_attn.attn_sub_norm", "(heads queries head_dim)", ATTENDED, bias=False, offset=norm_offset),
            *linear("self_attn.o_proj", "residual", ATTENDED, bias=outer, branch_end=True),
        )


@family
def bitnet(config: Config) -> Architecture:
    """Return the table of a BitNet."""
    check_square({"head_dim": None, **config}, "BitNet norms")
    heads, queries = grouped_heads(config, default_kv=5)
    head_dim = implied_head_dim(config)
    rotary = Axis("head_dim", head_dim, "rms", fixed=head_dim, rotary_pairs="halves", refusal=rope_refusal(config))
    table = decoder(
        config,
        _Attention(attention_bias(config)),
        MLP,
        Norms(eps_default=1e-5),
        heads=(replace(heads, norm="rms"), replace(queries, equal_copies=SHARED_VALUES)),
        channels=(rotary,),
        bases=(("", "rope_theta", 5e5),),
    )
    return replace(table.with_axes(replace(table.axes["ffn"], norm="rms")), norms=(("heads", "queries", "head_dim"),))
