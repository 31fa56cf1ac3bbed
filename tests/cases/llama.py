"""Llama and its relatives."""

from tests.support.families import Case

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# channels that turn at their own frequencies have no copies, but fresh ones beside them
UNCOPIED = dict.fromkeys(("head_dim, tile", "head_dim, sample"), "so none can be copied")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# hidden_size must stay a multiple of the number of heads
LLAMA_STEPS = {
    "heads": (("heads", 8),),
    "queries": (("queries", 4),),
}


def llama(variant, **changes):
    return Case("llama", variant, SMALL | {"head_dim": 8} | changes, UNCOPIED, LLAMA_STEPS)


WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
CASES = [
    llama("untied"),
    llama("tied", tie_word_embeddings=True),
    llama("biases", attention_bias=True, mlp_bias=True),
    llama("one query a head", num_key_value_heads=4),
    llama("one KV head", num_key_value_heads=1),
    llama("head_dim 6", head_dim=6),
    llama("rope scaling", rope_parameters=LLAMA3_ROPE),
    Case("mistral", "sliding window", SMALL | {"sliding_window": 4, "head_dim": 8}, UNCOPIED),
    Case("mistral", "tied", SMALL | {"sliding_window": None, "tie_word_embeddings": True, "head_dim": 8}, UNCOPIED),
    Case(
        "ministral",
        "mixed layers",
        SMALL
        | {
            "head_dim": 8,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        UNCOPIED,
    ),
    Case("qwen2", "tied", SMALL | {"tie_word_embeddings": True, "head_dim": 8}, UNCOPIED),
    Case("qwen2", "untied, windows", SMALL | WINDOWS | {"head_dim": 8}, UNCOPIED),
    Case("qwen3", "tied", SMALL | {"tie_word_embeddings": True, "head_dim": 8}, UNCOPIED),
    Case("qwen3", "untied, biases, windows", SMALL | WINDOWS | {"head_dim": 16, "attention_bias": True}, UNCOPIED),
]
