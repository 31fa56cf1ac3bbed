"""Granite: four multipliers that no width changes."""

from tests.cases.llama import SMALL, UNCOPIED
from tests.support.families import Case

MULTIPLIERS = {
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.3,
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
}


def granite(variant, **changes):
    return Case("granite", variant, SMALL | MULTIPLIERS | changes, UNCOPIED)


CASES = [
    granite("untied"),
    granite("tied", tie_word_embeddings=True),
    granite("biases, one query a head", attention_bias=True, mlp_bias=True, num_key_value_heads=4),
    granite("head_dim 6", head_dim=6),
]
