"""GPT-J."""

from tests.cases.gpt2 import OWN_KEYS, SMALL, SQUARE
from tests.support.families import Case


def gptj(variant, **changes):
    return Case("gptj", variant, SMALL | {"rotary_dim": 4} | changes, OWN_KEYS, SQUARE)


CASES = [gptj("untied"), gptj("tied, two channels turn", tie_word_embeddings=True, rotary_dim=2)]
