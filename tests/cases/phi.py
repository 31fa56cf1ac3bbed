"""Phi-1, Phi-1.5, Phi-2."""

from tests.cases.llama import SMALL
from tests.support.families import Case

# the class norms hidden_size // num_attention_heads channels of each head
TOGETHER = {
    "residual": (("residual", 40), ("head_dim", 10)),
    "heads": (("residual", 48), ("heads", 6)),
    "queries": (("residual", 48), ("queries", 3)),
    "head_dim": (("residual", 40), ("head_dim", 10)),
}


def phi(variant, steps=None, **changes):
    return Case("phi", variant, SMALL | changes, {}, steps or {})


CASES = [
    phi("untied", num_key_value_heads=4),
    phi("tied", num_key_value_heads=4, tie_word_embeddings=True),
    phi("grouped queries, a quarter turns", partial_rotary_factor=0.25),
    phi("norm of queries and keys", TOGETHER, qk_layernorm=True),
    phi("norm of queries and keys, tied", TOGETHER, qk_layernorm=True, tie_word_embeddings=True),
]
