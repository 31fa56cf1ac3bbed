"""Hybrids of attention with state-space models or short convolutions.

LFM2's convolution block is y = out_proj(C · conv(B · x)) with B, C and x from one projection. A channel is a column of
all three and a kernel; there are hidden_size of them, so they grow along with the residual stream.

Jamba has Mamba in most layers and attention in the others; Bamba and GraniteMoE hybrids have Mamba-2 and attention.
Falcon-H1 has both side by side in every layer, and multiplies what they read and write by numbers of its config, which
growth does not change.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from growth.architectures.base import Architecture, Axis, Weight, family, linear, weight
from growth.architectures.blocks import (
    Attention,
    Mixer,
    Norms,
    attention_bias,
    gated_mlp,
    implied_head_dim,
    in_layers,
    layers_of,
    optional_head_dim,
    side_by_side,
)
from growth.architectures.config import Config, flag, of_layers, size
from growth.architectures.decoder import SIZES, decoder
from growth.architectures.families.moe import granite_experts
from growth.architectures.grouped_experts import with_dense
from growth.architectures.mixtures import added, mixture
from growth.architectures.rotary import rotary_part
from growth.architectures.state_space import HEADS, conv, conv_axis, mamba, mamba2, stated
from growth.errors import ConfigError

MAMBA2 = {
    "mamba_n_heads": HEADS,
    "mamba_n_groups": "ssm_groups",
    "mamba_d_head": "ssm_head_dim",
    "mamba_d_state": "state",
    "mamba_d_conv": "conv_kernel",
}
JAMBA = {
    "mamba_expand": "inner / residual",
    "mamba_d_state": "state",
    "mamba_d_conv": "conv_kernel",
    "mamba_dt_rank": "dt_rank",
}
MAMBA2_SIZES = {"mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4}
WITHOUT_MLP = {key: axes for key, axes in SIZES.items() if axes != "ffn"}
SUM_WITH_EPS = (
    "the router adds 1e-6 to the sum of the chosen scores before it divides by it, and copies change that sum. "
    "Widen ffn instead."
)
LFM3_BASES = {"sliding_attention": 1e4, "full_attention": 1e6}
LFM3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": LFM3_BASES["sliding_attention"]},
    "full_attention": {
        "rope_type": "proportional",
        "rope_theta": LFM3_BASES["full_attention"],
        "partial_rotary_factor": 0.5,
    },
}
CHANNELS = "ssm_groups ssm_heads ssm_head_dim"


OPERATOR = Attention(
    projections=("q_proj", "k_proj", "v_proj", "out_proj"),
    qk_norm="shared",
    qk_norm_names=("q_layernorm", "k_layernorm"),
)
OPERATOR_NORMS = Norms(("operator_norm", "ffn_norm"), eps="norm_eps", eps_default=1e-5)
LFM2_MLP = partial(gated_mlp, "feed_forward", ("w1", "w3", "w2"))


@family
def lfm2(config: Config) -> Architecture:
    """Return the table of an LFM2: an MLP whose size the class may round up, which the grown config states as it is."""
    kinds = _lfm2_kinds(config)
    table = _lfm2(config, kinds, LFM2_MLP(), SIZES, defaults={"heads": 8, "ffn": 12288})
    ffn = _rounded(config, table.axes["ffn"].size)
    stated_size = {"intermediate_size": ffn, "block_auto_adjust_ff_dim": False}
    listed = config.get("full_attn_idxs") is not None
    sets = {"full_attn_idxs": layers_of(kinds, "full_attention")} if listed else {}
    return replace(table.with_axes(Axis("ffn", ffn)), config={**config, **stated_size}, layer_sets=sets)


@family
def lfm3(config: Config) -> Architecture:
    """Return the table of an LFM3: windows, a gate for each head, and norms on the outputs of branches."""
    kinds = of_layers(config, "layer_types") or [
        "full_attention" if at % 4 == 2 else "sliding_attention" if at and at % 4 == 0 else "conv"
        for at in range(size(config, "num_hidden_layers"))
    ]
    config = {**config, "rope_parameters": config.get("rope_parameters") or LFM3_ROPE}
    norms = replace(OPERATOR_NORMS, after=("post_operator_norm", "post_ffn_norm"))
    attention = Attention(
        qk_norm="shared",
        bias=attention_bias(config),
        head_gate="gate_proj" if flag(config, "use_attention_gate", True) else "",  # g_proj in the class
    )
    return _lfm2(
        config,
        kinds,
        LFM2_MLP(),
        SIZES,
        attention=attention,
        norms=norms if flag(config, "use_sandwich_norm", True) else OPERATOR_NORMS,
        bases=tuple((kind, "rope_theta", base) for kind, base in LFM3_BASES.items() if kind in kinds),
        defaults={"heads": 4, "head_dim": optional_head_dim(config, 128), "ffn": 7680, "conv_kernel": 7},
    )


@family
def lfm2_moe(config: Config) -> Architecture:
    """Return the table of an LFM2 mixture: sigmoids as scores, and leading dense layers."""
    kinds = of_layers(config, "layer_types") or []
    if len(kinds) < size(config, "num_hidden_layers"):
        raise ConfigError("config.json lists no layer_types, which the class of lfm2_moe needs. State them.")
    dense, normalised = size(config, "num_dense_layers", 2, least=0), flag(config, "norm_topk_prob", True)
    experts = gated_mlp("feed_forward.experts.{expert}", ("w1", "w3", "w2"))
    sparse = (
        *((weight("feed_forward.expert_bias", "experts"),) if flag(config, "use_expert_bias", True) else ()),
        *linear("feed_forward.gate", "experts", "normed"),
        *(experts if normalised else added(experts)),
    )
    sizes = {"moe_intermediate_size": "ffn", "num_experts": "experts"}
    mlp, sizes = with_dense(config, sparse, range(dense), sizes=sizes, mlp=LFM2_MLP)
    defaults = {"heads": 8, "ffn": 1792 if "experts" in sizes.values() else 12288, "dense_ffn": 7168, "experts": 32}
    table = _lfm2(config, kinds, mlp, {**WITHOUT_MLP, **sizes}, defaults=defaults)
    table = replace(table, layer_counts={"num_dense_layers": dense})
    refusal = SUM_WITH_EPS if normalised else ""
    return mixture(table, top_k=4, refusal=refusal) if "experts" in table.axes else table


def _lfm2(
    config: Config,
    kinds: list[str],
    mlp: tuple[Weight, ...],
    sizes: Mapping[str, str],
    *,
    attention: Attention = OPERATOR,
    norms: Norms = OPERATOR_NORMS,
    bases: tuple[tuple[str, str, float], ...] = (("", "rope_theta", 1e6),),
    defaults: Mapping[str, int],
) -> Architecture:
    """Return the table of an LFM2 with some MLPs and their sizes by config key. Other arguments are those of `decoder`.

    Raises:
        ConfigError: layers of another kind.
    """
    known = {"conv", "full_attention", *(kind for kind, *_ in bases if kind)}
    if not {*kinds} <= known:
        raise ConfigError(f"config.json has layer_types = {kinds}: only {', '.join(sorted(known))} are known.")
    convolving = layers_of(kinds, "conv")
    attending = tuple(layer for layer in range(len(kinds)) if layer not in convolving)
    bias = flag(config, "conv_bias", False)
    project = 3 * linear("conv.in_proj", "inner", "normed", bias=bias)
    mixer = Mixer(
        in_layers(
            convolving,
            *conv("conv.conv", "inner", bias=bias),
            *side_by_side(*project),
            *linear("conv.out_proj", "residual", "inner", bias=bias, branch_end=True),
        ),
        axes=(
            Axis("inner", size(config, "hidden_size")),
            conv_axis(size(config, "conv_L_cache", defaults.get("conv_kernel", 3))),
        ),
        sizes={"conv_L_cache": "conv_kernel"},
    )
    return decoder(
        config,
        replace(attention, layers=attending),
        mlp,
        norms,
        names=("model.embed_tokens", "model.layers.{layer}", "model.embedding_norm"),
        default_tied=True,
        sizes=sizes,
        defaults=defaults,
        bases=bases,
        layer_types=kinds,
        mixer=mixer,
    )


def _lfm2_kinds(config: Config) -> list[str]:
    """Return layer_types as stated, or full attention in the layers of full_attn_idxs, by default in all."""
    layers = range(size(config, "num_hidden_layers"))
    listed = config.get("full_attn_idxs")
    attending = layers if listed is None else listed
    return of_layers(config, "layer_types") or ["full_attention" if at in attending else "conv" for at in layers]


def _rounded(config: Config, ffn: int) -> int:
    """Return the size of the MLP as the class computes it from intermediate_size."""
    if not flag(config, "block_auto_adjust_ff_dim", True):
        return ffn
    multiplier, multiple = config.get("block_ffn_dim_multiplier", 1.0), size(config, "block_multiple_of", 256)
    ffn = int(2 * ffn / 3)
    return ffn if multiplier is None else -(-int(multiplier * ffn) // multiple) * multiple


@family
def jamba(config: Config) -> Architecture:
    """Return the table of a Jamba: attention without RoPE, and experts, in layers that recur after a period each."""
    attending, others = _recurring(config, "attn_layer", 8, 4)
    sparse, dense = _recurring(config, "expert_layer", 2, 1)
    if size(config, "num_experts", 16) == 1:
        sparse, dense = (), (*sparse, *dense)
    has_mixers = size(config, "attn_layer_period", 8) > 1  # also where there are no layers yet
    mixer = mamba(
        config,
        "mamba",
        inner=size(config, "mamba_expand", 2) * size(config, "hidden_size"),
        keys=JAMBA,
        bias=flag(config, "mamba_proj_bias", False),
        conv_bias=flag(config, "mamba_conv_bias", True),
        normed="gains",
    )
    experts = (*linear("feed_forward.router", "experts", "normed"), *gated_mlp("feed_forward.experts.{expert}"))
    table = decoder(
        config,
        Attention(layers=attending),
        (*(in_layers(sparse, *experts) if sparse else ()), *in_layers(dense, *gated_mlp("feed_forward"))),
        Norms(("input_layernorm", "pre_ff_layernorm")),
        names=("model.embed_tokens", "model.layers.{layer}", "model.final_layernorm"),
        sizes={**SIZES, **({"num_experts": "experts"} if sparse else {})},
        defaults={"heads": 8, "ffn": 14336, "experts": 16},
        rotary=0,
        mixer=replace(mixer, weights=in_layers(others, *mixer.weights)) if has_mixers else Mixer((), (), {}),
    )
    return mixture(table, top_k=2) if sparse else table


def _recurring(config: Config, name: str, period: int, offset: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the layers of a kind that recurs, and the other ones. period, offset: if the config states none."""
    period, offset = size(config, f"{name}_period", period), size(config, f"{name}_offset", offset, least=0)
    layers = range(size(config, "num_hidden_layers"))
    return tuple(at for at in layers if at % period == offset), tuple(at for at in layers if at % period != offset)


@family
def bamba(config: Config) -> Architecture:
    """Return the table of a Bamba: RoPE on half of each head."""
    layers = range(size(config, "num_hidden_layers"))
    attending = tuple(at for at in layers if at in (config.get("attn_layer_indices") or ()))
    others = tuple(at for at in layers if at not in attending)
    table = _with_mamba(config, _expanded(config), attending, others, rotary=0.5)
    return replace(table, layer_sets={"attn_layer_indices": attending})


def _expanded(config: Config) -> Mixer:
    """Return a Mamba-2 with a whole multiple of hidden_size channels in all heads."""
    hidden, heads = size(config, "hidden_size"), size(config, "mamba_n_heads", 128)
    return mamba2(
        config,
        "mamba",
        keys={**MAMBA2, "mamba_expand": f"{CHANNELS} / residual"},
        defaults={**MAMBA2_SIZES, "mamba_d_head": size(config, "mamba_expand", 2) * hidden // heads},
        bias=2 * (flag(config, "mamba_proj_bias", False),),
        conv_bias=flag(config, "mamba_conv_bias", True),
    )


@family
def granitemoehybrid(config: Config) -> Architecture:
    """Return the table of a GraniteMoE hybrid: experts beside an MLP of all tokens, or that MLP alone; RoPE or none."""
    kinds = _kinds(config)
    attending, others = layers_of(kinds, "full_attention"), layers_of(kinds, "linear_attention")
    sparse = size(config, "num_local_experts", 8, least=0) > 0
    # without experts, the shared MLP is the only one: ffn is its size, which shared_intermediate_size states
    shared = "shared_ffn" if sparse else "ffn"
    experts = {"intermediate_size": "ffn", "num_local_experts": "experts"} if sparse else {}
    mixer = _expanded(config)
    table = decoder(
        config,
        Attention(bias=attention_bias(config), scaled=False, layers=attending),
        (
            *(granite_experts() if sparse else ()),
            *gated_mlp("shared_mlp", ("input_linear", "input_linear", "output_linear"), axis=shared),
        ),
        sizes={**WITHOUT_MLP, **experts, "shared_intermediate_size": shared},
        defaults={"experts": 8, "ffn": 11008 if sparse else 1024, "shared_ffn": 1024},
        rotary=None if config.get("position_embedding_type") == "rope" else 0,
        layer_types=kinds,
        mixer=replace(mixer, weights=in_layers(others, *mixer.weights)),
    )
    return mixture(table, top_k=2) if sparse else table


def _kinds(config: Config) -> list[str]:
    """Return layer_types as stated, in the words of transformers 5, or linear attention in all layers.

    Raises:
        ConfigError: another type.
    """
    older = {"mamba": "linear_attention", "attention": "full_attention"}
    stated = of_layers(config, "layer_types") or ["mamba"] * size(config, "num_hidden_layers")
    kinds = [older.get(kind, kind) for kind in stated]
    if not {*kinds} <= {*older.values()}:
        raise ConfigError(f"config.json has layer_types = {stated}: only {', '.join(older.values())} are known.")
    return kinds


@family
def falcon_h1(config: Config) -> Architecture:
    """Return the table of a Falcon-H1."""
    hidden, heads = size(config, "hidden_size"), size(config, "mamba_n_heads", 128)
    unstated = size(config, "mamba_expand", 2) * hidden if "mamba_d_ssm" in config else 1024
    mixer = mamba2(
        config,
        "mamba",
        keys={**MAMBA2, "mamba_d_ssm": CHANNELS},
        defaults={
            **MAMBA2_SIZES,
            "mamba_d_ssm": unstated,
            "mamba_d_head": stated(config, "mamba_d_ssm", unstated) // heads,
        },
        bias=(flag(config, "mamba_proj_bias", False), flag(config, "projectors_bias", False)),
        conv_bias=flag(config, "mamba_conv_bias", True),
        normed=flag(config, "mamba_rms_norm", False),
        gate_first=not flag(config, "mamba_norm_before_gate", True),
    )
    return _with_mamba(config, mixer, None, None)


def _with_mamba(
    config: Config,
    mixer: Mixer,
    attending: tuple[int, ...] | None,
    others: tuple[int, ...] | None,
    rotary: float | None = None,
) -> Architecture:
    """Return the table of a decoder with Mamba-2 in some layers and attention in some, or both in all."""
    bias = flag(config, "attention_bias", False)
    return decoder(
        config,
        Attention(bias=(bias, bias), layers=attending),
        gated_mlp("feed_forward", bias=flag(config, "mlp_bias", False)),
        Norms(("input_layernorm", "pre_ff_layernorm"), eps_default=1e-5),
        names=("model.embed_tokens", "model.layers.{layer}", "model.final_layernorm"),
        defaults={"heads": 8, "ffn": 14336},
        rotary=None if rotary is None else rotary_part(config, implied_head_dim(config), rotary),
        mixer=replace(mixer, weights=in_layers(others, *mixer.weights)),
    )
