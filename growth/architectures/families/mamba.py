"""Mamba, FalconMamba and Mamba-2: one state-space mixer in each layer, and no attention or MLP.

The class computes the number of inner channels as expand times hidden_size, so the two grow in proportion, or the inner
channels by a whole ratio.
"""

from dataclasses import replace
from typing import Literal

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Mixer, Norms
from growth.architectures.config import Config, flag
from growth.architectures.decoder import decoder
from growth.architectures.state_space import mamba as mamba_mixer
from growth.architectures.state_space import mamba2 as mamba2_mixer

NAMES = ("backbone.embeddings", "backbone.layers.{layer}", "backbone.norm_f")


@family
def mamba(config: Config) -> Architecture:
    """Return the table of a Mamba. The first checkpoints name the embedding in the singular."""
    table = _table(config, _mamba(config), {"intermediate_size": "inner"}, default_tied=True)
    return replace(table, other_names={"backbone.embeddings.": "backbone.embedding."})


@family
def falcon_mamba(config: Config) -> Architecture:
    """Return the table of a FalconMamba: norms without gains on B, C and the time steps."""
    return _table(config, _mamba(config, "no gains"), {"intermediate_size": "inner"}, default_tied=True)


@family
def mamba2(config: Config) -> Architecture:
    """Return the table of a Mamba-2."""
    bias, conv_bias = flag(config, "use_bias", False), flag(config, "use_conv_bias", True)
    return _table(config, mamba2_mixer(config, "mixer", bias=bias, conv_bias=conv_bias), {}, default_tied=False)


def _mamba(config: Config, normed: Literal["", "no gains"] = "") -> Mixer:
    bias, conv_bias = flag(config, "use_bias", False), flag(config, "use_conv_bias", True)
    return mamba_mixer(config, "mixer", bias=bias, conv_bias=conv_bias, normed=normed)


def _table(config: Config, mixer: Mixer, sizes: dict[str, str], *, default_tied: bool) -> Architecture:
    table = decoder(
        config,
        None,
        (),
        Norms(("norm",), eps="layer_norm_epsilon", eps_default=1e-5),
        names=NAMES,
        default_tied=default_tied,
        sizes={"hidden_size": "residual", "vocab_size": "vocab", **sizes},
        mixer=mixer,
    )
    return replace(table, initial_std=("initializer_range", 0.1))
