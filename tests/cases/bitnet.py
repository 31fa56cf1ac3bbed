"""BitNet."""

from tests.cases.llama import SMALL, UNCOPIED
from tests.cases.moe import TOGETHER
from tests.support.families import Case

SHARED = dict.fromkeys(("queries, sample", "queries, pad"), "share its values")
ONE_QUERY = TOGETHER | {"queries": (("residual", 64), ("queries", 2))}

CASES = [
    Case("bitnet", "untied", SMALL, UNCOPIED | SHARED, TOGETHER, {"queries": "tile"}),
    Case(
        "bitnet",
        "tied, biases, one query a head",
        SMALL | {"tie_word_embeddings": True, "attention_bias": True, "num_key_value_heads": 4},
        UNCOPIED | SHARED,
        ONE_QUERY,
        {"queries": "tile"},
    ),
]
