"""The table of a decoder-only model, from its blocks and its names: what most families share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from growth.architectures.base import (
    Architecture,
    Axis,
    RotaryPairs,
    Weight,
    WeightPart,
    axes_by_name,
    external_axis,
    linear,
    weight,
)
from growth.architectures.blocks import (
    Attention,
    AttentionBlock,
    Mixer,
    Norms,
    gated_mlp,
    grouped_heads,
    implied_head_dim,
)
from growth.architectures.config import Config, flag, size
from growth.architectures.rotary import MULTIMODAL, PER_FREQUENCY, rope_types
from growth.errors import ConfigError

# the usual config keys, and the axes whose product they are
SIZES = {
    "hidden_size": "residual",
    "intermediate_size": "ffn",
    "num_attention_heads": "heads queries",
    "num_key_value_heads": "heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab",
}
# where every query head has keys and values of its own
UNGROUPED = {
    "hidden_size": "residual",
    "intermediate_size": "ffn",
    "num_attention_heads": "heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab",
}
NOT_MLP = ("residual", "heads", "heads queries", "head_dim", "vocab")  # other sizes of one axis are the MLP's
BASE = (("", "rope_theta", 1e4),)  # of the rotary embedding, as Architecture.bases
OWN_KEYS = (
    "every query head of this family has its own KV head, so its config cannot express several query heads per KV "
    "head. Widen heads instead."
)
RESERVED = "the first two positions are reserved for padding. Widen positions instead."
CLIPPED = (
    "a larger head_dim changes the softmax scale, and scaling the queries cannot compensate for that, because clip_qkv "
    "clamps them. Widen heads instead."
)
UNTRAINED_HEADS = (
    "one norm runs over all heads, so fresh queries and keys must be zero in front of it, and where both are zero "
    "neither ever has a gradient."
)
UNTRAINED_CHANNELS = (
    "an RMSNorm runs over the channels of a head, so fresh channels of queries and keys must be zero in front of it, "
    "and where both are zero neither ever has a gradient."
)


def decoder(
    config: Config,
    attention: AttentionBlock | None = Attention(),  # noqa: B008 (frozen)
    mlp: tuple[Weight, ...] = gated_mlp(),
    norms: Norms = Norms(),  # noqa: B008
    *,
    names: tuple[str, str, str] = ("model.embed_tokens", "model.layers.{layer}", "model.norm"),
    embed_scaled: bool = False,
    logits_scaled: bool = False,
    default_tied: bool = False,
    head: str = "lm_head",
    head_bias: bool = False,
    depth: str = "num_hidden_layers",
    sizes: Mapping[str, str] = SIZES,
    defaults: Mapping[str, int] = {},
    heads: tuple[Axis, Axis] | None = None,
    channels: tuple[Axis, ...] = (),
    rotary: int | None = None,
    bases: tuple[tuple[str, str, float], ...] = BASE,
    pairs: RotaryPairs = "halves",
    layer_types: Sequence[str] | None = None,
    mixer: Mixer = Mixer((), (), {}),  # noqa: B008
) -> Architecture:
    """Return the table of a decoder-only model.

    attention, mlp, norms: those of a layer, with names inside the layer; by default Llama's. None for attention if no
        layer has it.
    names: of the embedding, a layer and the final norm.
    embed_scaled: the model multiplies its embedding by sqrt(hidden_size).
    logits_scaled: the model divides the stream in front of the head by hidden_size over a constant.
    default_tied: tie_word_embeddings if the config does not state it.
    head: its name.
    head_bias: the head has a bias, also where its matrix is the embedding's.
    depth: the config key of the number of layers.
    sizes: config keys and the axes whose product they are. Without a key of `heads queries`, every query head has its
        own KV head. Those of other axes than a decoder's stream and heads are the MLP's.
    defaults: sizes of axes that the config may leave out. head_dim is hidden_size / num_attention_heads by default.
    heads: the axes of KV heads, and of query heads per KV head, if they have constraints of their own.
    channels: the axes of a head's channels, if they are others than head_dim alone.
    rotary: number of leading rotary channels of a head, if RoPE may cover only a part of it: 0 for no RoPE. None if it
        covers the whole head.
    bases: of the rotary embedding where it covers the whole head, as in `Architecture`.
    pairs: which rotary channels are a pair: channel i of each half of them, or neighbours.
    mixer: what some layers have in place of attention, or beside it.

    Raises:
        ConfigError: a missing key, an impossible size, or RoPE on an odd number of channels.
    """
    embedding, layer, final_norm = names
    tied = flag(config, "tie_word_embeddings", default_tied)
    attending = () if attention is None else attention.weights(norms.offset)
    in_layer = (*norms.around(0, (*mixer.weights, *attending)), *norms.around(1, mlp))
    keys = {axes: key for key, axes in sizes.items()}
    across = attention is not None and attention.qk_norm == "across"
    of_attention: tuple[Axis, ...] = ()
    if attention is not None:
        own = heads or _heads(config, keys, defaults)
        if not channels:
            channels = (_channels(config, _head_dim(config, defaults), attention, norms, rotary, pairs),)
        of_attention = (
            *(replace(axis, norm="rms", untrained=UNTRAINED_HEADS) if across else axis for axis in own),
            *channels,
        )
    others = {*NOT_MLP, *(axis.name for axis in (*channels, *mixer.axes))}
    return Architecture(
        config=config,
        axes=axes_by_name(
            Axis("residual", size(config, keys["residual"]), norm=norms.kind),
            *(
                Axis(axis, size(config, key, defaults.get(axis)))
                for axis, key in keys.items()
                if axis not in others and " " not in axis
            ),
            *of_attention,
            *mixer.axes,
            external_axis("vocab", size(config, keys["vocab"])),
        ),
        depth=size(config, depth),
        weights=(
            weight(f"{embedding}.weight", "vocab embedded"),
            *named_inside(layer, in_layer),
            *norms.weights(final_norm, "before_logit_scale" if logits_scaled else "head_input"),
            *lm_head(tied, head, bias=head_bias),
        ),
        spaces={
            **_stream_spaces(norms, embed_scaled, tied, logits_scaled),
            **({} if attention is None else attention.spaces),
            **mixer.spaces,
        },
        sizes={**sizes, **mixer.sizes},
        depth_keys=(depth,),
        layer_lists={} if layer_types is None else {"layer_types": layer_types},
        norms=((("heads", "head_dim"), ("queries", "heads", "head_dim")) if across else ()) + mixer.norms,
        eps=norms.eps,
        eps_default=norms.eps_default,
        rotary=rotary or None,
        bases=bases if rotary is None and attention is not None else (),
    )


def with_learned_positions(
    table: Architecture, name: str, key: str, default: int, *, reserved: int = 0
) -> Architecture:
    """Return a table with a weight of learned positions after the embedding.

    key, default: the config key of their number, and its value if the config has none.
    reserved: number of rows before them, which stand for padding.
    """
    rows = (WeightPart("reserved residual"),) * bool(reserved) + (WeightPart("positions residual"),)
    padding = (Axis("reserved", reserved, fixed=reserved, refusal=RESERVED),) * bool(reserved)
    embedding, *others = table.weights
    return replace(
        table.with_axes(external_axis("positions", size(table.config, key, default)), *padding),
        sizes={**table.sizes, key: "positions"},
        weights=(embedding, Weight(name, rows), *others),
    )


def never_tied(config: Config) -> Config:
    """Return a config that says what its class does whatever the config states: embedding and head are two matrices."""
    return {**config, "tie_word_embeddings": False}


def named_inside(module: str, weights: tuple[Weight, ...]) -> tuple[Weight, ...]:
    """Return weights with their full names, those inside a module."""
    return tuple(replace(weight, name=f"{module}.{weight.name}") for weight in weights)


def lm_head(tied: bool, name: str = "lm_head", *, bias: bool = False) -> tuple[Weight, ...]:
    """Return the weights of the head; a tied one has at most a bias of its own."""
    return linear(name, "vocab", "head_input", bias=bias)[tied:]


def _heads(config: Config, keys: Mapping[str, str], defaults: Mapping[str, int]) -> tuple[Axis, Axis]:
    """Return the axes of KV heads, and of query heads per KV head."""
    if "heads queries" in keys:
        return grouped_heads(config, defaults.get("heads"))
    return Axis("heads", size(config, keys["heads"])), Axis("queries", 1, refusal=OWN_KEYS)


def _head_dim(config: Config, defaults: Mapping[str, int]) -> int:
    """Return head_dim as the config states it, or its default."""
    return size(config, "head_dim", defaults["head_dim"]) if "head_dim" in defaults else implied_head_dim(config)


def _channels(
    config: Config,
    head_dim: int,
    attention: AttentionBlock,
    norms: Norms,
    rotary: int | None,
    pairs: RotaryPairs,
) -> Axis:
    """Return the axis of a head's channels.

    Raises:
        ConfigError: RoPE covers the whole head, and the number of channels is odd.
    """
    untrained = UNTRAINED_CHANNELS if attention.qk_norm and norms.kind == "rms" else ""
    axis = Axis(
        "head_dim",
        head_dim,
        norm=norms.kind if attention.qk_norm else None,
        untrained=UNTRAINED_HEADS if attention.qk_norm == "across" else untrained,
    )
    if rotary is not None:
        return replace(axis, fixed=rotary, rotary_pairs=pairs if rotary else None, partly_rotary=True)
    if head_dim % 2:
        raise ConfigError(
            f"config.json has head_dim = {head_dim}: rotary channels come in pairs, so an even number is needed."
        )
    return replace(axis, fixed=head_dim, rotary_pairs=pairs, refusal=rope_refusal(config))


def _stream_spaces(norms: Norms, embed_scaled: bool, tied: bool, logits_scaled: bool) -> dict[str, tuple[str, ...]]:
    """Return the residual stream as the embedding writes it, as attention and MLP read it, and as the head reads it."""
    normed = ("residual", "normed" if norms.gain else "norm_without_gain")
    embedded = ("residual", *(("before_embed_scale",) if embed_scaled else ()))
    head_input = (*embedded, "tied_head") if tied and norms.gain else normed
    return {
        "embedded": embedded,
        "normed": normed if norms.before else ("residual",),
        "head_input": head_input,
        **({"before_logit_scale": (*head_input, "before_logit_scale")} if logits_scaled else {}),
    }


def rope_refusal(config: Config, covered: str = "the whole head") -> str:
    """Return why the channels that RoPE covers cannot grow by another base, or an empty string if they can."""
    unknown = rope_types(config) - {*PER_FREQUENCY, MULTIMODAL}
    if unknown:
        return (
            f"RoPE covers {covered} here, and growth computes no other base for '{', '.join(sorted(unknown))}' "
            "frequencies at which the old channels would keep theirs. Widen heads instead."
        )
    if config.get("clip_qkv") is not None:
        return CLIPPED
    return ""
