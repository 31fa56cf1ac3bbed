"""Families of learned positions, ALiBi and sines: gpt_neo, gpt_bigcode, biogpt, bloom, mpt, codegen, xglm, ctrl."""

from tests.cases.gpt2 import OWN_KEYS, SQUARE
from tests.cases.gpt2 import SMALL as GPT
from tests.cases.neox import SMALL
from tests.support.families import Case

TIED, UNTIED = ({"tie_word_embeddings": tied} for tied in (True, False))
TOKENS = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BLOOM = TOKENS | {"hidden_size": 32, "n_layer": 3, "n_head": 4}
MPT = TOKENS | {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 128}
XGLM = TOKENS | {"d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 128}
CTRL = TOKENS | {"n_embd": 32, "n_layer": 3, "n_head": 4, "dff": 48, "n_positions": 128}
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
ONE_GROUP = {
    "residual": (("residual", 40), ("queries", 5)),
    "heads": (("heads", 8),),
    "queries": (("residual", 48), ("queries", 6)),
    "head_dim": (("residual", 40), ("head_dim", 10)),
}
LISTED = {"first layers": "attention_types"}  # the kinds of all layers, which say nothing of more layers
SHARED = {"heads": "share one KV head"}
NO_EPS = OWN_KEYS | {"rescale": "reads no eps"}
# the MLP is four times as wide as the stream, which ALiBi's heads and their channels make up
BLOOM_STEPS = {
    "residual": (("residual", 64), ("head_dim", 16), ("ffn", 256)),
    "ffn": (("ffn", 256), ("residual", 64), ("head_dim", 16)),
    "head_dim": (("head_dim", 16), ("residual", 64), ("ffn", 256)),
    "heads": (("heads", 6), ("residual", 96), ("head_dim", 16), ("ffn", 384)),
}
MPT_STEPS = {
    "residual": (("residual", 40), ("head_dim", 10), ("ffn", 160)),
    "ffn": (("ffn", 160), ("residual", 40), ("head_dim", 10)),
    "head_dim": (("head_dim", 10), ("residual", 40), ("ffn", 160)),
    "heads": (("heads", 6), ("residual", 48), ("ffn", 192)),
}
CLIPPED_STEPS = {
    "residual": (("residual", 48), ("heads", 6), ("ffn", 192)),
    "ffn": (("ffn", 192), ("residual", 48), ("heads", 6)),
}
EQUAL = {"residual, sample": "only equally many copies", "residual, pad": "only equally many copies"}
SLOPES = OWN_KEYS | {"heads, tile": "slopes of their own", "heads, sample": "slopes of their own"}
FOUR = {"queries": "four blocks"}
BY_TILE, BY_PAD = {"residual": "tile"}, {"heads": "pad"}
# heads come in fours
CODEGEN = {
    "residual": (("residual", 64), ("heads", 8)),
    "heads": (("heads", 8), ("residual", 64)),
    "head_dim": (("head_dim", 10), ("residual", 40)),
}
EIGHT = {
    "residual": (("residual", 96), ("heads", 12)),
    "heads": (("heads", 12), ("residual", 96)),
    "head_dim": (("head_dim", 10), ("residual", 80)),
}
SINES = dict.fromkeys(("residual", "heads", "head_dim"), "sines of other frequencies")
SQUARE_SINES = {"heads": (("heads", 8), ("residual", 64)), "head_dim": (("head_dim", 16), ("residual", 64))}

CASES = [
    Case("gpt_neo", "tied", NEO, OWN_KEYS | LISTED, SQUARE),
    Case(
        "gpt_neo",
        "untied, intermediate_size null",
        NEO | UNTIED | {"intermediate_size": None},
        OWN_KEYS | LISTED,
        SQUARE | {"ffn": (("ffn", 150),)},
    ),
    Case("gpt_bigcode", "one group, tied", GPT, SHARED, ONE_GROUP),
    Case("gpt_bigcode", "no groups, untied", GPT | UNTIED | {"multi_query": False}, OWN_KEYS, SQUARE),
    Case("gpt_bigcode", "one group, no softmax scale", GPT | {"scale_attn_weights": False}, SHARED, ONE_GROUP),
    Case("biogpt", "tied", SMALL, NO_EPS, SQUARE),
    Case("biogpt", "untied, embedding not scaled", SMALL | UNTIED | {"scale_embedding": False}, NO_EPS, SQUARE),
    Case("bloom", "tied", BLOOM, SLOPES | EQUAL, BLOOM_STEPS, BY_TILE),
    Case("bloom", "untied", BLOOM | UNTIED, SLOPES | EQUAL, BLOOM_STEPS, BY_TILE),
    Case("mpt", "tied", MPT, SLOPES, MPT_STEPS),
    Case("mpt", "untied, own softmax scale", MPT | UNTIED | {"attn_config": {"softmax_scale": 0.2}}, SLOPES, MPT_STEPS),
    Case(
        "mpt",
        "untied, clipped, own softmax scale",
        MPT | UNTIED | {"attn_config": {"clip_qkv": 0.5, "softmax_scale": 0.2}},
        SLOPES | dict.fromkeys(("head_dim, tile", "head_dim, sample"), "clip_qkv"),
        MPT_STEPS | CLIPPED_STEPS,
        BY_PAD,
    ),
    Case(
        "mpt",
        "tied, clipped",
        MPT | {"attn_config": {"clip_qkv": 0.5}},
        SLOPES | {"head_dim": "clip_qkv"},
        MPT_STEPS | CLIPPED_STEPS,
        BY_PAD,
    ),
    Case("codegen", "untied", GPT | {"rotary_dim": 4, "n_embd": 64, "n_head": 8}, FOUR, EIGHT),
    Case("codegen", "tied", GPT | TIED | {"rotary_dim": 4}, FOUR, CODEGEN),
    Case("xglm", "tied", XGLM, NO_EPS | SINES, SQUARE_SINES),
    Case(
        "xglm", "untied, embedding not scaled", XGLM | UNTIED | {"scale_embedding": False}, NO_EPS | SINES, SQUARE_SINES
    ),
    Case("ctrl", "tied", CTRL, NO_EPS | SINES, SQUARE_SINES),
    Case("ctrl", "untied", CTRL | UNTIED, NO_EPS | SINES, SQUARE_SINES),
]
