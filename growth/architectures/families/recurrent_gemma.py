"""RecurrentGemma (Griffin): Gemma with a gated linear recurrence (RG-LRU) in most layers.

A channel of the recurrence is a column of everything between linear_x and linear_out, but for its two gates: these
are sigmoids that each read all channels of its block, of which there are as many as query heads. So heads, and query
heads of a KV head, grow in both kinds of layers at once, and the channels of a block on their own.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, Axis, family, linear, weight
from growth.architectures.blocks import Attention, Mixer, Norms, gated_mlp, in_layers, layers_of, square_head_dim
from growth.architectures.config import Config, divide, flag, size
from growth.architectures.decoder import SIZES, decoder
from growth.architectures.rotary import rotary_channels
from growth.architectures.state_space import conv, conv_axis
from growth.errors import ConfigError

USUAL = {key: axes for key, axes in SIZES.items() if axes != "ffn"}
PATTERN = ("recurrent", "recurrent", "attention")
WIDTH = "heads queries lru_block"


@family
def recurrent_gemma(config: Config) -> Architecture:
    """Return the table of a RecurrentGemma: an MLP of half of intermediate_size, a bias on all but q, k and v."""
    kinds = _kinds(config)
    head_dim, bias = square_head_dim(config), flag(config, "attention_bias", False)
    attention = Attention("temporal_block", bias=(bias, True), layers=layers_of(kinds, "attention"))
    table = decoder(
        {**config, "block_types": kinds},
        attention,
        gated_mlp("mlp_block", bias=True),
        Norms(("temporal_pre_norm", "channel_pre_norm"), offset=1.0),
        names=("model.embed_tokens", "model.layers.{layer}", "model.final_norm"),
        embed_scaled=True,
        default_tied=True,
        sizes=USUAL,
        defaults={"head_dim": head_dim},
        rotary=rotary_channels(config, head_dim, 0.5),
        mixer=_recurrence(config, layers_of(kinds, "recurrent")),
    )
    table = table.with_axes(Axis("ffn", size(config, "intermediate_size", 7680, least=2) // 2))
    spaces = {name: tuple(map(_rounded, views)) for name, views in table.spaces.items()}
    sizes = {**table.sizes, "intermediate_size": "ffn + ffn"}
    return replace(table, spaces=spaces, sizes=sizes, layer_lists={"block_types": kinds})


def _kinds(config: Config) -> list[str]:
    """Return the kinds of the layers: the config's list of some, over and over again.

    Raises:
        ConfigError: another kind, or no list.
    """
    stated = config.get("block_types", PATTERN)
    depth = size(config, "num_hidden_layers", 26)
    if not isinstance(stated, list | tuple) or not {*stated} <= {*PATTERN} or len(stated) * 100 < depth:
        raise ConfigError(f"config.json has block_types = {stated!r}: a list of recurrent and attention is needed.")
    return (list(stated) * 100)[:depth]


def _rounded(view: str) -> str:
    """Return the view that the class has in place of Gemma's: a factor that is stored as a bfloat16."""
    return "before_rounded_embed_scale" if view == "before_embed_scale" else view


def _recurrence(config: Config, layers: tuple[int, ...]) -> Mixer:
    """Return the mixer of a recurrence.

    Raises:
        ConfigError: channels that blocks cannot share equally.
    """
    block, inner = "temporal_block", "(heads queries lru_block)"
    width, blocks = size(config, "lru_width", size(config, "hidden_size")), size(config, "num_attention_heads")
    gates = [
        one
        for gate in ("input_gate", "recurrent_gate")
        for one in (
            weight(f"{block}.rg_lru.{gate}_weight", "(heads queries) gate_input lru_block", ("gate_input",)),
            weight(f"{block}.rg_lru.{gate}_bias", "(heads queries) lru_block"),
        )
    ]
    return Mixer(
        in_layers(
            layers,
            *linear(f"{block}.linear_y", inner, "normed", bias=True),
            *linear(f"{block}.linear_x", inner, "normed", bias=True),
            *linear(f"{block}.linear_out", "residual", inner, bias=True, branch_end=True),
            *conv(f"{block}.conv_1d", inner, bias=True),
            replace(weight(f"{block}.rg_lru.recurrent_param", inner), borrowed=True),
            *gates,
        ),
        axes=(
            Axis("lru_block", divide("lru_width", width, "num_attention_heads", blocks)),
            conv_axis(size(config, "conv1d_width", 4)),
        ),
        sizes={"lru_width": WIDTH, "conv1d_width": "conv_kernel"},
        spaces={"gate_input": ("lru_block",)},
    )
