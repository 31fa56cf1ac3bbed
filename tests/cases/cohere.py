"""Cohere and Cohere2: LayerNorm without bias, parallel branches."""

from tests.cases.llama import SMALL, UNCOPIED
from tests.cases.vision_language import SQUARE
from tests.support.families import Case

LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]


def cohere(variant, **changes):
    return Case("cohere", variant, SMALL | {"logit_scale": 0.25} | changes, UNCOPIED)


def cohere2(variant, refused=UNCOPIED, **changes):
    return Case("cohere2", variant, SMALL | {"logit_scale": 0.25, "sliding_window": 4} | changes, refused)


FULL = {"full_attention": {"rope_type": "default", "rope_theta": 5000.0}}
SLIDING = {"sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0}}
NO_ROPE = {"full_attention": None}


def compass(variant, rope, refused=UNCOPIED, **changes):
    config = SMALL | {"logit_scale": 0.25, "sliding_window": 4, "rope_parameters": rope}
    return Case("cohere_compass_text", variant, config | changes, refused, SQUARE)


CASES = [
    cohere("tied"),
    cohere("untied", tie_word_embeddings=False),
    cohere("biases, head_dim 6", attention_bias=True, head_dim=6),
    cohere("norm of queries and keys", use_qk_norm=True),
    cohere(
        "norm of queries and keys, biases, untied", use_qk_norm=True, attention_bias=True, tie_word_embeddings=False
    ),
    cohere("norm of queries and keys, one query a head", use_qk_norm=True, num_key_value_heads=4),
    cohere2("tied", layer_types=LAYERS),
    cohere2("untied, biases", layer_types=LAYERS, tie_word_embeddings=False, attention_bias=True),
    cohere2("every second layer, head_dim 6", sliding_window_pattern=2, head_dim=6),
    cohere2("no layer turns", {}, layer_types=["full_attention"] * 3),
    compass(
        "untied, biases, two bases", FULL | SLIDING, layer_types=LAYERS, tie_word_embeddings=False, attention_bias=True
    ),
    compass("tied", FULL),
    compass("RoPE in sliding layers alone", NO_ROPE | SLIDING, layer_types=LAYERS),
    compass("no RoPE", NO_ROPE, {}),
]
