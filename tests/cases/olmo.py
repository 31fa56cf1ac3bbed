"""OLMo, OLMo 2 and OLMo 3."""

from tests.cases.llama import LLAMA3_ROPE, SMALL, UNCOPIED
from tests.support.families import Case

# norms without a gain: all that reads the stream takes copies in shares that are forced
FORCED = dict.fromkeys(("residual, tile", "residual, sample"), "must read them in equal shares|states no eps")
BARE = UNCOPIED | FORCED | {"rescale": "states no eps"}
CLIPPED = FORCED | {"head_dim": "clip_qkv", "rescale": "states no eps"}
# one norm over all heads
ACROSS = UNCOPIED | {"heads, pad": "one norm runs over all heads", "queries, pad": "one norm runs over all heads"}
TIED = {"tie_word_embeddings": True}
ROPE = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}, "full_attention": LLAMA3_ROPE}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

CASES = [
    Case("olmo", "untied", SMALL, BARE),
    Case("olmo", "biases, clipped", SMALL | {"attention_bias": True, "clip_qkv": 0.5}, CLIPPED),
    Case("olmo", "one query a head, head_dim 6", SMALL | {"num_key_value_heads": 4, "head_dim": 6}, BARE),
    Case("olmo", "tied", SMALL | TIED, UNCOPIED | {"residual": "Untie the head", "rescale": "Untie the head"}),
    Case("olmo2", "untied", SMALL, ACROSS),
    Case("olmo2", "tied, biases", SMALL | TIED | {"attention_bias": True}, ACROSS),
    Case("olmo2", "one query a head, head_dim 6", SMALL | {"num_key_value_heads": 4, "head_dim": 6}, ACROSS),
    Case("olmo2", "one KV head", SMALL | {"num_key_value_heads": 1}, ACROSS),
    Case("olmo3", "all windows", SMALL | {"sliding_window": 4}, ACROSS),
    Case(
        "olmo3",
        "tied, biases, listed layers, rope scaling",
        SMALL | TIED | {"sliding_window": 4, "attention_bias": True, "layer_types": MIXED, "rope_parameters": ROPE},
        ACROSS,
    ),
]
