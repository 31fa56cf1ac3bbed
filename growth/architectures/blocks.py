"""Blocks that many families share: norms, attention and MLP, with their names inside a layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from growth.architectures.base import Axis, Weight, linear, norm
from growth.architectures.base import weight as vector
from growth.architectures.config import Config, divide, flag, of_layers, size
from growth.errors import ConfigError

# spaces over which the norms of queries and of keys run, each with the spaces of its gain
QK_NORM_SPACES = {
    "shared": (("head_dim", "query_scaled"), ("head_dim", "channels")),
    "own": (("(heads queries) head_dim", "(heads queries) query_scaled"), ("heads head_dim", "heads channels")),
    "across": (
        ("(heads queries head_dim)", "(after_softmax_heads after_softmax_queries query_scaled)"),
        ("(heads head_dim)", "(after_softmax_heads channels)"),
    ),
}
GATED = ("gate_proj", "up_proj", "down_proj")  # the usual projections of a gated MLP


# ------------------------------------------------- heads


def grouped_heads(config: Config, default_kv: int | None = None) -> tuple[Axis, Axis]:
    """Return the axes of grouped-query attention: KV heads, and query heads per KV head.

    default_kv: the KV heads of a config without that key; null stands for one per query head.
    """
    all_queries = size(config, "num_attention_heads")
    unsaid = "num_key_value_heads" not in config
    heads = size(config, "num_key_value_heads", default_kv if unsaid and default_kv else all_queries)
    return Axis("heads", heads), Axis(
        "queries", divide("num_attention_heads", all_queries, "num_key_value_heads", heads)
    )


def implied_head_dim(config: Config) -> int:
    """Return the head_dim that a config states, or hidden_size / num_attention_heads."""
    heads = size(config, "num_attention_heads")
    if config.get("head_dim") is not None:
        return size(config, "head_dim")
    return divide("hidden_size", size(config, "hidden_size"), "num_attention_heads", heads)


def optional_head_dim(config: Config, default: int) -> int:
    """Return the head_dim that a config states, `default` without that key; null is hidden_size / heads."""
    return implied_head_dim(config) if "head_dim" in config else default


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


# ------------------------------------------------- layers with a window


def layer_types(config: Config, has_window: Callable[[int], bool]) -> list[str]:
    """Return layer_types as stated, or sliding attention in the layers that have a window."""
    return of_layers(config, "layer_types") or [
        "sliding_attention" if has_window(layer) else "full_attention"
        for layer in range(size(config, "num_hidden_layers"))
    ]


def layers_of(kinds: Sequence[str], kind: str) -> tuple[int, ...]:
    """Return the layers of a kind."""
    return tuple(layer for layer, each in enumerate(kinds) if each == kind)


def check_square(config: Config, what: str) -> None:
    """Check that the heads have as many channels together as the residual stream.

    Raises:
        ConfigError: they have not, and `what` says why they must.
    """
    hidden, attended = size(config, "hidden_size"), size(config, "num_attention_heads") * implied_head_dim(config)
    if hidden != attended:
        raise ConfigError(
            f"{what} hidden_size = {hidden} channels of all heads together, and they have {attended}. "
            "Grow residual together with heads, queries or head_dim so that they agree."
        )


def alternating_layers(config: Config, pattern: int) -> list[str]:
    """Return layer_types as stated, or sliding attention in all but every `pattern`-th layer."""
    return layer_types(config, lambda layer: (layer + 1) % pattern != 0)


# ------------------------------------------------- norms


@dataclass(frozen=True)
class Norms:
    """The norms of a decoder: their kind, and their positions in a layer.

    before: names of the norms on the inputs of attention and MLP; without them, these read the residual stream itself.
        Two names in one string stand together in the table.
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

    def weights(self, name: str, into: str, *, branch_end: bool = False) -> tuple[Weight, ...]:
        """Return the weights of one norm over the residual stream."""
        if not self.gain:
            return ()
        return norm(name, "residual", into, bias=self.bias, offset=self.offset, branch_end=branch_end)

    def around(self, which: int, branch: tuple[Weight, ...]) -> tuple[Weight, ...]:
        """Return the weights of a layer's branch (0: attention, 1: MLP) with its norms, of which the last ends it."""
        before = [self.weights(name, "normed") for names in self.before[which : which + 1] for name in names.split()]
        after = [self.weights(name, "residual", branch_end=True) for name in self.after[which : which + 1]]
        if after:
            branch = tuple(replace(weight, branch_end=False) for weight in branch)
        return (*sum(before, ()), *branch, *sum(after, ()))


def layer_norms(*before: str, eps: str = "layer_norm_eps", bias: bool = True) -> Norms:
    """Return LayerNorms on the inputs of attention and MLP."""
    return Norms(before, kind="layer", bias=bias, eps=eps, eps_default=1e-5)


# ------------------------------------------------- attention and MLP


def side_by_side(*weights: Weight, within: tuple[str, ...] = ()) -> tuple[Weight, ...]:
    """Return weights in which those of one name are one weight that holds their maps: gate and up, or q, k and v.

    within: the outermost spaces of their outputs; the maps stand side by side in each unit of these.
    """
    merged: dict[str, Weight] = {}
    for weight in weights:
        first = merged.get(weight.name)
        merged[weight.name] = replace(first, parts=first.parts + weight.parts, within=within) if first else weight
    return tuple(merged.values())


def in_layers(layers: tuple[int, ...] | None, *weights: Weight) -> tuple[Weight, ...]:
    """Return weights that only some layers have, where `layers` are not None."""
    return weights if layers is None else tuple(replace(weight, layers=layers) for weight in weights)


@dataclass(frozen=True)
class Mixer:
    """A block that mixes tokens without attention: a state-space model, a linear attention or a short convolution.

    weights: those of its layers, with names inside a layer.
    axes, spaces, sizes, norms: as those of `Architecture`.
    """

    weights: tuple[Weight, ...]
    axes: tuple[Axis, ...]
    sizes: Mapping[str, str]
    spaces: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    norms: tuple[tuple[str, ...], ...] = ()


class AttentionBlock(Protocol):
    """What `decoder` needs of a layer's attention: its weights, and their spaces beside the axes."""

    @property
    def spaces(self) -> Mapping[str, tuple[str, ...]]:
        """As `Architecture.spaces`."""

    @property
    def qk_norm(self) -> str:
        """The kind of norm that queries and keys pass; empty if there is none."""

    def weights(self, norm_offset: float = 0.0) -> tuple[Weight, ...]:
        """Return the weights in the order of the class. norm_offset: what the model adds to the stored gains."""


@dataclass(frozen=True)
class Attention:
    """The attention of a layer.

    name: of its module.
    projections: names of the query, key, value and output projections; those of one name are stored as one weight,
        `within` each unit of some spaces or as a whole.
    bias: whether q, k, v have one; whether the output has one.
    qk_norm: whether queries and keys pass a norm: one over each head with a gain that all heads share, or with an own
        gain, or one across all heads together.
    qk_norm_names, qk_norm_bias: the names of these norms, and whether they have a bias.
    scaled: the softmax scale is head_dim ** -0.5 instead of a number in the config.
    sinks: the name of a vector with a score for each query head that takes part in its softmax, if there is one.
    gate: the name of a projection whose sigmoid multiplies what the heads read, if there is one; the query's if each
        head's gate is stored behind its query.
    head_gate: the name of a projection whose sigmoid multiplies what each query head reads, a number for each, if there
        is one.
    gate_bias: the name of a vector with a number for each query head that is added to its gates, if there is one.
    layers: the layers that have attention, if not all do.
    """

    name: str = "self_attn"
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    bias: tuple[bool, bool] = (False, False)
    within: tuple[str, ...] = ()
    qk_norm: Literal["", "shared", "own", "across"] = ""
    qk_norm_names: tuple[str, str] = ("q_norm", "k_norm")
    qk_norm_bias: bool = False
    scaled: bool = True
    sinks: str = ""
    gate: str = ""
    head_gate: str = ""
    gate_bias: str = ""
    layers: tuple[int, ...] | None = None

    @property
    def spaces(self) -> dict[str, tuple[str, ...]]:
        """The spaces of a head: its `channels`, and `query_scaled`, the channels as queries write them.

        After a norm across all heads, the heads have other spaces, too.
        """
        behind = ("head_dim", *(("normed",) if self.qk_norm else ()))
        heads = {f"after_softmax_{axis}": (axis, "normed", "after_softmax") for axis in ("heads", "queries")}
        scored = (*behind, *(("query_scaled",) if self.scaled else ()))
        return {"channels": behind, "query_scaled": scored, **(heads if self.qk_norm == "across" else {})}

    def weights(self, norm_offset: float = 0.0) -> tuple[Weight, ...]:
        """Return the query, key, value and output projections, and the norms of queries and keys.

        A score is a product of queries and keys: the queries write the channels, the keys read them.

        norm_offset: what the model adds to the stored gains.
        """
        q, k, v, o = (f"{self.name}.{name}" for name in self.projections)
        query, key = ("head_dim", "head_dim") if self.qk_norm else ("query_scaled", "channels")
        across = "after_softmax_" if self.qk_norm == "across" else ""
        attended = f"({across}heads {across}queries channels)"
        gate: tuple[Weight, ...] = ()
        if self.gate:
            joint = self.gate in self.projections
            gate = linear(f"{self.name}.{self.gate}", attended, "normed", bias=joint and self.bias[0])
        if self.head_gate:
            gate += linear(f"{self.name}.{self.head_gate}", f"({across}heads {across}queries)", "normed")
        inputs = side_by_side(
            *linear(q, f"(heads queries {query})", "normed", bias=self.bias[0]),
            *gate,
            *linear(k, f"(heads {key})", "normed", bias=self.bias[0], also_reads=("channels",)),
            *linear(v, f"({across}heads channels)", "normed", bias=self.bias[0]),
            within=self.within,
        )
        output = linear(o, "residual", attended, bias=self.bias[1], branch_end=True)
        per_head = (vector(f"{self.name}.{name}", "(heads queries)") for name in (self.sinks, self.gate_bias) if name)
        return in_layers(self.layers, *per_head, *inputs, *self._norms(norm_offset), *output)

    def _norms(self, offset: float) -> tuple[Weight, ...]:
        if not self.qk_norm:
            return ()
        of_queries, of_keys = QK_NORM_SPACES[self.qk_norm]
        q, k = (f"{self.name}.{name}" for name in self.qk_norm_names)
        return (
            *norm(q, *of_queries, bias=self.qk_norm_bias, offset=offset),
            *norm(k, *of_keys, bias=self.qk_norm_bias, offset=offset, reads=("channels",)),
        )


def attention_bias(config: Config) -> tuple[bool, bool]:
    """Whether q, k and v have biases, and whether the output has one, where a config states one flag for both."""
    bias = flag(config, "attention_bias", False)
    return bias, bias


def mlp(inner: str, outer: str, *, bias: bool, axis: str = "ffn") -> tuple[Weight, ...]:
    """Return two linear maps, by their names, with an activation between them."""
    return (*linear(inner, axis, "normed", bias=bias), *linear(outer, "residual", axis, bias=bias, branch_end=True))


def gated_mlp(
    name: str = "mlp",
    projections: tuple[str, str, str] = GATED,
    *,
    bias: bool = False,
    axis: str = "ffn",
) -> tuple[Weight, ...]:
    """Return the gate, up and down projections of an MLP; those of one name are stored as one weight."""
    gate, up, down = (f"{name}.{projection}" for projection in projections)
    inner = (*linear(gate, axis, "normed", bias=bias), *linear(up, axis, "normed", bias=bias))
    return (*side_by_side(*inner), *linear(down, "residual", axis, bias=bias, branch_end=True))
