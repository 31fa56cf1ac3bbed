"""RWKV-4: a linear attention with a decay rate for each channel, and an MLP behind a gate on the stream.

Both blocks mix each channel of their input with that of the token before, in proportions of `time_mix_*`, and copies of
a channel have the same proportions. The attention works on each of its channels alone. The class keeps a state of
hidden_size channels for it, so they grow along with the stream. The MLP's output is multiplied by a sigmoid for each
channel of the stream, which copies share. The embedding is normalised, so the stream begins as a LayerNorm's output,
and only equally many copies of every unit preserve its mean.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, Axis, Weight, family, linear, norm, weight
from growth.architectures.blocks import Mixer, layer_norms
from growth.architectures.config import Config, size
from growth.architectures.decoder import decoder
from growth.architectures.families.opt import POST_NORM
from growth.errors import ConfigError

MIXED = ("key", "value", "receptance")


@family
def rwkv(config: Config) -> Architecture:
    """Return the table of an RWKV-4.

    Raises:
        ConfigError: the class halves the stream of deep models, or the attention is not as wide as the stream.
    """
    hidden, depth = size(config, "hidden_size"), size(config, "num_hidden_layers")
    inner = size(config, "attention_hidden_size", hidden)
    if 0 < size(config, "rescale_every", 6, least=-1) <= depth:
        raise ConfigError(
            f"config.json has rescale_every = {config.get('rescale_every', 6)} and {depth} layers: outside of training "
            "the class halves weights and stream after every so many layers, and eps counts for more behind. Set "
            "rescale_every to 0: the function stays the same, but for eps and for overflow in float16."
        )
    if inner != hidden:
        raise ConfigError(
            f"config.json has attention_hidden_size = {inner} and hidden_size = {hidden}, and the class keeps a state "
            "of hidden_size channels. Grow residual and inner so that they agree."
        )
    table = decoder(
        config,
        None,
        _mlp(),
        layer_norms("ln1", "ln2", eps="layer_norm_epsilon"),
        names=("rwkv.embeddings", "rwkv.blocks.{layer}", "rwkv.ln_out"),
        head="head",
        sizes={"hidden_size": "residual", "intermediate_size": "ffn", "vocab_size": "vocab"},
        defaults={"ffn": 4 * hidden},
        mixer=Mixer(_attention(), (Axis("inner", inner),), {"attention_hidden_size": "inner"}),
    )
    embedding, *others = table.weights
    first = norm("rwkv.blocks.0.pre_ln", "residual", "residual", bias=True)
    stream = replace(table.axes["residual"], equal_copies=POST_NORM)
    spaces = {**table.spaces, "gated": ("residual", "normed")}
    return replace(table.with_axes(stream), weights=(embedding, *first, *others), spaces=spaces)


def _attention() -> tuple[Weight, ...]:
    per_channel = (
        replace(weight(f"attention.{name}", "inner"), borrowed=True) for name in ("time_decay", "time_first")
    )
    return (
        *per_channel,
        *_proportions("attention", *MIXED),
        *(one for name in MIXED for one in linear(f"attention.{name}", "inner", "normed")),
        *linear("attention.output", "residual", "inner", branch_end=True),
    )


def _mlp() -> tuple[Weight, ...]:
    return (
        *_proportions("feed_forward", "key", "receptance"),
        *linear("feed_forward.key", "ffn", "normed"),
        *linear("feed_forward.receptance", "gated", "normed"),
        *linear("feed_forward.value", "residual", "ffn", branch_end=True),
    )


def _proportions(block: str, *names: str) -> tuple[Weight, ...]:
    return tuple(replace(weight(f"{block}.time_mix_{name}", "1 1 gated"), borrowed=True) for name in names)
