"""Architecture: a model family as data.

A family is a table of weights. An einops pattern in storage order states the spaces of a weight's dimensions; the
weight reads some of them and writes the others. A space is an axis, or an axis seen through views, such as after a
norm. The planner needs nothing else to grow a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, Literal

from growth.algebra.arithmetic import power
from growth.architectures.config import LARGEST_AXIS, LARGEST_TABLE, Config, TrackedConfig, number, of_layers, size
from growth.architectures.registry import Family, find_family, register
from growth.architectures.rotary import rope_bases, rope_config
from growth.errors import ConfigError

if TYPE_CHECKING:
    from growth.architectures.wrapper import Outer

RotaryPairs = Literal["halves", "neighbours"]
# config keys whose number implies a list of layers: the key that tables read, and the list
PATTERNS = {
    "max_window_layers": ("max_window_layers", "layer_types"),
    "sliding_window_pattern": ("sliding_window_pattern", "layer_types"),
    "_sliding_window_pattern": ("sliding_window_pattern", "layer_types"),
    "layer_switch": ("sliding_window_pattern", "layer_types"),
    "no_rope_layer_interval": ("no_rope_layer_interval", "no_rope_layers"),
}
# lists with one entry per layer, and the types of their entries: transformers checks their lengths in every config
LAYER_LISTS = {
    "layer_types": (str,),
    "mlp_layer_types": (str,),
    "no_rope_layers": (int, bool),
    "layer_rope_theta": (int, float),
}
UNITS = {"expert": ("experts",), "head": ("heads",), "query_head": ("heads", "queries")}


def family(table: Family) -> Family:
    """Register a function from a config to its table as the family of its name, a config's model_type."""
    return named_family(table.__name__)(table)


def named_family(model_type: str) -> Callable[[Family], Family]:
    """Return a decorator as `family`, for a model_type that is no name of a function: bert-generation.

    Raises:
        ConfigError: the model_type has a family already.
    """

    def registered(table: Family) -> Family:
        register(model_type, text_model(table))
        return table

    return registered


def text_model(table: Family) -> Family:
    """Return a function from a config to its table that also notes the lists of layers that the table does not read.

    It is that of a family without registering it, for a text model that exists inside wrappers alone.
    """

    @wraps(table)
    def complete(config: Config) -> Architecture:
        built = table(config)
        unread, untracked = LAYER_LISTS.keys() - built.layer_lists.keys(), dict(config)
        stated = {key: of_layers(untracked, key, LAYER_LISTS[key], spare=True) for key in sorted(unread)}
        return replace(built, unread_lists={key: values for key, values in stated.items() if values is not None})

    return complete


@dataclass(frozen=True)
class Axis:
    """A named factor of tensor shapes, and the constraints on growing it.

    name: residual, ffn, heads (KV heads), queries (query heads per KV head), head_dim, vocab, positions, …
    size: number of units.
    norm: the kind of norm that the units pass before they are read, if any.
    fixed: number of leading units that keep their place, because the place decides what they compute: rotary channels
        (their frequency), heads under ALiBi (their slope), tokens, positions. Fresh units follow them.
    rotary_pairs: which rotary channels are a pair: neighbours, or channel i of each half of them.
    partly_rotary: RoPE covers only the first `fixed` channels of a head, and fresh channels are not rotary unless the
        rotary ones are spread (`Growth.rope_stride`). Otherwise it covers the whole head.
    external: a copy shares nothing with its original, because the axis is seen from outside the model (vocab,
        positions) or chosen from (experts).
    equal_copies: why every unit must be copied equally often; empty if it need not be.
    refusal: why this family cannot grow the axis; empty if it can.
    one_stride: why old rotary pairs cannot be spread among fresh ones although the axis can grow; empty if they can.
    max_size: the size up to which it can grow despite `refusal`.
    untrained: which weights of fresh units would never have a gradient, and why; empty if there are none.
    single: why no unit can have copies although fresh units can be added; empty if one can, or if `fixed` says so.
    unscaled: of an axis with a norm, why what writes it cannot be multiplied: then units are copied equally often or
        padded, and the eps of all norms follows the mean square over this axis. Empty if it can be.
    own_eps: whether its norm has an eps that no other norm has, in a config key or in the class.
    last_first: units keep their distance to the last one, and fresh units precede them: taps of a causal convolution.
    """

    name: str
    size: int
    norm: Literal["layer", "rms"] | None = None
    fixed: int = 0
    rotary_pairs: RotaryPairs | None = None
    partly_rotary: bool = False
    external: bool = False
    equal_copies: str = ""
    refusal: str = ""
    one_stride: str = ""
    max_size: int = 0
    untrained: str = ""
    single: str = ""
    unscaled: str = ""
    own_eps: bool = False
    last_first: bool = False

    @property
    def shares_gradient(self) -> bool:
        """Whether the copies of a unit share its gradient although they are units of their own: experts."""
        return self.external and bool(self.equal_copies)

    @property
    def uncopyable(self) -> int:
        """Number of leading units without copies: a copy would compute something else in its own place.

        Copies of external units may do so.
        """
        return 0 if self.external else self.fixed

    def rotary_channels(self, size: int, rope_stride: int) -> int:
        """Return the number of rotary channels of a head that has grown to `size` channels."""
        return self.fixed * rope_stride if self.partly_rotary else size

    @property
    def unconstrained(self) -> bool:
        """Whether no norm, position or other unit constrains its units: in front of a zero, any value will do."""
        normed = self.norm and not self.unscaled
        return not (normed or self.external or self.fixed or self.equal_copies or self.max_size or self.single)


def external_axis(name: str, size: int) -> Axis:
    """Return an axis whose units the input chooses by their number: tokens or positions."""
    return Axis(name, size, external=True, fixed=size)


def axes_by_name(*axes: Axis) -> dict[str, Axis]:
    """Return axes by their names."""
    return {axis.name: axis for axis in axes}


@dataclass(frozen=True)
class WeightPart:
    """One of the linear maps in a stored weight: most weights are one map, a fused weight several.

    pattern: einops pattern of the storage order over spaces, e.g. "(heads queries head_dim) normed".
    reads: the spaces that it reads; it writes the others.
    layer_scaled: whether the model divides its output by the layer's number, counted from 1.
    """

    pattern: str
    reads: tuple[str, ...] = ()
    layer_scaled: bool = False

    @property
    def dimensions(self) -> tuple[tuple[str, ...], ...]:
        """The spaces of each dimension: (("heads", "queries", "head_dim"), ("normed",))."""
        return dimensions(self.pattern)


@dataclass(frozen=True)
class Weight:
    """One weight of every layer, or of the model.

    name: tensor name, with {layer} if every layer has one, and {expert}, {head} or {query_head} if every such unit
        has one.
    parts: its maps, one after the other along dimension `fused`, within the spaces `within` that they share there:
        q, k, v as a whole, or q, k, v of each head.
    norm_inputs: for a norm's gain, the spaces that the norm reads, one for each of the pattern's: the gain undoes
        their write coefficients and the change of their mean square.
    offset: what the model adds to the stored values (Gemma's norms multiply by 1 + w).
    branch_end: whether it is the last weight of a residual branch; if it is zero, the layer is the identity.
    layers: the layers that have it, if not all do.
    borrowed: whether fresh units take the values of old ones, in turn, and layers of random values those of the layer
        that they have the kind of: what sets a time scale (decay rates, biases of time steps), for which a random value
        around zero is not a sensible one.
    """

    name: str
    parts: tuple[WeightPart, ...]
    fused: int = 0
    within: tuple[str, ...] = ()
    norm_inputs: tuple[str, ...] | None = None
    offset: float = 0.0
    branch_end: bool = False
    layers: tuple[int, ...] | None = None
    borrowed: bool = False

    @property
    def per_layer(self) -> bool:
        """Whether every layer has such a weight."""
        return "{layer}" in self.name

    @property
    def units(self) -> tuple[str, ...]:
        """The axes whose units each have a tensor of their own; most weights have none."""
        return next((axes for name, axes in UNITS.items() if f"{{{name}}}" in self.name), ())

    @property
    def reads_units(self) -> bool:
        """Whether it reads the axis of such units: it divides among copies what it would do for one."""
        return bool(self.units) and {*self.units} <= {*self.parts[0].reads}

    @property
    def of_experts(self) -> bool:
        """Whether it is a weight of experts, each in a tensor of its own or all in one (a stack); a router is not."""
        stacked = "experts" in spaces_in(self.parts[0].pattern) and len(self.writes | {"experts"}) > 1
        return self.units == ("experts",) or stacked

    @property
    def writes(self) -> frozenset[str]:
        """The spaces that its first map writes."""
        return frozenset(spaces_in(self.parts[0].pattern)) - {*self.parts[0].reads}

    @property
    def writes_stream(self) -> bool:
        """Whether it writes the residual stream, or a latent in its place as experts may: the end of an MLP."""
        return "residual" in self.writes or (self.of_experts and "latent" in self.writes)

    @property
    def is_scalar(self) -> bool:
        """Whether it has no axis: a number of a layer."""
        return self.parts[0].pattern in ("", "1")

    @property
    def passes(self) -> bool:
        """Whether no axis has any part in it, so that it passes through unchanged: a vision tower's."""
        return all(space.isdecimal() for part in self.parts for space in spaces_in(part.pattern))

    @property
    def is_head_bias(self) -> bool:
        """Whether it is the bias of the logits."""
        return self.parts[0].pattern == "vocab"

    def at(self, layer: int, unit: int) -> str:
        """Return the tensor name for one layer and unit."""
        return self.name.format(layer=layer, **dict.fromkeys(UNITS, unit))

    def places(self, depth: int, units: int) -> list[tuple[int, int]]:
        """Return the (layer, unit) of each of its tensors, 0 where it has no such index."""
        layers = range(depth) if self.layers is None else self.layers
        return [(layer, unit) for layer in (layers if self.per_layer else range(1)) for unit in range(units)]


@cache
def dimensions(pattern: str) -> tuple[tuple[str, ...], ...]:
    """Return the names in an einops pattern, one tuple per dimension; a number is a dimension that no axis grows.

    >>> dimensions("(heads head_dim) normed"), dimensions("residual 768")
    ((('heads', 'head_dim'), ('normed',)), (('residual',), ('768',)))
    """
    from einops.parsing import AnonymousAxis, ParsedExpression

    def named(axis: Any) -> str:
        return str(axis.value) if isinstance(axis, AnonymousAxis) else str(axis)

    return tuple(tuple(map(named, axes)) for axes in ParsedExpression(pattern).composition)


def weight(name: str, pattern: str, reads: tuple[str, ...] = (), *, branch_end: bool = False) -> Weight:
    """Return a weight of one map."""
    return Weight(name, (WeightPart(pattern, reads),), branch_end=branch_end)


def spaces_in(pattern: str) -> tuple[str, ...]:
    """Return the names in an einops pattern."""
    return sum(dimensions(pattern), ())


def norm(
    name: str,
    over: str,
    into: str,
    *,
    bias: bool,
    reads: tuple[str, ...] = (),
    offset: float = 0.0,
    branch_end: bool = False,
) -> tuple[Weight, ...]:
    """Return the weights of a norm from the space `over` (or a product of spaces) to the space `into`."""
    shift = weight(f"{name}.bias", into, reads, branch_end=branch_end)
    gain = replace(shift, name=f"{name}.weight", norm_inputs=spaces_in(over), offset=offset)
    return (gain, shift) if bias else (gain,)


def linear(
    name: str, out: str, into: str, *, bias: bool = False, also_reads: tuple[str, ...] = (), branch_end: bool = False
) -> tuple[Weight, ...]:
    """Return the weights of a linear map, stored as (out, in), from the space `into` to the space `out`.

    Either may be a product of spaces.

    also_reads: spaces of `out` that it reads: a key reads the channels that a query writes.
    """
    reads = (*spaces_in(into), *also_reads)
    matrix = weight(f"{name}.weight", f"{out} {into}", reads, branch_end=branch_end)
    return (matrix, weight(f"{name}.bias", out, reads, branch_end=branch_end)) if bias else (matrix,)


@dataclass(frozen=True)
class Architecture:
    """The table of one model: its axes, weights and config keys.

    axes: by name.
    depth: number of layers.
    weights: the table.
    spaces: each space that is not an axis itself, as an axis and the views through which it is seen:
        {"normed": ("residual", "normed")}. `growth.algebra.spaces` defines the views.
    grouped_lists: config keys that state such a list as groups of entries and how often each group occurs.
    layer_sets: config keys that list the layers of a kind.
    layer_counts: config keys that count the leading layers of a kind.
    ratios: config keys whose number grows as an axis does: {"num_experts_per_tok": "experts"}.
    chosen_key: of a mixture, the config key of the number of experts that each token goes to.
    norms: groups of axes that one norm runs over together; the first axis of a group is in no earlier group.
    sizes: config keys and the axes whose product they are: {"num_attention_heads": "heads queries"}, or the sum of such
        products: {"qk_head_dim": "qk_nope_head_dim + qk_rope_head_dim"}, or a ratio: {"expand": "inner / residual"}.
    depth_keys: config keys that count layers.
    depth_roots: config keys whose number grows as the root of the number of layers, by which the model divides it, each
        with its value where the config has none.
    layer_lists: lists with one entry per layer, which the config states or implies; they follow the layers.
    unread_lists: such lists that the config states and the family does not read; they follow the layers too.
    eps, eps_default: the config key of the norms' eps, and its value where the config has none.
    no_rescale: why no other eps gives the same norms of a wider stream; by default because no key states it.
    rotary_axis: the axis that holds the rotary channels of a head.
    score_axes: the axes of a head's channels that a score is a sum over; the softmax scale is their number ** -0.5.
    rotary: number of leading rotary channels of a head, where the config states it as a fraction.
    bases: where RoPE covers the whole head with frequencies base ** (-2 i / head_dim), the bases: the config's layer
        type ("" for all layers), its key in older configs, and its value where the config has none.
    base_lists: those of `layer_lists` that state the base of each layer; 0 stands for no RoPE.
    rotary_key: the config key of the number of rotary channels, where the config states it as a number.
    rope_names: the config's own top-level keys of rotary parameters, where they differ from those of transformers 5.
    other_names: prefixes of tensor names, and what some files have in their place; with {layer} if they are a layer's.
    prediction: prefixes of the tensors of multi-token prediction, which published files hold and the stock class does
        not run, each with the end of a tensor's name that no other layer has ("" if the prefix says enough).
    no_identity: why no layer can be the identity; empty if one can.
    leading, leading_reason: number of first layers that keep their place, and why: features of an image are added to
        the stream behind each of them by its number (DeepStack), unless stated otherwise. New layers follow them.
    initial_std: the config key of the standard deviation with which the class initialises matrices, and its value where
        the config has none.
    scaled_ends: whether the class divides that by sqrt(2 * depth) for the last weights of residual branches.
    outer: what is around the model, if it is the text model of a larger one; `config` is then its own.
    """

    config: Config
    axes: Mapping[str, Axis]
    depth: int
    weights: tuple[Weight, ...]
    spaces: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, str]
    depth_keys: tuple[str, ...] = ("num_hidden_layers",)
    depth_roots: Mapping[str, float] = field(default_factory=dict)
    layer_lists: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    unread_lists: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    grouped_lists: Mapping[str, str] = field(default_factory=dict)
    layer_sets: Mapping[str, Sequence[int]] = field(default_factory=dict)
    layer_counts: Mapping[str, int] = field(default_factory=dict)
    ratios: Mapping[str, str] = field(default_factory=dict)
    chosen_key: str = "num_experts_per_tok"
    norms: tuple[tuple[str, ...], ...] = ()
    eps: str | None = None
    eps_default: float = 1e-5
    no_rescale: str = "its config states no eps"
    rotary_axis: str = "head_dim"
    score_axes: tuple[str, ...] = ("head_dim",)
    rotary: int | None = None
    bases: tuple[tuple[str, str, float], ...] = ()
    base_lists: tuple[str, ...] = ()
    rotary_key: str = ""
    rope_names: Mapping[str, str] = field(default_factory=dict)
    other_names: Mapping[str, str] = field(default_factory=dict)
    prediction: Mapping[str, str] = field(default_factory=dict)
    no_identity: str = ""
    leading: int = 0
    leading_reason: str = "features of an image are added behind each of them by its number"
    initial_std: tuple[str, float] = ("initializer_range", 0.02)
    scaled_ends: bool = False
    outer: Outer | None = None

    @property
    def model_type(self) -> str:
        """The family's name in configs."""
        return str(self.config["model_type"])

    @property
    def family(self) -> Family:
        """The function that makes the table of a config of this family."""
        found = self.outer.family if self.outer else find_family(self.model_type)
        assert found is not None  # it made this table
        return found

    @property
    def whole_config(self) -> dict[str, Any]:
        """The content of config.json."""
        return self.outer.whole(self.config) if self.outer else dict(self.config)

    @property
    def embedding(self) -> str:
        """The name of the embedding matrix."""
        return self.weights[0].name

    @property
    def head_bias(self) -> str:
        """The name of the bias of the logits; empty if there is none. A second one in the table has no effect."""
        return next((weight.name for weight in self.weights if weight.is_head_bias), "")

    @property
    def tied(self) -> bool:
        """Whether the embedding matrix is also the head."""
        return len(self.with_head(tied=False).weights) > len(self.weights)

    def with_head(self, *, tied: bool) -> Architecture:
        """Return the table of the same config with its head tied to the embedding, or with one of its own."""
        return self.family({**self.config, "tie_word_embeddings": tied})

    def with_depth(self, depth: int) -> Architecture:
        """Return the table of the same config with another number of layers, whose kinds the config implies."""
        implied = {key for key in LAYER_LISTS if not self.depth or self.config.get(key) == []}
        implied |= {key for key in self.layer_sets if not self.depth and self.config.get(key) == []}
        stated = {key: value for key, value in self.config.items() if key not in implied}
        return self.family({**stated, **dict.fromkeys(self.depth_keys, depth)})

    def with_axes(self, *axes: Axis) -> Architecture:
        """Return the table with more axes, or with others of the same names."""
        return replace(self, axes={**self.axes, **axes_by_name(*axes)})

    def axis(self, space: str) -> str:
        """Return the axis of a space."""
        return self.spaces.get(space, (space,))[0]

    @property
    def head_channels(self) -> Axis:
        """The axis that holds the rotary channels of a head; of a model without attention, one that has none."""
        return self.axes.get(self.rotary_axis, Axis(self.rotary_axis, 1))

    @property
    def known_keys(self) -> set[str]:
        """Config keys that this table writes, whether or not the source states them."""
        stated = (
            self.sizes,
            self.depth_keys,
            self.layer_lists,
            self.grouped_lists,
            self.layer_sets,
            self.layer_counts,
            self.ratios,
            self.depth_roots,
        )
        rotary = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")
        bases = (key for _, key, _ in self.bases)
        own = (self.eps or "", self.rotary_key, *self.rope_names.values())
        return {key for keys in stated for key in keys} | {*own, *rotary, *bases}

    def has_stated_eps(self, weight: Weight) -> bool:
        """Whether a weight is the gain of a norm whose eps the config states."""
        inputs = weight.norm_inputs
        return inputs is not None and not any(self.axes[self.axis(space)].own_eps for space in inputs)

    def length(self, spaces: tuple[str, ...]) -> int:
        """Return the number of indices of a product of spaces."""
        return math.prod(int(space) if space.isdecimal() else self.axes[self.axis(space)].size for space in spaces)

    def shape(self, weight: Weight) -> tuple[int, ...]:
        """Return the stored shape of a weight."""
        shape = [self.length(spaces) for spaces in weight.parts[0].dimensions]
        if not shape:
            return ()
        shape[weight.fused] = sum(self.length(part.dimensions[weight.fused]) for part in weight.parts)
        return tuple(shape)

    def names(self, weight: Weight) -> list[str]:
        """Return the tensor names of a weight, one for each layer and unit that has it."""
        return [weight.at(*place) for place in weight.places(self.depth, self.length(weight.units))]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every tensor that a checkpoint of this architecture must hold, with its shape."""
        shaped = [(weight, self.shape(weight)) for weight in self.weights]
        return {name: shape for weight, shape in shaped for name in self.names(weight)}

    @property
    def chosen(self) -> int:
        """The number of experts that each token goes to."""
        return size(self.config, self.chosen_key)

    def example_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the same where there is no checkpoint, with an example of each matrix around a text model."""
        return self.shapes() | (self.outer.stand_ins(self) if self.outer else {})

    def parameters(self, *, active: bool = False) -> int:
        """Return the number of parameters, or of those that one token uses: of all experts, those that it goes to."""
        used = self
        if active and "experts" in self.axes:
            used = self.with_axes(replace(self.axes["experts"], size=self.chosen))
        tables = [(used if weight.of_experts else self, weight) for weight in self.weights]
        return sum(math.prod(table.shape(weight)) * len(table.names(weight)) for table, weight in tables)

    def refuse_enormous(self) -> None:
        """Refuse a table that is too large, before it is written out.

        Raises:
            ConfigError: more tensors or a larger dimension than supported.
        """
        tensors = sum(
            (self.depth if weight.layers is None else len(weight.layers)) ** weight.per_layer
            * self.length(weight.units)
            for weight in self.weights
        )
        if tensors > LARGEST_TABLE:
            raise ConfigError(
                f"config.json describes {tensors:,} tensors; at most {LARGEST_TABLE:,} are supported. Correct it."
            )
        largest = max(length for weight in self.weights for length in self.shape(weight))
        largest = max(largest, *(axis.size for axis in self.axes.values()))
        if largest > LARGEST_AXIS:
            raise ConfigError(
                f"config.json describes a dimension of {largest:,}; at most {LARGEST_AXIS:,} is supported. Correct it."
            )

    def named_as_in(self, tensors: Mapping[str, Any]) -> Architecture:
        """Return the table with the tensor names that a checkpoint uses, where the family's files differ in them.

        The table of a text model inside another model then has the tensors around it, too.

        tensors: by name, each with its shape.
        """
        weights = self.weights
        for ours in self.other_names:
            weights = tuple(renamed(weight, ours, self.prefix_in(tensors, ours)) for weight in weights)
        named = replace(self, weights=weights)
        return self.outer.bound(named, tensors) if self.outer else named

    def prefix_in(self, tensors: Collection[str], ours: str) -> str:
        """Return what a checkpoint has in place of a prefix of tensor names.

        A prefix of none of its tensors, such as that of a tied head, is spelled as its others are.
        """

        def used(prefix: str) -> bool:
            prefixes = tuple({prefix.format(layer=layer) for layer in range(max(self.depth, 1))})
            return any(name.startswith(prefixes) for name in tensors)

        theirs = self.other_names.get(ours, ours)
        if used(ours):
            return ours
        spelled = used(theirs) or any(used(other) and not used(own) for own, other in self.other_names.items())
        return theirs if spelled else ours

    def grown_config(
        self, sizes: Mapping[str, int], layers: Sequence[int], eps_factor: float, rope_stride: int = 1
    ) -> dict[str, Any]:
        """Return the config for other axis sizes, copies of the layers, and eps times `eps_factor`.

        A size that the source leaves to the family's default is stated only where the default would differ.

        rope_stride: old rotary pair k is pair k * rope_stride, so that frequencies base ** (-2 i / n) are the same.
        """
        config = {key: value for key, value in self.config.items() if key != "auto_map"}
        config |= {key: self._stated_size(key, axes, sizes) for key, axes in self.sizes.items()}
        config |= dict.fromkeys(self.depth_keys, len(layers))
        lists = {**self.unread_lists, **self.layer_lists}
        config |= {key: [values[layer] for layer in layers] for key, values in lists.items()}
        config |= {key: [[config[listed], 1]] for key, listed in self.grouped_lists.items()}
        for key, members in self.layer_sets.items():
            config[key] = [new for new, layer in enumerate(layers) if layer in members]
        config |= {key: self.leading_layers(key, layers) for key in self.layer_counts}
        for key, axis in self.ratios.items():
            config[key] = size(self.config, key) * sizes[axis] // self.axes[axis].size
        config |= self.scaled_by_depth(len(layers))
        if eps_factor != 1:
            if self.eps is None:
                raise ConfigError(f"{self.model_type} has no other eps: {self.no_rescale}. Use norm_eps: stock.")
            config[self.eps] = number(self.config, self.eps, self.eps_default) * eps_factor
        if self.rotary is not None:
            config |= rope_config(self.config, self.rotary * rope_stride, sizes[self.rotary_axis], self.rope_names)
        channels = self.head_channels
        if self.rotary_key and rope_stride > 1:
            config[self.rotary_key] = channels.fixed * rope_stride
        if self.bases and sizes[channels.name] != channels.size * rope_stride:
            ratio = sizes[channels.name] / (channels.size * rope_stride)
            config |= rope_bases(self.config, self.bases, ratio)
            config |= {key: [power(base, ratio) if base else 0 for base in config[key]] for key in self.base_lists}
        return self._with_patterns(self._without_implied_sizes(config, sizes), lists.keys())

    def scaled_by_depth(self, depth: int) -> dict[str, float]:
        """Return the numbers of a config that another depth changes, by key; none if this one is 0."""
        root = math.sqrt(depth / self.depth) if self.depth else 1.0
        changed = self.depth_roots if root != 1 else {}
        return {key: number(self.config, key, default) * root for key, default in changed.items()}

    def leading_layers(self, key: str, layers: Sequence[int]) -> int:
        """Return the number of leading layers of a kind that a config key counts, for copies of the layers.

        Raises:
            ConfigError: a layer of that kind would follow one of another.
        """
        counted = self.layer_counts[key]
        number = sum(layer < counted for layer in layers)
        late = next((new for new in range(number, len(layers)) if layers[new] < counted), None)
        if late is not None:
            raise ConfigError(
                f"Layer {late} of the grown model would copy layer {layers[late]}, one of the first {counted} that "
                f"{key} counts, behind a copy of layer {layers[late - 1]}, which is of another kind: the config has no "
                "such model."
            )
        return counted if number == len(layers) <= counted else number

    def _stated_size(self, key: str, axes: str, sizes: Mapping[str, int]) -> int:
        """The value of a config key that states a product of axes, a sum of products, or a whole ratio."""
        units, _, over = axes.partition("/")
        product = sum(math.prod(sizes[axis] for axis in names.split()) for names in units.split("+"))
        by = math.prod(sizes[axis] for axis in over.split())
        if product % by:
            raise ConfigError(
                f"{self.model_type} states {key} = {axes} as a whole number, and {product} is not a multiple of {by}. "
                f"Grow {', '.join(axes.replace('/', ' ').split())} so that it is."
            )
        return product // by

    def _without_implied_sizes(self, config: dict[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        """A grown config without the sizes that the source leaves to the family's default, where it still holds."""
        for key in self.sizes.keys() - self.config.keys():
            implied = {name: value for name, value in config.items() if name != key}
            if self._sizes(implied) == sizes:
                config = implied
        return config

    def _with_patterns(self, config: dict[str, Any], lists: Collection[str]) -> dict[str, Any]:
        """A grown config whose numbers beside a list of layers imply that list; others are left out."""
        for key, (read_as, listed) in PATTERNS.items():
            if key in config and listed in lists and config[listed]:
                number_of = self._pattern(config, read_as, listed, config[key])
                config = {name: value for name, value in config.items() if name != key}
                config |= {} if number_of is None else {key: number_of}
        return config

    def _pattern(self, config: Config, key: str, listed: str, old: Any) -> Any:
        """Return the number that implies a config's list of layers, preferably the old one; None if no number does.

        A number that the family does not read implies nothing, except where no layer has a window because the config
        turns windows off.
        """
        layers = config[listed]
        first = next((layer for layer, kind in enumerate(layers) if kind != layers[0]), len(layers))
        stated = {name: value for name, value in config.items() if name != listed}
        for value in (old, first, first + 1):
            tried = TrackedConfig({**stated, key: value})
            try:
                implied = self.family(tried).layer_lists.get(listed)
            except ConfigError:
                continue
            idle = "sliding_attention" not in layers and _turns_windows_off(tried)
            if implied == layers and (key in tried.asked or idle):
                return value
        return None

    def _sizes(self, config: Config) -> dict[str, int] | None:
        try:
            return {name: axis.size for name, axis in self.family(config).axes.items()}
        except ConfigError:
            return None


def _turns_windows_off(read: TrackedConfig) -> bool:
    """Whether a config that its family has read turns sliding windows off, whatever its layers' kinds."""
    switched = "use_sliding_window" in read.asked
    return not read.get("use_sliding_window", not switched) or read.get("sliding_window", True) is None


def renamed(weight: Weight, ours: str, theirs: str) -> Weight:
    """Return a weight with another prefix, if its name has this one."""
    return replace(weight, name=theirs + weight.name.removeprefix(ours)) if weight.name.startswith(ours) else weight
