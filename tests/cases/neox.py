"""GPT-NeoX and Pythia."""

from tests.cases.gpt2 import OWN_KEYS, SQUARE
from tests.support.families import Case

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ALL_TURN = {"head_dim, tile": "none can be copied", "head_dim, sample": "none can be copied"}


def neox(variant, refused=OWN_KEYS, **changes):
    return Case("gpt_neox", variant, SMALL | changes, refused, SQUARE)


CASES = [
    neox("parallel"),
    neox("in sequence", use_parallel_residual=False),
    neox("tied, no attention biases", tie_word_embeddings=True, attention_bias=False),
    neox("half turns, other base", rotary_pct=0.5, rotary_emb_base=5000),
    neox("all channels turn", OWN_KEYS | ALL_TURN, rotary_pct=1.0),
    neox(
        "rope scaling",
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    ),
]
