"""RecurrentGemma: a gated linear recurrence beside attention with a window."""

from tests.cases.llama import SMALL
from tests.cases.mamba import TAPS
from tests.support.families import Case

GRIFFIN = SMALL | {
    "block_types": ["recurrent", "attention"],
    "attention_window_size": 4,
    "conv1d_width": 3,
    "intermediate_size": 96,
}
# the class computes head_dim as hidden_size / num_attention_heads
STEPS = {
    "residual": (("residual", 40), ("head_dim", 10)),
    "heads": (("heads", 6), ("residual", 48)),
    "queries": (("queries", 3), ("residual", 48)),
    "head_dim": (("head_dim", 10), ("residual", 40)),
}


def griffin(variant, **changes):
    return Case("recurrent_gemma", variant, GRIFFIN | changes, TAPS, STEPS)


CASES = [
    griffin("tied"),
    griffin(
        "untied, biases, another width",
        tie_word_embeddings=False,
        attention_bias=True,
        lru_width=24,
        block_types=["attention", "recurrent", "recurrent"],
    ),
]
