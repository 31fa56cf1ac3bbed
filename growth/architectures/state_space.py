"""State-space blocks that several families share: the mixers of Mamba and Mamba-2.

A causal convolution holds one kernel for each channel, (channels, 1, taps), whose last tap is the current token's. Taps
are read and not written, so fresh ones are zero and precede the old ones.

Mamba (Gu and Dao 2023). An inner channel is a column of everything between in_proj and out_proj: its input and its
gate, a kernel, a decay rate for each state (A_log), a skip (D) and a time step. Given the time steps, B and C,
channels do not see one another. These three are linear in all channels (x_proj), so x_proj and out_proj share the
reads of copies out. The output of a channel is the sum of C_n h_n over its states, and h_n is linear in B_n: B writes
the states, C reads them, and a copy of a state has the decay rates of its original.

Mamba-2 (Dao and Gu 2024). Heads of several channels have a decay rate, a skip and a time step each, and the heads of a
group share B and C. With x the channels, z their gates and N an RMSNorm over the channels of a group,

    x, B, C = act(conv(...))        y = ssm(x, B, C) + D x        output = out_proj(gain · N(y · silu(z)))

- Heads, and channels of a head: fresh ones have z = 0, hence silu(z) = 0, and add nothing to the mean square. All else
  of them is random, so z has a gradient. The mean square of a group becomes n/N of what it was, and nothing in front of
  the norm can make up for that, because x, B, C and z all pass an activation that does not commute with a factor. So
  eps becomes n/N of what it was, for all norms of the model, and the residual stream is scaled to fit. For the same
  reason, copies of a channel cannot be written with a factor: all are copied equally often.
- States: a state has a part B_n C_n in y, and neither factor of a copy can be divided in front of its activation. With
  all states copied equally often, the copies would be identical for ever. So fresh states alone are added, with C = 0.
- Groups: no norm runs across them, so they are copied or padded freely.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from growth.architectures.base import Axis, Weight, WeightPart, linear, norm, weight
from growth.architectures.blocks import Mixer, side_by_side
from growth.architectures.config import Config, divide, size

NORMED_STATES = (
    "B and C both pass a norm over the states, so fresh states must be zero in front of both and neither ever has a "
    "gradient, and copies of a state have equal gradients for ever. Widen inner instead."
)
ACTIVATED = (
    "a norm runs over the channels of these heads together, and an activation in front of it passes no factor on, so "
    "only equally many copies of each keep their part of the mean square."
)
ACTIVATED_STATES = (
    "a state has a part B·C in the output, and both pass an activation, which passes no share on: copies would be "
    "identical for ever."
)
LOUD = "the activation behind the convolution is not 0 at 0, so no fresh unit would be silent."
LAST_TOKEN = "the place of a tap decides which token it reads, so none can be a copy."
MAMBA = {
    "intermediate_size": "inner",
    "state_size": "state",
    "conv_kernel": "conv_kernel",
    "time_step_rank": "dt_rank",
}
HEADS = "ssm_groups ssm_heads"
MAMBA2 = {
    "expand": "ssm_groups ssm_heads ssm_head_dim / residual",
    "num_heads": HEADS,
    "n_groups": "ssm_groups",
    "head_dim": "ssm_head_dim",
    "state_size": "state",
    "conv_kernel": "conv_kernel",
}
ZERO_AT_ZERO = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "tanh")


def conv_axis(taps: int) -> Axis:
    """Return the axis of the taps of a causal convolution."""
    return Axis("conv_kernel", taps, fixed=taps, last_first=True, single=LAST_TOKEN)


def conv(name: str, *channels: str, bias: bool) -> tuple[Weight, ...]:
    """Return the weights of a causal convolution, one kernel for each channel of spaces that stand side by side."""
    parts = tuple(WeightPart(f"{space} 1 conv_kernel", ("conv_kernel",)) for space in channels)
    shift = tuple(WeightPart(space) for space in channels)
    return (Weight(f"{name}.weight", parts), Weight(f"{name}.bias", shift))[: 1 + bias]


def mamba(
    config: Config,
    name: str,
    *,
    inner: int,
    keys: Mapping[str, str] = MAMBA,
    bias: bool,
    conv_bias: bool,
    normed: Literal["", "gains", "no gains"] = "",
) -> Mixer:
    """Return the mixer of Mamba.

    inner: number of inner channels.
    keys: config keys and the axes whose product they are.
    bias: whether in_proj and out_proj have one. conv_bias: whether the convolution has one.
    normed: whether B, C and the time steps pass an RMSNorm in front of dt_proj: one with gains, or one without gains
        that has an eps of its own.
    """
    key = {axes: name for name, axes in keys.items()}
    rank = stated(config, key["dt_rank"], math.ceil(size(config, "hidden_size") / 16))
    states = size(config, key["state"], 16)
    b, c, steps = ("B_states", "C_states", "normed_steps") if normed else ("state", "state", "dt_rank")
    project = (
        *linear(f"{name}.x_proj", "dt_rank", "inner"),
        *linear(f"{name}.x_proj", "state", "inner"),
        *linear(f"{name}.x_proj", "state", "inner", also_reads=() if normed else ("state",)),
    )
    gains = (
        *norm(f"{name}.dt_layernorm", "dt_rank", steps, bias=False),
        *norm(f"{name}.b_layernorm", "state", b, bias=False),
        *norm(f"{name}.c_layernorm", "state", c, bias=False, reads=(c,)),
    )
    step, step_bias = linear(f"{name}.dt_proj", "inner", steps, bias=True)
    weights = (
        replace(weight(f"{name}.A_log", f"inner {b}"), borrowed=True),
        replace(weight(f"{name}.D", "inner"), borrowed=True),
        *conv(f"{name}.conv1d", "inner", bias=conv_bias),
        *side_by_side(*2 * linear(f"{name}.in_proj", "inner", "normed", bias=bias)),
        *side_by_side(*project),
        step,
        replace(step_bias, borrowed=True),
        *linear(f"{name}.out_proj", "residual", "inner", bias=bias, branch_end=True),
        *(gains if normed == "gains" else ()),
    )
    kind: Literal["rms"] | None = "rms" if normed else None
    return Mixer(
        weights,
        axes=(
            Axis("inner", inner),
            Axis("state", states, norm=kind, own_eps=normed == "no gains", refusal=NORMED_STATES if normed else ""),
            Axis(
                "dt_rank",
                rank,
                norm=kind,
                own_eps=normed == "no gains",
            ),
            conv_axis(size(config, key["conv_kernel"], 4)),
        ),
        sizes=keys,
        spaces={
            "normed_steps": ("dt_rank", "normed" if normed == "gains" else "norm_without_gain"),
            "B_states": ("state", "normed"),
            "C_states": ("state", "normed"),
        }
        if normed
        else {},
    )


def mamba2(
    config: Config,
    name: str,
    *,
    keys: Mapping[str, str] = MAMBA2,
    defaults: Mapping[str, int] = {},
    bias: tuple[bool, bool],
    conv_bias: bool,
    normed: bool = True,
    gate_first: bool = True,
    act: str = "hidden_act",
) -> Mixer:
    """Return the mixer of Mamba-2.

    keys: config keys and the axes whose product they are. defaults: sizes of keys that the config may leave out.
    bias: whether in_proj has one, and out_proj. conv_bias: whether the convolution has one.
    normed: whether an RMSNorm runs over the channels of each group.
    gate_first: whether it runs over y · silu(z); otherwise it runs over y, and x silences fresh channels in place of z.
    act: the config key of the activation behind the convolution.
    """
    sizes = {axes: stated(config, key, defaults.get(key)) for key, axes in keys.items() if "/" not in axes}
    groups = sizes["ssm_groups"]
    heads = divide(name_of(keys, HEADS), sizes[HEADS], name_of(keys, "ssm_groups"), groups)
    silenced = config.get(act, "silu") in ZERO_AT_ZERO
    inner, behind = "(ssm_groups ssm_heads ssm_head_dim)", "(ssm_groups normed_heads normed_channels)"
    full, head = "(ssm_groups full_heads full_channels)", "(ssm_groups full_heads)"
    z, x = (inner, full) if gate_first else (full, inner)
    states = "(ssm_groups state)"
    project = (
        *linear(f"{name}.in_proj", z, "normed", bias=bias[0]),
        *linear(f"{name}.in_proj", x, "normed", bias=bias[0]),
        *linear(f"{name}.in_proj", states, "normed", bias=bias[0]),
        *linear(f"{name}.in_proj", states, "normed", bias=bias[0], also_reads=("state",)),
        *linear(f"{name}.in_proj", head, "normed", bias=bias[0]),
    )
    kernels, *shift = conv(f"{name}.conv1d", full, states, states, bias=conv_bias)
    silent = (WeightPart(x), WeightPart(states), WeightPart(states, ("state",)))
    shift = [replace(one, parts=silent) for one in shift]
    traits: dict[str, Any] = {"norm": "rms", "unscaled": ACTIVATED} if normed else {}
    traits |= {"refusal": LOUD} if normed and not gate_first and not silenced else {}
    return Mixer(
        (
            *(replace(weight(f"{name}.{each}", head), borrowed=True) for each in ("dt_bias", "A_log", "D")),
            kernels,
            *shift,
            *side_by_side(*project),
            *(norm(f"{name}.norm", inner, behind, bias=False) if normed else ()),
            *linear(f"{name}.out_proj", "residual", behind, bias=bias[1], branch_end=True),
        ),
        axes=(
            Axis("ssm_groups", groups),
            Axis("ssm_heads", heads, **traits),
            Axis("ssm_head_dim", sizes["ssm_head_dim"], **traits),
            Axis("state", sizes["state"], single=ACTIVATED_STATES, refusal="" if silenced else LOUD),
            conv_axis(sizes["conv_kernel"]),
        ),
        sizes=keys,
        spaces={
            "full_heads": ("ssm_heads", "in_full"),
            "full_channels": ("ssm_head_dim", "in_full"),
            "normed_heads": ("ssm_heads", "normed"),
            "normed_channels": ("ssm_head_dim", "normed"),
        },
        norms=(("ssm_heads", "ssm_head_dim"),) if normed else (),
    )


def stated(config: Config, key: str, default: int | None) -> int:
    """Return a size that a config states, or the default if it leaves it out or says "auto"."""
    return size({key: None if config.get(key) == "auto" else config.get(key)}, key, default)


def name_of(keys: Mapping[str, str], axes: str) -> str:
    """Return the config key of a product of axes."""
    return next(key for key, stated in keys.items() if stated == axes)
