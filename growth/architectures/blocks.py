"""Blocks that many families share: axes of grouped-query attention, attention and MLP weights.

A family is a table made of these, and of what is its own.
"""

from dataclasses import replace

from growth.architecture import Axis, Config, Part, Weight, divide, linear, norm, size
from growth.errors import ConfigError

TURNS = (
    "all channels of a head turn (rotary), so more of them would change the frequencies of all, and this family "
    "cannot state heads that turn in part. Widen heads instead."
)
OWN_KEYS = (
    "every head of this family has keys and values of its own, so its config cannot state several queries for one "
    "head. Widen heads instead."
)
LAYER = "model.layers.{layer}"
NORMED = ("normed",)


def grouped_heads(config: Config, default_kv: int | None = None) -> tuple[int, int]:
    """Key-value groups, and query heads of each."""
    all_queries = size(config, "num_attention_heads")
    heads = size(config, "num_key_value_heads", default_kv or all_queries)
    return heads, divide("num_attention_heads", all_queries, "num_key_value_heads", heads)


def implied_head_dim(config: Config) -> int:
    """The head_dim that a config states, or hidden_size / num_attention_heads."""
    heads = size(config, "num_attention_heads")
    if config.get("head_dim") is not None:
        return size(config, "head_dim")
    return divide("hidden_size", size(config, "hidden_size"), "num_attention_heads", heads)


def square_head_dim(config: Config, hidden: str = "hidden_size", heads: str = "num_attention_heads") -> int:
    """The head_dim of a family whose class computes it from these two keys and reads no other.

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


def axes_by_name(*axes: Axis) -> dict[str, Axis]:
    """Axes by their names."""
    return {axis.name: axis for axis in axes}


def head_spaces(*, qk_norm: bool = False, scaled: bool = True) -> dict[str, tuple[str, ...]]:
    """The spaces of a head: its `channels`, and the same as queries write them, `scored`.

    qk_norm: a norm stands between the projections of queries and keys, which write head_dim, and these.
    scaled: the softmax scale is head_dim ** -0.5, and not a number of its own in the config.
    """
    behind = ("normed",) if qk_norm else ()
    return {"channels": ("head_dim", *behind), "scored": ("head_dim", *behind, *(("scored",) if scaled else ()))}


def attention(
    prefix: str,
    *,
    bias: tuple[bool, bool] = (False, False),
    qk_norm: bool = False,
    qk_norm_bias: bool = False,
    qk_norm_offset: float = 0.0,
    into: str = "normed",
    out: str = "residual",
    branch_end: bool = True,
    names: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj"),
    norm_names: tuple[str, str] = ("q_norm", "k_norm"),
) -> tuple[Weight, ...]:
    """Separate query, key, value and output projections, with or without a norm on each head's queries and keys.

    A score is a product of queries and keys: the queries write the channels, the keys read them.

    bias: of q, k, v; of the output.
    into, out: the space that is read, the space that is written.
    """
    q, k, v, o = (f"{prefix}.{name}" for name in names)
    query, key, keys_read = ("head_dim", "head_dim", ()) if qk_norm else ("scored", "channels", ("channels",))
    q_norm, k_norm = (f"{prefix}.{name}" for name in norm_names)
    norms = (
        *norm(q_norm, "head_dim", "scored", bias=qk_norm_bias, offset=qk_norm_offset),
        *norm(k_norm, "head_dim", "channels", bias=qk_norm_bias, offset=qk_norm_offset, reads=("channels",)),
    )
    return (
        *linear(q, f"(heads queries {query})", into, reads=(into,), bias=bias[0]),
        *linear(k, f"(heads {key})", into, reads=(into, *keys_read), bias=bias[0]),
        *(norms if qk_norm else ()),
        *linear(v, "(heads channels)", into, reads=(into,), bias=bias[0]),
        *linear(
            o,
            out,
            "(heads queries channels)",
            reads=("heads", "queries", "channels"),
            bias=bias[1],
            branch_end=branch_end,
        ),
    )


def fused_qkv(
    name: str, *, bias: bool, within: tuple[str, ...] = (), transposed: bool = False, numbered: bool = False
) -> tuple[Weight, ...]:
    """Queries, keys and values of one weight, as a whole or `within` each of the heads.

    transposed: stored (in, out).
    numbered: the scores are divided by the layer's number.
    """
    maps = (
        Part("(heads queries scored)", numbered=numbered),
        Part("(heads channels)", ("channels",)),
        Part("(heads channels)"),
    )
    order = "normed {}" if transposed else "{} normed"
    parts = tuple(replace(part, pattern=order.format(part.pattern), reads=(*NORMED, *part.reads)) for part in maps)
    matrix = Weight(f"{name}.weight", parts, fused=int(transposed), within=within)
    return (matrix, Weight(f"{name}.bias", maps, within=within)) if bias else (matrix,)


def gated_mlp(
    prefix: str, *, bias: bool = False, into: str = "normed", out: str = "residual", branch_end: bool = True
) -> tuple[Weight, ...]:
    """gate_proj, up_proj, down_proj."""
    return (
        *linear(f"{prefix}.gate_proj", "ffn", into, reads=(into,), bias=bias),
        *linear(f"{prefix}.up_proj", "ffn", into, reads=(into,), bias=bias),
        *linear(f"{prefix}.down_proj", out, "ffn", reads=("ffn",), bias=bias, branch_end=branch_end),
    )
