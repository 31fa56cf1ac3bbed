"""Families of learned positions: gpt_neo, gpt_bigcode, biogpt."""

from tests.cases.gpt2 import OWN_KEYS, SQUARE
from tests.cases.gpt2 import SMALL as GPT
from tests.cases.neox import SMALL
from tests.support.families import Case

UNTIED = {"tie_word_embeddings": False}
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
]
