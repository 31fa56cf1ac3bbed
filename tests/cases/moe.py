"""Mixtures of experts."""

from tests.cases.llama import SMALL, TURNS
from tests.families import Case

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
SHARED = {"shared_expert_intermediate_size": 40}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
CASES = [
    Case("mixtral", "top 2 of 4", SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}, TURNS),
    Case(
        "mixtral",
        "top 1 of 3, tied",
        SMALL | {"num_local_experts": 3, "num_experts_per_tok": 1, "tie_word_embeddings": True, "head_dim": 8},
        TURNS,
    ),
    Case("qwen3_moe", "weights not normalised", SMALL | EXPERTS, TURNS),
    Case(
        "qwen3_moe",
        "weights normalised, dense layer",
        SMALL | EXPERTS | {"norm_topk_prob": True, "mlp_only_layers": [1]},
        TURNS,
    ),
    Case("qwen2_moe", "shared expert", SMALL | EXPERTS | SHARED | WINDOWS, TURNS),
    Case(
        "qwen2_moe",
        "every second layer sparse",
        SMALL | EXPERTS | SHARED | {"decoder_sparse_step": 2, "norm_topk_prob": True},
        TURNS,
    ),
]
