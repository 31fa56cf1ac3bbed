"""Hybrids of attention with state-space models or short convolutions."""

from types import MappingProxyType

from growth.architectures.families.hybrid import SUM_WITH_EPS
from growth.architectures.state_space import NORMED_STATES
from tests.cases.granite import MULTIPLIERS
from tests.cases.llama import SMALL, UNCOPIED
from tests.cases.mamba import GATED, TAPS
from tests.support.families import Case

HEADS = SMALL | {"head_dim": 8}
LFM2 = HEADS | {"layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3, "block_multiple_of": 8}
# a convolution has as many channels as the residual stream
CHANNELS = {"residual": (("residual", 40), ("inner", 40)), "inner": (("inner", 48), ("residual", 48))}
MAMBA2 = HEADS | {"mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 4, "mamba_d_conv": 3, "mamba_chunk_size": 8}
BAMBA = MAMBA2 | {"attn_layer_indices": [1]}
# mamba_expand times hidden_size channels in the heads of Mamba-2
EXPANDED = {
    "residual": (("residual", 40), ("ssm_head_dim", 10)),
    "ssm_groups": (("ssm_groups", 4), ("residual", 64)),
    "ssm_heads": (("ssm_heads", 6), ("residual", 48)),
    "ssm_head_dim": (("ssm_head_dim", 10), ("residual", 40)),
}
H1 = MAMBA2 | {"mamba_d_ssm": 48, "mamba_d_head": 6}
MULTIPLIED = {
    "ssm_multipliers": [0.5, 0.7, 0.9, 1.1, 1.3],
    "mlp_multipliers": [0.5, 0.9],
    "key_multiplier": 0.7,
    "embedding_multiplier": 1.2,
    "lm_head_multiplier": 0.5,
    "attention_in_multiplier": 0.6,
    "attention_out_multiplier": 0.8,
    "ssm_in_multiplier": 0.9,
    "ssm_out_multiplier": 0.7,
}
BIASES = {"mamba_proj_bias": True, "attention_bias": True, "mlp_bias": True}
STATES = {key: reason for key, reason in GATED.items() if not key.startswith("ssm_")}
BEHIND = dict.fromkeys(("layers, stack", "layers, prepend"), "num_dense_layers counts, behind a copy")
FIRST = {"first layers": "the class gives values of its own"}


LFM2_MOE = LFM2 | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_dense_layers": 1}
MOE_PLAIN = {"norm_topk_prob": False, "use_expert_bias": False, "tie_word_embeddings": False, "conv_bias": True}


LFM3 = HEADS | {"layer_types": ["conv", "sliding_attention", "full_attention"], "conv_L_cache": 3, "sliding_window": 4}


def lfm3(variant, **changes):
    taps = {key: why for key, why in TAPS.items() if key not in FIRST}
    proportional = {} if "rope_parameters" in changes else PROPORTIONAL
    return Case("lfm3", variant, LFM3 | changes, {**UNCOPIED, **taps, **proportional}, CHANNELS)


NO_KINDS = {"first layers": "lists no layer_types"}


def lfm2_moe(variant, refused=MappingProxyType({}), **changes):
    taps = {key: why for key, why in TAPS.items() if key not in FIRST}
    behind = BEHIND if changes.get("num_dense_layers", 1) in (1, 2) else {}
    return Case(
        "lfm2_moe", variant, LFM2_MOE | changes, {**UNCOPIED, **taps, **NO_KINDS, **behind, **refused}, CHANNELS
    )


# of which the first is as the class now names them, and the others as older configs do
KINDS = ["linear_attention", "attention", "mamba"]
GRANITE = MAMBA2 | MULTIPLIERS | {"layer_types": KINDS, "shared_intermediate_size": 40, "mamba_d_head": "auto"}
GRANITE = {key: value for key, value in GRANITE.items() if key != "head_dim"}
SPARSE = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 24}


def granite(variant, **changes):
    refused = GATED | (UNCOPIED if "position_embedding_type" in changes else {})
    return Case("granitemoehybrid", variant, GRANITE | changes, refused, EXPANDED, along={"ssm_head_dim": "pad"})


OF_WHOLE_HEAD = {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
PROPORTIONAL = {"head_dim": "no other base for 'proportional' frequencies"}


def bamba(variant, refused=GATED, **changes):
    return Case("bamba", variant, BAMBA | changes, refused, EXPANDED, along={"ssm_head_dim": "pad"})


JAMBA = SMALL | {"mamba_d_state": 4, "mamba_d_conv": 3, "mamba_dt_rank": 3, "num_experts": 4, "num_experts_per_tok": 2}
RECURRING = {"attn_layer_period": 4, "attn_layer_offset": 1, "expert_layer_period": 4, "expert_layer_offset": 0}
# mamba_expand times hidden_size inner channels
ALONG = {"residual": (("residual", 40), ("inner", 80)), "inner": (("inner", 96),)}
OF_A_KIND = dict.fromkeys(("layers", "any layers"), "made from one of its kind")


def jamba(variant, refused=MappingProxyType({}), **changes):
    if changes["attn_layer_period"] == 1:  # no mixers
        return Case("jamba", variant, JAMBA | changes)
    return Case("jamba", variant, JAMBA | changes, {**TAPS, "state": NORMED_STATES, **refused}, ALONG)


CASES = [
    Case(
        "lfm2", "tied, an MLP rounded up", LFM2, UNCOPIED | {k: v for k, v in TAPS.items() if k not in FIRST}, CHANNELS
    ),
    Case(
        "lfm2",
        "untied, biases",
        LFM2 | {"tie_word_embeddings": False, "conv_bias": True, "block_auto_adjust_ff_dim": False},
        UNCOPIED | {k: v for k, v in TAPS.items() if k not in FIRST},
        CHANNELS,
    ),
    bamba("untied"),
    bamba("tied, biases", tie_word_embeddings=True, **BIASES),
    bamba("no bias of the convolution", mamba_conv_bias=False),
    bamba("proportional frequencies", GATED | PROPORTIONAL, rope_parameters=OF_WHOLE_HEAD),
    jamba(
        "attention and experts in all layers",
        attn_layer_period=1,
        attn_layer_offset=0,
        expert_layer_period=1,
        expert_layer_offset=0,
    ),
    jamba("attention and experts in a layer each", OF_A_KIND, **RECURRING),
    jamba(
        "attention in the first layer alone, no experts, biases, tied",
        OF_A_KIND,
        attn_layer_period=99,
        attn_layer_offset=0,
        num_experts=1,
        mamba_proj_bias=True,
        mamba_conv_bias=False,
        tie_word_embeddings=True,
    ),
    lfm3("windows, gates, outer norms, tied"),
    lfm3(
        "no windows, no gates, no outer norms, biases",
        layer_types=["conv", "full_attention", "full_attention"],
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
        use_attention_gate=False,
        use_sandwich_norm=False,
        tie_word_embeddings=False,
        attention_bias=True,
        conv_bias=True,
    ),
    lfm2_moe("dense layers, tied, a bias of the scores", {"experts": SUM_WITH_EPS}),
    lfm2_moe("no dense layer, weights not normalised, biases", num_dense_layers=0, **MOE_PLAIN),
    lfm2_moe("dense layers alone", num_dense_layers=3, tie_word_embeddings=False),
    granite("experts, no RoPE", **SPARSE),
    granite("no experts, RoPE, tied", num_local_experts=0, position_embedding_type="rope", tie_word_embeddings=True),
    granite("experts, RoPE, biases", **SPARSE, **BIASES, position_embedding_type="rope", mamba_conv_bias=False),
    Case("falcon_h1", "untied, multipliers", H1 | MULTIPLIED, UNCOPIED | STATES),
    Case(
        "falcon_h1",
        "tied, biases, a norm in front of the gate",
        H1 | BIASES | {"tie_word_embeddings": True, "projectors_bias": True, "mamba_rms_norm": True},
        UNCOPIED | GATED,
    ),
    Case(
        "falcon_h1",
        "a norm behind the gate",
        H1 | {"mamba_rms_norm": True, "mamba_norm_before_gate": False},
        UNCOPIED | GATED,
    ),
]
