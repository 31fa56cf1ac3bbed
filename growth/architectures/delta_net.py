"""Gated delta networks (Yang, Kautz and Hatamizadeh 2025): the linear attention of Qwen3-Next, Qwen3.5 and Kimi Linear.

A key head serves the value heads of its group. A value head's state S is a matrix of key channels times value channels:

    q, k, v = act(conv(...))    S = exp(g) S + beta k (v - exp(g) S^T k)^T    output = out_proj(silu(z) * N(S^T q))

with q and k divided by their lengths, and N an RMSNorm over the value channels of a head.

- Groups, and value heads of a group: no norm runs across them, so they are copied or padded freely.
- Value channels: columns of the state, which do not see one another. Fresh ones have v = 0, so they are silent in front
  of the norm, and z is random. As in Mamba-2, v passes an activation, so the norm's eps becomes n/N of what it was, and
  all channels are copied equally often (`growth.architectures.state_space`).
- Key channels: fresh ones must be zero in both q and k, because they would change the lengths, and then neither ever
  has a gradient. With m copies of each, the length in front of the division is sqrt(m) times as large, so the class's
  own eps becomes a smaller part of it, and the activation passes no factor on that would make up for that.

Kimi delta attention (Kimi Team 2025, arXiv 2510.26692) has a decay exp(g) for each key channel instead of each head.
Its heads have as many channels of keys as of values, and the projections that write g and z have as many inner units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from growth.architectures.base import Axis, linear, norm, weight
from growth.architectures.blocks import Mixer, side_by_side
from growth.architectures.config import Config, divide, of_layers, size
from growth.architectures.state_space import ACTIVATED, LOUD, ZERO_AT_ZERO, conv, conv_axis
from growth.errors import ConfigError

KEYS = "linear_num_key_heads"
VALUES = "linear_num_value_heads"
DELTA_NET = {
    KEYS: "ssm_groups",
    VALUES: "ssm_groups ssm_heads",
    "linear_key_head_dim": "state",
    "linear_value_head_dim": "ssm_head_dim",
    "linear_conv_kernel_dim": "conv_kernel",
}
DEFAULTS = {KEYS: 16, VALUES: 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4}
KIMI = {"linear_num_heads": "ssm_heads", "linear_head_dim": "ssm_head_dim", "linear_conv_kernel_dim": "conv_kernel"}
KIMI_DEFAULTS = {"ssm_heads": 32, "ssm_head_dim": 128, "conv_kernel": 4}
LENGTHS = (
    "queries and keys are divided by their lengths: fresh channels must be zero in both, so neither ever has a "
    "gradient, and copies make the eps beside the length a smaller part of it. Widen {} instead."
)

OWN_EPS = (
    "the class fixes the eps of the norm over these channels, and an activation in front of it passes no factor on, so "
    "only equally many copies of each keep their mean square."
)


def delta_net(
    config: Config,
    name: str,
    projections: Mapping[str, str],
    *,
    within: tuple[str, ...] = (),
    ends: tuple[str, str] = ("norm", "out_proj"),
    own_eps: bool = False,
    defaults: Mapping[str, int] = DEFAULTS,
) -> Mixer:
    """Return the mixer of a gated delta network.

    projections: the names of those of q, k, v and z, of beta and of g; those of one name are stored as one weight,
        `within` each unit of some spaces or as a whole.
    ends: the names of the norm and of the projection behind it.
    own_eps: whether the class fixes the eps of this norm. defaults: sizes of keys that the config may leave out.
    """
    sizes = {axes: size(config, key, defaults[key]) for key, axes in DELTA_NET.items()}
    groups, values = sizes["ssm_groups"], "(ssm_groups ssm_heads ssm_head_dim)"
    heads, keys = "(ssm_groups ssm_heads)", "(ssm_groups state)"
    traits: dict[str, Any] = {"norm": "rms", "unscaled": ACTIVATED}
    traits |= {"own_eps": True, "equal_copies": OWN_EPS} if own_eps else {}
    silenced = config.get("hidden_act", "silu") in ZERO_AT_ZERO
    full = "(ssm_groups ssm_heads full_channels)"
    parts = {"q": keys, "k": keys, "v": values, "z": full, "b": heads, "a": heads}
    reads = {"k": ("state",)}
    project = [
        one
        for part, written in parts.items()
        for one in linear(f"{name}.{projections[part]}", written, "normed", also_reads=reads.get(part, ()))
    ]
    kernels, *_ = conv(f"{name}.conv1d", keys, keys, full, bias=False)
    return Mixer(
        (
            *(replace(weight(f"{name}.{each}", heads), borrowed=True) for each in ("dt_bias", "A_log")),
            kernels,
            *side_by_side(*project, within=within),
            *norm(f"{name}.{ends[0]}", "ssm_head_dim", "normed_channels", bias=False),
            *linear(f"{name}.{ends[1]}", "residual", "(ssm_groups ssm_heads normed_channels)", branch_end=True),
        ),
        axes=(
            Axis("ssm_groups", groups),
            Axis("ssm_heads", divide(VALUES, sizes["ssm_groups ssm_heads"], KEYS, groups)),
            Axis("ssm_head_dim", sizes["ssm_head_dim"], **traits, refusal="" if silenced else LOUD),
            Axis("state", sizes["state"], refusal=LENGTHS.format("ssm_heads or ssm_head_dim")),
            conv_axis(sizes["conv_kernel"]),
        ),
        sizes=DELTA_NET,
        spaces={"full_channels": ("ssm_head_dim", "in_full"), "normed_channels": ("ssm_head_dim", "normed")},
    )


def kimi_delta_net(config: Config, name: str) -> Mixer:
    """Return the mixer of Kimi delta attention."""
    sizes = {axis: size(config, key, KIMI_DEFAULTS[axis]) for key, axis in KIMI.items()}
    channels, normed = "(ssm_heads ssm_head_dim)", "(ssm_heads normed_channels)"
    return Mixer(
        (
            replace(weight(f"{name}.A_log", "1 1 ssm_heads 1"), borrowed=True),
            replace(weight(f"{name}.dt_bias", channels), borrowed=True),
            *(one for part in "qkv" for one in linear(f"{name}.{part}_proj", channels, "normed")),
            *(one for part in "qkv" for one in conv(f"{name}.{part}_conv1d", channels, bias=False)),
            *linear(f"{name}.b_proj", "ssm_heads", "normed"),
            *(
                one
                for gate in "fg"  # of g and of z
                for one in (
                    *linear(f"{name}.{gate}_a_proj", "gate_rank", "normed"),
                    *linear(f"{name}.{gate}_b_proj", channels, "gate_rank"),
                )
            ),
            *norm(f"{name}.o_norm", "ssm_head_dim", "normed_channels", bias=False),
            *linear(f"{name}.o_proj", "residual", normed, branch_end=True),
        ),
        axes=(
            Axis("ssm_heads", sizes["ssm_heads"]),
            Axis(
                "ssm_head_dim",
                sizes["ssm_head_dim"],
                norm="rms",
                unscaled=ACTIVATED,
                refusal=LENGTHS.format("ssm_heads"),
            ),
            conv_axis(sizes["conv_kernel"]),
        ),
        sizes=KIMI,
        spaces={"gate_rank": ("ssm_head_dim",), "normed_channels": ("ssm_head_dim", "normed")},
    )


def kinds_of_layers(config: Config, attends: Callable[[int], bool]) -> list[str]:
    """Return layer_types as stated, or full attention in the layers that attend.

    Raises:
        ConfigError: another type.
    """
    kinds = of_layers(config, "layer_types") or [
        "full_attention" if attends(layer) else "linear_attention" for layer in range(size(config, "num_hidden_layers"))
    ]
    if not {*kinds} <= {"full_attention", "linear_attention"}:
        raise ConfigError(f"config.json has layer_types = {kinds}: only full_attention and linear_attention are known.")
    return kinds
