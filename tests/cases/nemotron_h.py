"""Nemotron-H: one branch in each layer."""

from tests.cases.llama import SMALL
from tests.cases.mamba import GATED
from tests.support.families import Case

KINDS = {"layers_block_type": ["linear_attention", "moe", "full_attention"]}
NEMOTRON = SMALL | {
    "head_dim": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 6,
    "n_groups": 2,
    "ssm_state_size": 4,
    "conv_kernel": 3,
    "chunk_size": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 40,
}
BIASES = {"use_bias": True, "mlp_bias": True}


def nemotron(variant, **changes):
    return Case("nemotron_h", variant, NEMOTRON | KINDS | changes, GATED)


CASES = [
    nemotron("experts"),
    nemotron(
        "experts in groups behind a latent, weights not normalised, biases",
        moe_latent_size=20,
        n_group=2,
        topk_group=1,
        norm_topk_prob=False,
        **BIASES,
    ),
    nemotron(
        "dense, no bias of the convolution",
        layers_block_type=["linear_attention", "mlp", "full_attention"],
        use_conv_bias=False,
    ),
    nemotron(
        "dense and experts",
        layers_block_type=["linear_attention", "mlp", "moe", "full_attention"],
        num_hidden_layers=4,
    ),
]
