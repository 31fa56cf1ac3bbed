"""StarCoder2."""

from tests.cases.llama import SMALL
from tests.cases.neox import ALL_TURN
from tests.support.families import Case


def starcoder2(variant, **changes):
    return Case("starcoder2", variant, SMALL | {"head_dim": 8} | changes, ALL_TURN)


CASES = [
    starcoder2("tied"),
    starcoder2("untied", tie_word_embeddings=False),
    starcoder2("no biases, window", use_bias=False, sliding_window=4),
    starcoder2("base of 5000", rope_theta=5000.0),
    starcoder2("one query a head", num_key_value_heads=4),
]
