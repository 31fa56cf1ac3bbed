"""Mixtures of experts."""

from tests.cases.llama import SMALL, UNCOPIED
from tests.support.families import Case

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
SHARED = {"shared_expert_intermediate_size": 40}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
OLMOE = {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
# the class norms hidden_size channels of all queries together
TOGETHER = {
    "residual": (("residual", 48), ("heads", 6)),
    "heads": (("residual", 48), ("heads", 6)),
    "queries": (("residual", 64), ("queries", 4)),
    "head_dim": (("residual", 40), ("head_dim", 10)),
}
ONE_QUERY = TOGETHER | {"queries": (("residual", 64), ("queries", 2))}


# one norm over all heads
ACROSS = {f"{axis}, pad": "one norm runs over all heads" for axis in ("residual", "heads", "queries")}


def olmoe(variant, refused=UNCOPIED, steps=TOGETHER, **changes):
    return Case("olmoe", variant, SMALL | OLMOE | changes, refused | ACROSS, steps)


CASES = [
    olmoe("one query a head", steps=ONE_QUERY, num_key_value_heads=4),
    olmoe("grouped, normalised, tied, biases", norm_topk_prob=True, tie_word_embeddings=True, attention_bias=True),
    olmoe("clipped", {"head_dim": "clip_qkv clamps them"}, clip_qkv=0.7),
    Case("mixtral", "top 2 of 4", SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}, UNCOPIED),
    Case(
        "mixtral",
        "top 1 of 3, tied",
        SMALL | {"num_local_experts": 3, "num_experts_per_tok": 1, "tie_word_embeddings": True, "head_dim": 8},
        UNCOPIED,
    ),
    Case("qwen3_moe", "weights not normalised", SMALL | EXPERTS, UNCOPIED),
    Case(
        "qwen3_moe",
        "weights normalised, dense layer",
        SMALL | EXPERTS | {"norm_topk_prob": True, "mlp_only_layers": [1]},
        UNCOPIED,
    ),
    Case("qwen2_moe", "shared expert", SMALL | EXPERTS | SHARED | WINDOWS, UNCOPIED),
    Case(
        "qwen2_moe",
        "every second layer sparse",
        SMALL | EXPERTS | SHARED | {"decoder_sparse_step": 2, "norm_topk_prob": True},
        UNCOPIED,
    ),
]
