"""GPT-2."""

from tests.support.families import Case

SMALL = {
    "vocab_size": 61,
    "n_embd": 32,
    "n_inner": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# the classes compute head_dim as hidden / heads, so that two of the three grow together
SQUARE = {
    "residual": (("residual", 40), ("heads", 5)),
    "heads": (("residual", 48), ("heads", 6)),
    "head_dim": (("residual", 40), ("head_dim", 10)),
}
OWN_KEYS = {"queries": "its own KV head"}


def gpt2(variant, steps=SQUARE, **changes):
    return Case("gpt2", variant, SMALL | changes, OWN_KEYS, steps)


OPENAI = {key: value for key, value in SMALL.items() if key != "n_inner"}
# the class computes n_inner as 4 * n_embd
FOUR_TIMES = {
    "residual": (("residual", 64), ("heads", 8), ("ffn", 256)),
    "ffn": (("ffn", 256), ("residual", 64), ("heads", 8)),
    "heads": (("heads", 12), ("residual", 96), ("ffn", 384)),
    "head_dim": (("head_dim", 16), ("residual", 64), ("ffn", 256)),
}
EQUAL = dict.fromkeys(("residual, sample", "residual, pad"), "only equally many copies")
NORMS_BEHIND = OWN_KEYS | EQUAL | {"layers": "a LayerNorm's output differs"}


CASES = [
    gpt2("tied"),
    gpt2("untied", tie_word_embeddings=False),
    gpt2("n_inner null", SQUARE | {"ffn": (("ffn", 150),)}, n_inner=None),
    gpt2("no softmax scale", scale_attn_weights=False),
    gpt2("scores divided by layer", scale_attn_by_inverse_layer_idx=True),
    # tied, it grows only once it is untied (tests/operators/test_ties.py)
    Case(
        "openai-gpt", "untied", OPENAI | {"tie_word_embeddings": False}, NORMS_BEHIND, FOUR_TIMES, {"residual": "tile"}
    ),
]
