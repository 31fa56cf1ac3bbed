"""StableLM."""

from tests.cases.gpt2 import SQUARE
from tests.cases.llama import SMALL
from tests.support.families import Case

# two queries a group, and head_dim is hidden_size / num_attention_heads
GROUPED = {
    "residual": (("residual", 48), ("heads", 6)),
    "heads": (("residual", 48), ("heads", 6)),
    "queries": (("residual", 48), ("queries", 3)),
    "head_dim": (("residual", 40), ("head_dim", 10)),
}
SINGLE = SQUARE | {"queries": (("residual", 64), ("queries", 2))}
NORMED = {"qk_layernorm": True, "partial_rotary_factor": 0.5}


def stablelm(variant, steps=GROUPED, **changes):
    return Case("stablelm", variant, SMALL | changes, {}, steps)


CASES = [
    stablelm("grouped"),
    stablelm("parallel, biases", use_parallel_residual=True, use_qkv_bias=True),
    stablelm("tied, one query a head", SINGLE, num_key_value_heads=4, tie_word_embeddings=True),
    stablelm("norms of each head", **NORMED),
    stablelm("norms of each head, one query a head", SINGLE, num_key_value_heads=4, **NORMED, tie_word_embeddings=True),
    stablelm("half turns, base", rope_theta=5000.0, partial_rotary_factor=0.5),
]
