"""Mamba, FalconMamba and Mamba-2: one state-space mixer in each layer, and no attention or MLP.

A Mamba or FalconMamba has expand * hidden_size inner channels if its config states no other number. A Mamba-2 always
has, so its heads or their channels grow along with the residual stream, or by a whole ratio.
"""

from dataclasses import replace
from typing import Literal

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Mixer, Norms
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import decoder
from growth.architectures.state_space import mamba as mamba_mixer
from growth.architectures.state_space import mamba2 as mamba2_mixer
from growth.errors import ConfigError

NAMES = ("backbone.embeddings", "backbone.layers.{layer}", "backbone.norm_f")

MAMBA2_SIZES = {"num_heads": 128, "head_dim": 64, "n_groups": 8, "state_size": 128, "conv_kernel": 4, "expand": 2}


@family
def mamba(config: Config) -> Architecture:
    """Return the table of a Mamba. The first checkpoints name the embedding in the singular."""
    table = _table(config, _mamba(config), default_tied=True)
    return replace(table, other_names={"backbone.embeddings.": "backbone.embedding."})


@family
def falcon_mamba(config: Config) -> Architecture:
    """Return the table of a FalconMamba: norms without gains on B, C and the time steps."""
    return _table(config, _mamba(config, "no gains"), default_tied=True)


@family
def mamba2(config: Config) -> Architecture:
    """Return the table of a Mamba-2."""
    bias, conv_bias = flag(config, "use_bias", False), flag(config, "use_conv_bias", True)
    mixer = mamba2_mixer(config, "mixer", defaults=MAMBA2_SIZES, bias=(bias, bias), conv_bias=conv_bias)
    return _table(config, mixer, default_tied=False)


def _mamba(config: Config, normed: Literal["", "no gains"] = "") -> Mixer:
    bias, conv_bias = flag(config, "use_bias", False), flag(config, "use_conv_bias", True)
    inner = size(config, "intermediate_size", size(config, "expand", 2) * size(config, "hidden_size"))
    return mamba_mixer(config, "mixer", inner=inner, bias=bias, conv_bias=conv_bias, normed=normed)


def _table(config: Config, mixer: Mixer, *, default_tied: bool) -> Architecture:
    """Return the table of a model of such mixers alone.

    Raises:
        ConfigError: loading changes the weights, by the number of layers.
    """
    if flag(config, "rescale_prenorm_residual", False):
        raise ConfigError(
            "config.json has rescale_prenorm_residual = true: whenever transformers loads this model, it divides the "
            "out_proj of each layer by the root of the number of layers. Divide the stored weights by it once, and set "
            "rescale_prenorm_residual to false."
        )
    table = decoder(
        config,
        None,
        (),
        Norms(("norm",), eps="layer_norm_epsilon", eps_default=1e-5),
        names=NAMES,
        default_tied=default_tied,
        sizes={"hidden_size": "residual", "vocab_size": "vocab"},
        mixer=mixer,
    )
    return replace(table, initial_std=("initializer_range", 0.1))
