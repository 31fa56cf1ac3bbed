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
from typing import Any, Literal

from growth.architectures.config import LARGEST_AXIS, LARGEST_TABLE, Config, TrackedConfig, number, of_layers, size
from growth.architectures.rotary import rope_bases, rope_config
from growth.errors import ConfigError

RotaryPairs = Literal["halves", "neighbours"]
Family = Callable[[Config], "Architecture"]
FAMILIES: dict[str, Family] = {}  # by model_type
# config keys whose number implies a list of layers: the key that tables read, and the list
PATTERNS = {
    "max_window_layers": ("max_window_layers", "layer_types"),
    "sliding_window_pattern": ("sliding_window_pattern", "layer_types"),
    "_sliding_window_pattern": ("sliding_window_pattern", "layer_types"),
    "layer_switch": ("sliding_window_pattern", "layer_types"),
    "no_rope_layer_interval": ("no_rope_layer_interval", "no_rope_layers"),
}
# lists with one entry per layer, and the types of their entries: transformers checks their lengths in every config
LAYER_LISTS = {"layer_types": (str,), "mlp_layer_types": (str,), "no_rope_layers": (int, bool)}
UNITS = {"expert": ("experts",), "head": ("heads",), "query_head": ("heads", "queries")}


def family(table: Family) -> Family:
    """Register a function from a config to its table as the family of its name, a config's model_type."""

    @wraps(table)
    def complete(config: Config) -> Architecture:
        built = table(config)
        unread, untracked = LAYER_LISTS.keys() - built.layer_lists.keys(), dict(config)
        stated = {key: of_layers(untracked, key, LAYER_LISTS[key], spare=True) for key in sorted(unread)}
        return replace(built, unread_lists={key: values for key, values in stated.items() if values is not None})

    FAMILIES[table.__name__] = complete
    return table


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
    max_size: the size up to which it can grow despite `refusal`.
    untrained: which weights of fresh units would never have a gradient, and why; empty if there are none.
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
    max_size: int = 0
    untrained: str = ""

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
        return not (self.norm or self.external or self.fixed or self.equal_copies or self.max_size)


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
    """

    name: str
    parts: tuple[WeightPart, ...]
    fused: int = 0
    within: tuple[str, ...] = ()
    norm_inputs: tuple[str, ...] | None = None
    offset: float = 0.0
    branch_end: bool = False
    layers: tuple[int, ...] | None = None

    @property
    def per_layer(self) -> bool:
        """Whether every layer has such a weight."""
        return "{layer}" in self.name

    @property
    def units(self) -> tuple[str, ...]:
        """The axes whose units each have a tensor of their own; most weights have none."""
        return next((axes for name, axes in UNITS.items() if f"{{{name}}}" in self.name), ())

    @property
    def is_scalar(self) -> bool:
        """Whether it has no axis: a number of a layer."""
        return self.parts[0].pattern in ("", "1")

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
    """Return the names in an einops pattern, one tuple per dimension.

    >>> dimensions("(heads head_dim) normed")
    (('heads', 'head_dim'), ('normed',))
    """
    from einops.parsing import ParsedExpression

    return tuple(tuple(names) for names in ParsedExpression(pattern).composition)


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
    ratios: config keys whose number grows as an axis does: {"num_experts_per_tok": "experts"}.
    norms: groups of axes that one norm runs over together; the first axis of a group is in no earlier group.
    sizes: config keys and the axes whose product they are: {"num_attention_heads": "heads queries"}.
    depth_keys: config keys that count layers.
    layer_lists: lists with one entry per layer, which the config states or implies; they follow the layers.
    unread_lists: such lists that the config states and the family does not read; they follow the layers too.
    eps, eps_default: the config key of the norms' eps, and its value where the config has none.
    no_rescale: why no other eps gives the same norms of a wider stream; by default because no key states it.
    rotary: number of leading rotary channels of a head, where the config states it as a fraction.
    bases: where RoPE covers the whole head with frequencies base ** (-2 i / head_dim), the bases: the config's layer
        type ("" for all layers), its key in older configs, and its value where the config has none.
    rotary_key: the config key of the number of rotary channels, where the config states it as a number.
    rope_names: the config's own top-level keys of rotary parameters, where they differ from those of transformers 5.
    other_names: prefixes of tensor names, and what some files have in their place.
    no_identity: why no layer can be the identity; empty if one can.
    initial_std: the config key of the standard deviation with which the class initialises matrices, and its value where
        the config has none.
    scaled_ends: whether the class divides that by sqrt(2 * depth) for the last weights of residual branches.
    """

    config: Config
    axes: Mapping[str, Axis]
    depth: int
    weights: tuple[Weight, ...]
    spaces: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, str]
    depth_keys: tuple[str, ...] = ("num_hidden_layers",)
    layer_lists: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    unread_lists: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    grouped_lists: Mapping[str, str] = field(default_factory=dict)
    layer_sets: Mapping[str, Sequence[int]] = field(default_factory=dict)
    ratios: Mapping[str, str] = field(default_factory=dict)
    norms: tuple[tuple[str, ...], ...] = ()
    eps: str | None = None
    eps_default: float = 1e-5
    no_rescale: str = "its config states no eps"
    rotary: int | None = None
    bases: tuple[tuple[str, str, float], ...] = ()
    rotary_key: str = ""
    rope_names: Mapping[str, str] = field(default_factory=dict)
    other_names: Mapping[str, str] = field(default_factory=dict)
    no_identity: str = ""
    initial_std: tuple[str, float] = ("initializer_range", 0.02)
    scaled_ends: bool = False

    @property
    def model_type(self) -> str:
        """The family's name in configs."""
        return str(self.config["model_type"])

    @property
    def family(self) -> Family:
        """The function that makes the table of a config of this family."""
        return FAMILIES[self.model_type]

    @property
    def embedding(self) -> str:
        """The name of the embedding matrix."""
        return self.weights[0].name

    @property
    def tied(self) -> bool:
        """Whether the embedding matrix is also the head."""
        return len(self.with_head(tied=False).weights) > len(self.weights)

    def with_head(self, *, tied: bool) -> Architecture:
        """Return the table of the same config with its head tied to the embedding, or with one of its own."""
        return self.family({**self.config, "tie_word_embeddings": tied})

    def with_depth(self, depth: int) -> Architecture:
        """Return the table of the same config with another number of layers, whose kinds the config implies."""
        stated = {key: value for key, value in self.config.items() if key not in LAYER_LISTS or value != []}
        return self.family({**stated, **dict.fromkeys(self.depth_keys, depth)})

    def with_axes(self, *axes: Axis) -> Architecture:
        """Return the table with more axes, or with others of the same names."""
        return replace(self, axes={**self.axes, **axes_by_name(*axes)})

    def axis(self, space: str) -> str:
        """Return the axis of a space."""
        return self.spaces.get(space, (space,))[0]

    @property
    def known_keys(self) -> set[str]:
        """Config keys that this table writes, whether or not the source states them."""
        stated = (self.sizes, self.depth_keys, self.layer_lists, self.grouped_lists, self.layer_sets, self.ratios)
        rotary = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")
        bases = (key for _, key, _ in self.bases)
        own = (self.eps or "", self.rotary_key, *self.rope_names.values())
        return {key for keys in stated for key in keys} | {*own, *rotary, *bases}

    def length(self, spaces: tuple[str, ...]) -> int:
        """Return the number of indices of a product of spaces."""
        return math.prod(self.axes[self.axis(space)].size for space in spaces)

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

    def parameters(self, *, active: bool = False) -> int:
        """Return the number of parameters, or of those that one token uses: of all experts, those that it goes to."""
        chosen = {axis: size(self.config, key) for key, axis in self.ratios.items()} if active else {}
        used = {name: chosen.get(name, axis.size) for name, axis in self.axes.items()}
        return sum(
            math.prod(self.shape(weight))
            * len(weight.places(self.depth, math.prod(used[axis] for axis in weight.units)))
            for weight in self.weights
        )

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

    def named_as_in(self, tensors: Collection[str]) -> Architecture:
        """Return the table with the tensor names that a checkpoint uses, where the family's files differ in them."""
        weights = self.weights
        for ours, theirs in self.other_names.items():
            if any(name.startswith(theirs) for name in tensors) and not any(name.startswith(ours) for name in tensors):
                weights = tuple(_renamed(weight, ours, theirs) for weight in weights)
        return replace(self, weights=weights)

    def grown_config(
        self, sizes: Mapping[str, int], layers: Sequence[int], eps_factor: float, rope_stride: int = 1
    ) -> dict[str, Any]:
        """Return the config for other axis sizes, copies of the layers, and eps times `eps_factor`.

        A size that the source leaves to the family's default is stated only where the default would differ.

        rope_stride: old rotary pair k is pair k * rope_stride, so that frequencies base ** (-2 i / n) are the same.
        """
        config = {key: value for key, value in self.config.items() if key != "auto_map"}
        config |= {key: math.prod(sizes[axis] for axis in axes.split()) for key, axes in self.sizes.items()}
        config |= dict.fromkeys(self.depth_keys, len(layers))
        lists = {**self.unread_lists, **self.layer_lists}
        config |= {key: [values[layer] for layer in layers] for key, values in lists.items()}
        config |= {key: [[config[listed], 1]] for key, listed in self.grouped_lists.items()}
        for key, members in self.layer_sets.items():
            config[key] = [new for new, layer in enumerate(layers) if layer in members]
        for key, axis in self.ratios.items():
            config[key] = size(self.config, key) * sizes[axis] // self.axes[axis].size
        if eps_factor != 1:
            if self.eps is None:
                raise ConfigError(f"{self.model_type} has no other eps: {self.no_rescale}. Use norm_eps: stock.")
            config[self.eps] = number(self.config, self.eps, self.eps_default) * eps_factor
        if self.rotary is not None:
            config |= rope_config(self.config, self.rotary * rope_stride, sizes["head_dim"], self.rope_names)
        if self.rotary_key and rope_stride > 1:
            config[self.rotary_key] = self.axes["head_dim"].fixed * rope_stride
        if self.bases and sizes["head_dim"] != self.axes["head_dim"].size * rope_stride:
            ratio = sizes["head_dim"] / (self.axes["head_dim"].size * rope_stride)
            config |= rope_bases(self.config, self.bases, ratio)
        return self._with_patterns(self._without_implied_sizes(config, sizes), lists.keys())

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


def _renamed(weight: Weight, ours: str, theirs: str) -> Weight:
    return replace(weight, name=theirs + weight.name.removeprefix(ours)) if weight.name.startswith(ours) else weight
