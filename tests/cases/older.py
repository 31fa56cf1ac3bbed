"""Families of learned positions, ALiBi and sines: bloom, mpt, gpt_neo, gpt_bigcode, biogpt, xglm."""

from tests.cases.gpt2 import OWN_KEYS, SQUARE
from tests.cases.gpt2 import SMALL as GPT
from tests.cases.neox import SMALL
from tests.support.families import Case

TIED, UNTIED = ({"tie_word_embeddings": tied} for tied in (True, False))
BLOOM = {
    "vocab_size": 61,
    "hidden_size": 32,
    "n_layer": 3,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MPT = {
    "vocab_size": 61,
    "d_model": 32,
    "n_layers": 3,
    "n_heads": 4,
    "max_seq_len": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
NEO = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 3,
    "num_heads": 4,
    "max_position_embeddings": 128,
    "window_size": 4,
    "attention_types": [[["global", "local"], 1], [["local"], 1]],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
XGLM = {
    "vocab_size": 61,
    "d_model": 32,
    "ffn_dim": 48,
    "num_layers": 3,
    "attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# the MLP is four times as wide as the stream
FOURFOLD = {axis: (*steps, ("ffn", 4 * dict(steps)["residual"])) for axis, steps in SQUARE.items()}
FOURFOLD |= {"ffn": FOURFOLD["head_dim"]}
SLOPES = {f"{axis}, {init}": "slopes of their own" for axis in ("residual", "heads") for init in ("tile", "sample")}
DOUBLED = (("residual", 64), ("head_dim", 16), ("ffn", 256))
TWICE = {
    "residual": DOUBLED,
    "head_dim": DOUBLED,
    "ffn": DOUBLED,
    "heads": (("heads", 8), ("residual", 64), ("ffn", 256)),
}
EQUAL = {
    f"{axis}, {init}": "only equally many copies"
    for axis in ("residual", "head_dim", "ffn")
    for init in ("sample", "pad")
}
ONE_GROUP = {
    "residual": (("residual", 40), ("queries", 5)),
    "heads": (("heads", 8),),
    "queries": (("residual", 48), ("queries", 6)),
    "head_dim": (("residual", 40), ("head_dim", 10)),
}
SHARED = {"heads": "share one KV head"}
NO_EPS = OWN_KEYS | {"rescale": "reads no eps"}
SINES = OWN_KEYS | dict.fromkeys(("residual", "heads", "head_dim", "rescale"), "positions are sines")

CASES = [
    Case("bloom", "tied", BLOOM, OWN_KEYS | EQUAL | {"heads": "other slopes"}, TWICE),
    Case("bloom", "untied", BLOOM | UNTIED, OWN_KEYS | EQUAL | {"heads": "other slopes"}, TWICE),
    Case("mpt", "tied", MPT, OWN_KEYS | SLOPES, FOURFOLD),
    Case(
        "mpt",
        "untied, clipped",
        MPT | UNTIED | {"attn_config": {"clip_qkv": 1.0}},
        OWN_KEYS
        | SLOPES
        | {"head_dim": "clip_qkv"}
        | dict.fromkeys(("ffn, tile", "ffn, sample"), "slopes of their own"),
        FOURFOLD | {"ffn": FOURFOLD["residual"]},
    ),
    Case("mpt", "no softmax scale", MPT | {"attn_config": {"softmax_scale": 0.3}}, OWN_KEYS | SLOPES, FOURFOLD),
    Case("gpt_neo", "tied", NEO, OWN_KEYS, SQUARE),
    Case(
        "gpt_neo",
        "untied, intermediate_size null",
        NEO | UNTIED | {"intermediate_size": None},
        OWN_KEYS,
        SQUARE | {"ffn": (("ffn", 150),)},
    ),
    Case("gpt_bigcode", "one group, tied", GPT, SHARED, ONE_GROUP),
    Case("gpt_bigcode", "no groups, untied", GPT | UNTIED | {"multi_query": False}, OWN_KEYS, SQUARE),
    Case("gpt_bigcode", "one group, no softmax scale", GPT | {"scale_attn_weights": False}, SHARED, ONE_GROUP),
    Case("biogpt", "tied", SMALL, NO_EPS, SQUARE),
    Case("biogpt", "untied, embedding not scaled", SMALL | UNTIED | {"scale_embedding": False}, NO_EPS, SQUARE),
    Case("xglm", "tied", XGLM, SINES, SQUARE),
    Case("xglm", "untied", XGLM | UNTIED, SINES, SQUARE),
]
