"""Falcon."""

from tests.cases.gpt2 import OWN_KEYS, SQUARE
from tests.cases.neox import ALL_TURN, SMALL
from tests.cases.stablelm import GROUPED
from tests.support.families import Case

FFN = {key: value for key, value in SMALL.items() if key != "intermediate_size"} | {"ffn_hidden_size": 48}
SINGLE = {
    "residual": (("residual", 40), ("queries", 5)),
    "heads": (("heads", 8),),
    "queries": (("residual", 48), ("queries", 6)),
    "head_dim": (("residual", 40), ("head_dim", 10)),
}
ALIBI = {"head_dim": "softmax scale would change"} | {
    f"{axis}, {init}": "slopes of their own" for axis in ("residual", "heads", "queries") for init in ("tile", "sample")
}
SIX = {"residual": (("residual", 56), ("heads", 7)), "heads": (("heads", 7), ("residual", 56))} | {
    "head_dim": (("head_dim", 10),)
}
NEW = {"new_decoder_architecture": True, "num_kv_heads": 2}


def falcon(variant, refused, steps, **changes):
    return Case("falcon", variant, FFN | changes, refused, steps)


CASES = [
    falcon("one group", ALL_TURN | {"heads": "share one KV head"}, SINGLE),
    falcon(
        "one group, untied, biases",
        ALL_TURN | {"heads": "share one KV head"},
        SINGLE,
        tie_word_embeddings=False,
        bias=True,
    ),
    falcon("no groups, in sequence", ALL_TURN | OWN_KEYS, SQUARE, multi_query=False, parallel_attn=False),
    falcon("groups, two norms", ALL_TURN, GROUPED, **NEW),
    falcon("groups, one norm, biases", ALL_TURN, GROUPED, **NEW, num_ln_in_parallel_attn=1, bias=True),
    falcon("ALiBi", ALIBI | OWN_KEYS, SQUARE, alibi=True, multi_query=False, parallel_attn=False, bias=True),
    falcon("ALiBi, one group", ALIBI | {"heads": "share one KV head"}, SINGLE, alibi=True),
    falcon("ALiBi, groups", ALIBI | {"queries": "depends on its position"}, GROUPED, alibi=True, **NEW),
    falcon(
        "ALiBi, six heads", ALIBI | OWN_KEYS, SIX, hidden_size=48, num_attention_heads=6, alibi=True, multi_query=False
    ),
]
