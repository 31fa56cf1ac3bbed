"""Gemma, Gemma 2 and Gemma 3."""

from tests.cases.llama import LLAMA_STEPS, SMALL, UNCOPIED
from tests.support.families import Case

SMALL = SMALL | {"head_dim": 8}
CAPPED = {"query_pre_attn_scalar": 12, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
WINDOWS = {"sliding_window": 4}
MIXED = ["sliding_attention", "full_attention", "full_attention"]
ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
}


def gemma2(variant, **changes):
    return Case("gemma2", variant, SMALL | WINDOWS | CAPPED | changes, UNCOPIED, LLAMA_STEPS)


def gemma3(variant, **changes):
    config = SMALL | WINDOWS | {"query_pre_attn_scalar": 12} | changes
    return Case("gemma3_text", variant, config, UNCOPIED, LLAMA_STEPS)


CASES = [
    Case("gemma", "tied", SMALL, UNCOPIED),
    Case("gemma", "untied, biases", SMALL | {"tie_word_embeddings": False, "attention_bias": True}, UNCOPIED),
    Case("gemma", "one query a head, head_dim 6", SMALL | {"num_key_value_heads": 4, "head_dim": 6}, UNCOPIED),
    Case("gemma", "one KV head", SMALL | {"num_key_value_heads": 1}, UNCOPIED),
    gemma2("tied, alternating windows"),
    gemma2(
        "untied, biases, no caps", tie_word_embeddings=False, attention_bias=True, **dict.fromkeys(list(CAPPED)[1:])
    ),
    gemma2("listed layers", layer_types=MIXED),
    gemma3("tied, all windows"),
    gemma3("sliding_window_pattern", sliding_window_pattern=2),
    gemma3(
        "untied, biases, two bases",
        tie_word_embeddings=False,
        attention_bias=True,
        rope_parameters=ROPE,
        layer_types=MIXED,
    ),
    gemma3("soft-caps, one KV head", **(CAPPED | {"num_key_value_heads": 1, "layer_types": MIXED})),
]
