"""Qwen3-Next and Qwen3.5: gated delta networks beside attention with gates."""

from growth.architectures.state_space import ACTIVATED
from tests.cases.deepseek import NORMED
from tests.cases.llama import SMALL
from tests.cases.mamba import TAPS
from tests.cases.moe import EXPERTS, SHARED
from tests.support.families import Case

KINDS = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
DELTA_NET = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
    "linear_conv_kernel_dim": 3,
}
LENGTHS = {"state": "divided by their lengths"}
VALUES = dict.fromkeys(("ssm_head_dim, tile", "ssm_head_dim, sample"), ACTIVATED)
REFUSED = TAPS | NORMED | LENGTHS | VALUES
NEXT = SMALL | EXPERTS | SHARED | DELTA_NET | KINDS

CASES = [
    Case("qwen3_next", "experts", NEXT, REFUSED),
    Case(
        "qwen3_next",
        "dense layer, tied, biases",
        NEXT | {"mlp_only_layers": [1], "tie_word_embeddings": True, "attention_bias": True},
        REFUSED,
    ),
    Case("qwen3_5_text", "untied", SMALL | DELTA_NET | KINDS, REFUSED),
    Case(
        "qwen3_5_text",
        "tied, biases",
        SMALL | DELTA_NET | KINDS | {"tie_word_embeddings": True, "attention_bias": True},
        REFUSED,
    ),
    Case("qwen3_5_moe_text", "experts", NEXT, REFUSED),
    Case("qwen3_5_moe_text", "tied", NEXT | {"tie_word_embeddings": True}, REFUSED),
]
