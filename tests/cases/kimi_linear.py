"""Kimi Linear: Kimi delta attention beside latent attention without RoPE, and experts."""

from tests.cases.deepseek import EXPERTS, GROUPS, LATENT, without
from tests.cases.mamba import TAPS
from tests.support.families import Case

DELTA_NET = {"linear_num_heads": 4, "linear_head_dim": 6, "linear_conv_kernel_dim": 3}
KINDS = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
NESTED = {"num_heads": 2, "head_dim": 5, "short_conv_kernel_size": 4, "full_attn_layers": [3], "kda_layers": [1, 2]}
REFUSED = TAPS | {
    "queries": "every query head has keys and values of its own",
    "ssm_head_dim": "divided by their lengths",
}


def kimi_linear(variant, refused={}, **changes):  # noqa: B006 (read)
    experts = without(EXPERTS, "n_routed_experts", "first_k_dense_replace") | {"num_local_experts": 8}
    config = without(LATENT, "q_lora_rank") | experts | DELTA_NET | changes
    return Case("kimi_linear", variant, config, REFUSED | refused)


CASES = [
    kimi_linear("one leading dense layer", **KINDS),
    kimi_linear("groups, latent of queries, biases", q_lora_rank=10, attention_bias=True, **KINDS, **GROUPS),
    kimi_linear("weights not normalised, all layers sparse", first_k_dense_replace=0, norm_topk_prob=False, **KINDS),
    kimi_linear("nested config, all layers dense", first_k_dense_replace=3, linear_attn_config=NESTED),
]
