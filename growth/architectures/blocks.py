"""Blocks that many families share: axes of grouped-query attention, weights of attention and MLP."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from growth.architectures.base import Axis, Weight, linear, norm
from growth.architectures.config import Config, divide, flag, of_layers, size
from growth.errors import ConfigError

WHOLE_ROPE = (
    "RoPE covers the whole head here: adding channels would change every frequency, and this config cannot express "
    "partial rotary embedding. Widen heads instead."
)
BASE = (("", "rope_theta", 1e4),)  # of the rotary embedding, as Architecture.bases
OWN_KEYS = (
    "every query head of this family has its own KV head, so its config cannot express several query heads per KV "
    "head. Widen heads instead."
)
LAYER = "model.layers.{layer}"
# the usual config keys, and the axes whose product they are
SIZES = {
    "hidden_size": "residual",
    "intermediate_size": "ffn",
    "num_attention_heads": "heads queries",
    "num_key_value_heads": "heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab",
}


def grouped_heads(config: Config, default_kv: int | None = None) -> tuple[int, int]:
    """Return the number of KV heads, and of query heads per KV head.

    default_kv: the KV heads of a config without that key; null stands for one per query head.
    """
    all_queries = size(config, "num_attention_heads")
    unsaid = "num_key_value_heads" not in config
    heads = size(config, "num_key_value_heads", default_kv if unsaid and default_kv else all_queries)
    return heads, divide("num_attention_heads", all_queries, "num_key_value_heads", heads)


def attention_bias(config: Config) -> tuple[bool, bool]:
    """Whether q, k and v have biases, and whether the output has one, where a config states one flag for both."""
    bias = flag(config, "attention_bias", False)
    return bias, bias


def implied_head_dim(config: Config) -> int:
    """Return the head_dim that a config states, or hidden_size / num_attention_heads."""
    heads = size(config, "num_attention_heads")
    if config.get("head_dim") is not None:
        return size(config, "head_dim")
    return divide("hidden_size", size(config, "hidden_size"), "num_attention_heads", heads)


def square_head_dim(config: Config, hidden: str = "hidden_size", heads: str = "num_attention_heads") -> int:
    """Return the head_dim of a family whose class computes it from these two keys alone.

    Raises:
        ConfigError: not a whole number, or the config states another.
    """
    width, count = size(config, hidden), size(config, heads)
    remedy = f"{config['model_type']} computes head_dim as {hidden} / {heads}: grow residual, heads, head_dim so that "
    if width % count:
        raise ConfigError(f"{hidden} = {width} is not a multiple of {heads} = {count}. {remedy}it is one.")
    head_dim = width // count
    if config.get("head_dim") not in (None, head_dim):
        raise ConfigError(f"head_dim = {config['head_dim']} is not {width} / {count} = {head_dim}. {remedy}they agree.")
    return head_dim


def rotary_of_layers(has_rope: Sequence[object], head_dim: int) -> int | None:
    """Return 0 if no layer has RoPE (NoPE), None if some layer has it on the whole head.

    Raises:
        ConfigError: no layer has RoPE and head_dim is odd, which stock configs refuse.
    """
    if any(has_rope):
        return None
    if head_dim > 4 and head_dim % 2:
        raise ConfigError(
            f"config.json has head_dim = {head_dim}: stock configs need an even number, even if no layer has RoPE. "
            f"Nearest: {head_dim - 1} or {head_dim + 1}."
        )
    return 0


def alternating_layers(config: Config, pattern: int) -> list[str]:
    """Return layer_types as stated, or sliding attention in all but every `pattern`-th layer."""
    stated = of_layers(config, "layer_types")
    if stated is not None:
        return stated
    depth = size(config, "num_hidden_layers")
    return ["sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(depth)]


@dataclass(frozen=True)
class Norms:
    """The norms of a decoder: their kind, and their positions in a layer.

    before: names of the norms on the inputs of attention and MLP; without them, these read the residual stream itself.
    after: names of the norms on the outputs of attention and MLP; without them, these write the residual stream itself.
    kind: RMSNorm or LayerNorm.
    gain, bias: whether they have one.
    offset: what the model adds to the stored gain.
    eps, eps_default: the config key of their eps, None if the code fixes it; and its value if the config has none.
    """

    before: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    after: tuple[str, ...] = ()
    kind: Literal["layer", "rms"] = "rms"
    gain: bool = True
    bias: bool = False
    offset: float = 0.0
    eps: str | None = "rms_norm_eps"
    eps_default: float = 1e-6

    @property
    def into(self) -> str:
        """The space that attention and MLP read."""
        return "normed" if self.before else "residual"

    @property
    def out(self) -> str:
        """The space that attention and MLP write."""
        return "branch" if self.after else "residual"

    def weights(self, name: str, over: str, into: str, *, branch_end: bool = False) -> tuple[Weight, ...]:
        """Return the weights of one norm."""
        if not self.gain:
            return ()
        return norm(name, over, into, bias=self.bias, offset=self.offset, branch_end=branch_end)

    def around(self, prefix: str, which: int, branch: tuple[Weight, ...]) -> tuple[Weight, ...]:
        """Return the weights of a layer's branch (0: attention, 1: MLP) with its norms."""
        before = [self.weights(f"{prefix}.{name}", "residual", "normed") for name in self.before[which : which + 1]]
        after = [
            self.weights(f"{prefix}.{name}", "branch", "residual", branch_end=True)
            for name in self.after[which : which + 1]
        ]
        return (*sum(before, ()), *branch, *sum(after, ()))


def axes_by_name(*axes: Axis) -> dict[str, Axis]:
    """Return axes by their names."""
    return {axis.name: axis for axis in axes}


def head_spaces(*, qk_norm: bool = False, across: bool = False, scaled: bool = True) -> dict[str, tuple[str, ...]]:
    """Return the spaces of a head: its `channels`, and `query_scaled`, the channels as queries write them.

    qk_norm: queries and keys pass a norm.
    across: that norm runs over all heads together, so that the heads have another space behind it.
    scaled: the softmax scale is head_dim ** -0.5 instead of a number in the config.
    """
    behind = ("normed",) if qk_norm else ()
    heads = (
        {f"after_softmax_{axis}": (axis, "normed", "after_softmax") for axis in ("heads", "queries")} if across else {}
    )
    scored = ("head_dim", *behind, *(("query_scaled",) if scaled else ()))
    return {"channels": ("head_dim", *behind), "query_scaled": scored, **heads}


def stream_spaces(tied: bool, *, qk_norm: bool = False, scaled: bool = True) -> dict[str, tuple[str, ...]]:
    """Return the spaces of a model whose norms have gains: what layers read, what the head reads, those of a head."""
    head_input = "tied_head" if tied else "normed"
    spaces = {"normed": ("residual", "normed"), "head_input": ("residual", head_input)}
    return spaces | head_spaces(qk_norm=qk_norm, scaled=scaled)


def lm_head(tied: bool, *, bias: bool = False) -> tuple[Weight, ...]:
    """Return the weights of the head; a tied one has at most a bias of its own."""
    return linear("lm_head", "vocab", "head_input", reads=("head_input",), bias=bias)[tied:]


def side_by_side(
    name: str, *maps: tuple[Weight, ...], within: tuple[str, ...] = (), transposed: bool = False
) -> tuple[Weight, ...]:
    """Return linear maps of one space that are stored as one weight: gate and up, or q, k and v.

    within: the outermost spaces of their outputs; the maps stand side by side in each unit of these.
    transposed: stored as (in, out).
    """
    together = zip(*maps, strict=True)
    return tuple(
        replace(
            first,
            name=f"{name}.{first.name.rpartition('.')[2]}",
            parts=sum((w.parts for w in others), first.parts),
            fused=len(first.parts[0].dimensions) - 1 if transposed else 0,
            within=within,
        )
        for first, *others in together
    )


def _numbered(weights: tuple[Weight, ...]) -> tuple[Weight, ...]:
    return tuple(replace(w, parts=tuple(replace(part, layer_scaled=True) for part in w.parts)) for w in weights)


def attention(
    prefix: str,
    *,
    bias: tuple[bool, bool] = (False, False),
    qk_norm: bool = False,
    qk_norm_bias: bool = False,
    qk_norm_offset: float = 0.0,
    own_gains: bool = False,
    fused: str | None = None,
    qk_norm_across: bool = False,
    within: tuple[str, ...] = (),
    transposed: bool = False,
    layer_scaled: bool = False,
    into: str = "normed",
    out: str = "residual",
    branch_end: bool = True,
    names: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj"),
    norm_names: tuple[str, str] = ("q_norm", "k_norm"),
) -> tuple[Weight, ...]:
    """Return the query, key, value and output projections, with or without a norm on queries and keys.

    A score is a product of queries and keys: the queries write the channels, the keys read them.

    bias: whether q, k, v have one; whether the output has one.
    own_gains: each head has its own gain in the norm.
    fused: name of the one weight that holds q, k and v, `within` each of their heads or as a whole.
    qk_norm_across: the norm runs over all heads together instead of each head.
    transposed: stored as (in, out).
    layer_scaled: the scores are divided by the layer's number.
    into, out: the space that is read, the space that is written.
    """
    q, k, v, o = (f"{prefix}.{name}" for name in names)
    query, key, keys_read = ("head_dim", "head_dim", ()) if qk_norm else ("query_scaled", "channels", ("channels",))
    q_norm, k_norm = (f"{prefix}.{name}" for name in norm_names)
    heads, queries = ("after_softmax_heads", "after_softmax_queries") if qk_norm_across else ("heads", "queries")
    # the gain's dimensions: one for all heads, one for each head, or one over all heads
    q_over, q_into, k_over, k_into = "head_dim", "query_scaled", "head_dim", "channels"
    if own_gains:
        q_over, q_into, k_over, k_into = (
            *("(heads queries) head_dim", "(heads queries) query_scaled"),
            *("heads head_dim", "heads channels"),
        )
    if qk_norm_across:
        q_over, q_into, k_over, k_into = (
            *("(heads queries head_dim)", f"({heads} {queries} query_scaled)"),
            *("(heads head_dim)", f"({heads} channels)"),
        )
    norms = (
        *norm(q_norm, q_over, q_into, bias=qk_norm_bias, offset=qk_norm_offset),
        *norm(
            k_norm,
            k_over,
            k_into,
            bias=qk_norm_bias,
            offset=qk_norm_offset,
            reads=("channels",),
        ),
    )
    maps = (
        linear(q, f"(heads queries {query})", into, reads=(into,), bias=bias[0], transposed=transposed),
        linear(k, f"(heads {key})", into, reads=(into, *keys_read), bias=bias[0], transposed=transposed),
        linear(v, f"({heads} channels)", into, reads=(into,), bias=bias[0], transposed=transposed),
    )
    maps = (_numbered(maps[0]), *maps[1:]) if layer_scaled else maps
    together = side_by_side(f"{prefix}.{fused}", *maps, within=within, transposed=transposed) if fused else ()
    return (
        *(together or sum(maps, ())),
        *(norms if qk_norm else ()),
        *linear(
            o,
            out,
            f"({heads} {queries} channels)",
            reads=(heads, queries, "channels"),
            bias=bias[1],
            branch_end=branch_end,
            transposed=transposed,
        ),
    )


def mlp(
    inner: str,
    outer: str,
    *,
    bias: bool,
    into: str = "normed",
    out: str = "residual",
    branch_end: bool = True,
    transposed: bool = False,
) -> tuple[Weight, ...]:
    """Return two linear maps, by their names, with an activation between them."""
    return (
        *linear(inner, "ffn", into, reads=(into,), bias=bias, transposed=transposed),
        *linear(outer, out, "ffn", reads=("ffn",), bias=bias, branch_end=branch_end, transposed=transposed),
    )


def gated_mlp(
    prefix: str,
    *,
    bias: bool = False,
    fused: str | None = None,
    into: str = "normed",
    out: str = "residual",
    branch_end: bool = True,
) -> tuple[Weight, ...]:
    """Return gate_proj, up_proj and down_proj; the first two are one weight if that has a name, `fused`."""
    gate, up = (linear(f"{prefix}.{name}", "ffn", into, reads=(into,), bias=bias) for name in ("gate_proj", "up_proj"))
    return (
        *(side_by_side(f"{prefix}.{fused}", gate, up) if fused else gate + up),
        *linear(f"{prefix}.down_proj", out, "ffn", reads=("ffn",), bias=bias, branch_end=branch_end),
    )
