"""Architecture: a model family as data.

A family is a table of weights. Each weight says, in an einops pattern in storage order, which spaces its
dimensions lie in and which of them it reads; what it does not read it writes. A space is an axis, or an
axis behind a norm. The engine needs nothing else to grow a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from growth.errors import ConfigError

Config = Mapping[str, Any]
Family = Callable[[Config], "Architecture"]
LARGEST_SIZE = 2**31


# config keys that do not change what a model computes
NEUTRAL = (
    "architectures", "auto_map", "model_type", "transformers_version", "_name_or_path", "dtype", "torch_dtype",
    "use_cache", "initializer_range", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
    "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout", "id2label", "label2id",
    "output_attentions", "output_hidden_states", "return_dict", "is_encoder_decoder", "problem_type",
    "chunk_size_feed_forward", "router_aux_loss_coef", "output_router_logits", "classifier_dropout",
)  # fmt: skip


class Consulted(dict[str, Any]):
    """A config that remembers which of its keys have been asked for."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default."""
        self.asked.add(key)
        return super().get(key, default)


@dataclass(frozen=True)
class Axis:
    """A named factor of tensor shapes, and what growing it must respect.

    name: residual, ffn, heads (key-value groups), queries (query heads of a group), head_dim, vocab.
    size: number of units.
    norm: the kind of norm that the units pass through before they are read, if any.
    fixed: how many leading units must stay single (rotary channels: their copies would turn at other
        frequencies).
    halves: units i and i + size/2 turn together (rotary), so fresh ones stand behind each half.
    outer: a copy shares nothing with its original: seen from outside the model (vocab), or chosen (experts).
    alike: every unit must be copied equally often (experts: a softmax runs over them).
    refusal: why this family cannot grow the axis, if it cannot.
    """

    name: str
    size: int
    norm: Literal["layer", "rms"] | None = None
    fixed: int = 0
    halves: bool = False
    outer: bool = False
    alike: bool = False
    refusal: str = ""


@dataclass(frozen=True)
class Part:
    """One of the maps that a stored weight holds: most weights hold one, a fused one several.

    pattern: einops pattern of the storage order over spaces, e.g. "(heads queries head_dim) normed".
    reads: the spaces that it reads; it writes the others.
    """

    pattern: str
    reads: tuple[str, ...] = ()

    @property
    def dimensions(self) -> tuple[tuple[str, ...], ...]:
        """The spaces of each dimension: (("heads", "queries", "head_dim"), ("normed",))."""
        return dimensions(self.pattern)


@dataclass(frozen=True)
class Weight:
    """One weight of every layer, or of the model.

    name: file name, with {layer} where it is one of a layer's and {expert} where it is one of an expert's.
    parts: the maps that it holds, one behind the other along dimension `fused`, within the spaces `within`
        that they share there: q, k, v as a whole, or q, k, v of each head.
    undoes: for a norm's gain, the spaces that the norm reads, one for each of the pattern's: the gain undoes
        their write coefficients and the change of their mean square.
    offset: what the model adds to the stored values (Gemma's norms multiply by 1 + w).
    branch_end: the last weight of a residual branch; zero, it turns its layer into the identity.
    only: the layers that have it, where not all do.
    """

    name: str
    parts: tuple[Part, ...]
    fused: int = 0
    within: tuple[str, ...] = ()
    undoes: tuple[str, ...] | None = None
    offset: float = 0.0
    branch_end: bool = False
    only: tuple[int, ...] | None = None

    @property
    def per_layer(self) -> bool:
        """Whether it is a layer's."""
        return "{layer}" in self.name

    @property
    def per_expert(self) -> bool:
        """Whether it is an expert's."""
        return "{expert}" in self.name

    def at(self, layer: int, expert: int) -> str:
        """The file name of one layer's and expert's."""
        return self.name.format(layer=layer, expert=expert)

    def places(self, depth: int, experts: int) -> list[tuple[int, int]]:
        """The (layer, expert) of every tensor of it; 0 where it has no such index."""
        layers = range(depth) if self.only is None else self.only
        return [
            (layer, expert)
            for layer in (layers if self.per_layer else range(1))
            for expert in range(experts if self.per_expert else 1)
        ]


@cache
def dimensions(pattern: str) -> tuple[tuple[str, ...], ...]:
    """The names of an einops pattern, a tuple a dimension.

    >>> dimensions("(heads head_dim) normed")
    (('heads', 'head_dim'), ('normed',))
    """
    from einops.parsing import ParsedExpression

    return tuple(tuple(names) for names in ParsedExpression(pattern).composition)


def weight(name: str, pattern: str, reads: tuple[str, ...] = (), *, branch_end: bool = False) -> Weight:
    """A weight that holds one map."""
    return Weight(name, (Part(pattern, reads),), branch_end=branch_end)


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
    """The weights of a norm that takes the space `over` (or a product of them) into the space `into`."""
    before = tuple(space for spaces in dimensions(over) for space in spaces)
    gain = Weight(f"{name}.weight", (Part(into, reads),), undoes=before, offset=offset, branch_end=branch_end)
    shift = weight(f"{name}.bias", into, reads, branch_end=branch_end)
    return (gain, shift) if bias else (gain,)


def linear(
    name: str, out: str, into: str, *, reads: tuple[str, ...], bias: bool, branch_end: bool = False
) -> tuple[Weight, ...]:
    """The weights of a linear map from the space `into` to the space `out`, stored (out, in)."""
    matrix = weight(f"{name}.weight", f"{out} {into}", reads, branch_end=branch_end)
    return (matrix, weight(f"{name}.bias", out, reads, branch_end=branch_end)) if bias else (matrix,)


@dataclass(frozen=True)
class Architecture:
    """One model's family and geometry, as its config states them.

    family: the function that made this table from `config`.
    axes: by name.
    depth: number of layers.
    weights: the table.
    spaces: the spaces that are not axes themselves, as an axis and how it is seen there:
        {"normed": ("residual", "normed")}. The views are those of `growth.views`.
    layer_sets: config keys that list the layers of a kind.
    ratios: config keys whose number grows as an axis does: {"num_experts_per_tok": "experts"}.
    norms: the axes that one norm runs over together, where it runs over more than one; the first of each group is
        in none of the groups before.
    sizes: config keys and the axes whose product they are: {"num_attention_heads": "heads queries"}.
    layers: config keys that count layers.
    layer_lists: lists with one entry a layer, as the config states or implies them; they follow the layers.
    eps, eps_default: the config key of the norms' eps, and its value where the config has none.
    rotary: how many leading channels of a head turn, where the config states that as a fraction.
    bases: where all channels of a head turn at base ** (-2 i / head_dim), the bases: the config's layer type ("" for
        all layers), its key in older configs, and its value where the config has none.
    recomputed: suffixes of tensors that old files hold and the model class computes itself.
    """

    model_type: str
    family: Family
    config: Config
    axes: Mapping[str, Axis]
    depth: int
    weights: tuple[Weight, ...]
    spaces: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, str]
    layers: tuple[str, ...] = ("num_hidden_layers",)
    layer_lists: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    layer_sets: Mapping[str, Sequence[int]] = field(default_factory=dict)
    ratios: Mapping[str, str] = field(default_factory=dict)
    norms: tuple[tuple[str, ...], ...] = ()
    eps: str | None = None
    eps_default: float = 1e-5
    rotary: int | None = None
    bases: tuple[tuple[str, str, float], ...] = ()
    recomputed: tuple[str, ...] = field(default=())

    def axis(self, space: str) -> str:
        """The axis of a space."""
        return self.spaces.get(space, (space,))[0]

    @property
    def known_keys(self) -> set[str]:
        """Config keys that this table states, whether or not the source does."""
        stated = (self.sizes, self.layers, self.layer_lists, self.layer_sets, self.ratios)
        rotary = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")
        return {key for keys in stated for key in keys} | {self.eps or "", *rotary}

    def length(self, spaces: tuple[str, ...]) -> int:
        """The number of indices of a product of spaces."""
        return math.prod(self.axes[self.axis(space)].size for space in spaces)

    def shape(self, weight: Weight) -> tuple[int, ...]:
        """The stored shape of a weight."""
        shape = [self.length(spaces) for spaces in weight.parts[0].dimensions]
        shape[weight.fused] = sum(self.length(part.dimensions[weight.fused]) for part in weight.parts)
        return tuple(shape)

    def names(self, weight: Weight) -> list[str]:
        """The file names of a weight: one a layer and expert, or one."""
        experts = self.axes["experts"].size if "experts" in self.axes else 1
        return [weight.at(*place) for place in weight.places(self.depth, experts)]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that a checkpoint of this architecture must hold, and its shape."""
        return {name: self.shape(weight) for weight in self.weights for name in self.names(weight)}

    def grown_config(self, sizes: Mapping[str, int], layers: Sequence[int], eps_factor: float) -> dict[str, Any]:
        """The config of the same family with other axis sizes, copies of the layers, eps times `eps_factor`.

        A size that the source leaves to the family's default is stated only where the default would differ.
        """
        config = {key: value for key, value in self.config.items() if key != "auto_map"}
        config |= {key: math.prod(sizes[axis] for axis in axes.split()) for key, axes in self.sizes.items()}
        config |= dict.fromkeys(self.layers, len(layers))
        config |= {key: [values[layer] for layer in layers] for key, values in self.layer_lists.items()}
        for key, members in self.layer_sets.items():
            config[key] = [new for new, layer in enumerate(layers) if layer in members]
        for key, axis in self.ratios.items():
            config[key] = size(self.config, key) * sizes[axis] // self.axes[axis].size
        if eps_factor != 1:
            if self.eps is None:
                raise ConfigError(f"{self.model_type} states no eps in its config: use norm_eps: stock.")
            config[self.eps] = number(self.config, self.eps, self.eps_default) * eps_factor
        if self.rotary is not None:
            config |= rope_config(self.config, self.rotary, sizes["head_dim"])
        if self.bases and sizes["head_dim"] != self.axes["head_dim"].size:
            config |= rope_bases(self.config, self.bases, sizes["head_dim"] / self.axes["head_dim"].size)
        for key in self.sizes.keys() - self.config.keys():
            implied = {name: value for name, value in config.items() if name != key}
            if self._sizes(implied) == sizes:
                config = implied
        return config

    def _sizes(self, config: Config) -> dict[str, int] | None:
        try:
            return {name: axis.size for name, axis in self.family(config).axes.items()}
        except ConfigError:
            return None


# ------------------------------------------------- reading configs


def size(config: Config, key: str, default: int | None = None) -> int:
    """A positive integer of a config.

    Raises:
        ConfigError: missing without a default, or not a positive integer.
    """
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise ConfigError(f"config.json has no '{key}'.")
    if type(value) is not int or not 0 < value < LARGEST_SIZE:
        raise ConfigError(f"config.json has {key} = {value!r}; a whole number above 0 is needed.")
    return value


def number(config: Config, key: str, default: float) -> float:
    """A finite, non-negative number of a config.

    Raises:
        ConfigError: anything else.
    """
    value = config.get(key, default)
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ConfigError(f"config.json has {key} = {value!r}; a number of 0 or more is needed.")
    return float(value)


def flag(config: Config, key: str, default: bool) -> bool:
    """A boolean of a config.

    Raises:
        ConfigError: anything else.
    """
    value = config.get(key, default)
    if type(value) is not bool:
        raise ConfigError(f"config.json has {key} = {value!r}; true or false is needed.")
    return value


def divide(config_key: str, total: int, by_key: str, by: int) -> int:
    """`total / by` of two config values.

    Raises:
        ConfigError: not a whole number.
    """
    if total % by:
        raise ConfigError(f"config.json has {config_key} = {total}, which is not a multiple of {by_key} = {by}.")
    return total // by


def rope(config: Config, key: str, default: Any) -> Any:
    """A value that transformers 5 keeps in `rope_parameters` and older configs at top level.

    Where `rope_parameters` are nested by layer type, so is the value.

    Raises:
        ConfigError: both forms are present and disagree.
    """
    nested = _nested_rope(config)
    by_layer_type = {kind: form[key] for kind, form in nested.items() if isinstance(form, Mapping) and key in form}
    if by_layer_type:
        return by_layer_type
    found = {name: form[key] for name, form in (("rope_parameters", nested), ("top level", config)) if key in form}
    if len(set(map(repr, found.values()))) > 1:
        raise ConfigError(f"config.json has two values of {key}: {found}. Remove one.")
    return next(iter(found.values()), default)


def _nested_rope(config: Config) -> Mapping[str, Any]:
    nested = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(nested, Mapping):
        raise ConfigError(f"config.json has rope_parameters = {nested!r}; an object is needed.")
    return nested


def rotary_channels(config: Config, head_dim: int, default: float) -> int:
    """How many leading channels of each head turn: int(head_dim * partial_rotary_factor), as models compute it.

    Raises:
        ConfigError: the factor is not in [0, 1], or the channels are odd or none; or the frequencies hang on
            head_dim itself and not on the channels that turn.
    """
    if rope(config, "rope_type", "default") == "proportional":
        raise ConfigError(
            "config.json has rope_type 'proportional', whose frequencies hang on head_dim and not on the channels "
            "that turn: such heads cannot grow in this family."
        )
    factor = rope(config, "partial_rotary_factor", default)
    if type(factor) not in (int, float) or not 0 < factor <= 1:
        raise ConfigError(f"config.json has partial_rotary_factor = {factor!r}; a number in (0, 1] is needed.")
    channels = int(head_dim * factor)
    if channels < 2 or channels % 2:
        raise ConfigError(
            f"config.json has head_dim = {head_dim} and partial_rotary_factor = {factor}, hence {channels} rotary "
            "channels; they turn in pairs, so an even number of at least 2 is needed."
        )
    return channels


def partial_rotary_factor(channels: int, head_dim: int) -> float:
    """The factor for which int(head_dim * factor) is `channels`, nudged where the quotient truncates.

    >>> int(44 * (30 / 44)), int(44 * partial_rotary_factor(30, 44))
    (29, 30)
    """
    factor = channels / head_dim
    while int(head_dim * factor) < channels:
        factor = math.nextafter(factor, 1)
    assert int(head_dim * factor) == channels
    return factor


def rope_config(config: Config, channels: int, head_dim: int) -> dict[str, Any]:
    """Both forms of the rotary parameters, for `channels` rotary channels in heads of `head_dim`."""
    factor = partial_rotary_factor(channels, head_dim)
    theta = rope(config, "rope_theta", 10000.0)
    scaling = config.get("rope_scaling") or {}
    nested = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = nested.get("rope_type", nested.get("type", "default"))
    nested |= {"rope_type": kind, "rope_theta": theta, "partial_rotary_factor": factor}
    forms = {"rope_parameters": nested, "rope_theta": theta, "partial_rotary_factor": factor}
    if "partial_rotary_factor" in scaling:  # config classes prefer rope_scaling where both are there
        forms["rope_scaling"] = {**scaling, "partial_rotary_factor": factor}
    return forms


def rope_types(config: Config) -> set[str]:
    """The kinds of rotary embedding that a config names: default, linear, llama3, yarn, …"""
    nested = _nested_rope(config)
    forms = [form for form in nested.values() if isinstance(form, Mapping)] or [nested]
    return {str(form.get("rope_type", form.get("type", "default"))) for form in forms}


def rope_bases(config: Config, bases: Sequence[tuple[str, str, float]], ratio: float) -> dict[str, Any]:
    """The rotary parameters for heads `ratio` times as wide, in which the old channels turn as they did.

    Pair i of n / 2 turns at base ** (-2 i / n). With base ** (N / n) the first n / 2 of N / 2 pairs still do, and
    the others go on where the slowest of them stopped. Old and new forms of the config are both written.
    """
    nested = _nested_rope(config)
    flat = nested if not any(isinstance(form, Mapping) for form in nested.values()) else {}
    forms: dict[str, dict[str, Any]] = {}
    result: dict[str, Any] = {"rope_parameters": forms}
    for layer_type, key, default in bases:
        # what an older config says of rope_scaling is meant for the first
        form = nested.get(layer_type) or ({} if forms else flat)
        base = number(form, "rope_theta", number(config, key, default)) ** ratio
        forms[layer_type] = {"rope_type": form.get("type", "default"), **form, "rope_theta": base}
        result.setdefault(key, base)
    if config.get("rope_scaling"):
        result["rope_scaling"] = forms[bases[0][0]]
    return result | ({"rope_parameters": forms[""]} if "" in forms else {})
