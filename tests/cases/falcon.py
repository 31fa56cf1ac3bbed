"""Falcon."""

from tests.cases.gpt2 import OWN_KEYS, SQUARE
from tests.cases.llama import TURNS
from tests.cases.neox import SMALL
from tests.cases.stablelm import GROUPED
from tests.families import Case

FFN = {key: value for key, value in SMALL.items() if key != "intermediate_size"} | {"ffn_hidden_size": 48}
SINGLE = {
    "residual": (("residual", 40), ("queries", 5)),
    "heads": (("heads", 8),),
    "queries": (("residual", 48), ("queries", 6)),
}
ALIBI = dict.fromkeys(("residual", "heads", "queries", "head_dim"), "slopes and the scale")
NEW = {"new_decoder_architecture": True, "num_kv_heads": 2}


def falcon(variant, refused, steps, **changes):
    return Case("falcon", variant, FFN | changes, refused, steps)


CASES = [
    falcon("one group", TURNS | {"heads": "share one head"}, SINGLE),
    falcon(
        "one group, untied, biases", TURNS | {"heads": "share one head"}, SINGLE, tie_word_embeddings=False, bias=True
    ),
    falcon("no groups, in sequence", TURNS | OWN_KEYS, SQUARE, multi_query=False, parallel_attn=False),
    falcon("groups, two norms", TURNS, GROUPED, **NEW),
    falcon("groups, one norm, biases", TURNS, GROUPED, **NEW, num_ln_in_parallel_attn=1, bias=True),
    falcon("ALiBi", ALIBI, {}, alibi=True, multi_query=False, parallel_attn=False, bias=True),
    falcon("ALiBi, one group", ALIBI, {}, alibi=True),
]
