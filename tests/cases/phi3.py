"""Phi-3: fused weights, heads that turn in part, longrope."""

from tests.cases.llama import SMALL
from tests.support.families import Case

# what all channels turn can be padded and not copied
NO_COPIES = {f"head_dim, {init}": "none can be copied" for init in ("tile", "sample")}
# Phi3's config takes hidden_size // num_attention_heads for head_dim where it counts longrope's factors
LONGROPE_STEPS = {
    "residual": (("residual", 48), ("heads", 6)),
    "heads": (("heads", 6), ("residual", 48)),
    "queries": (("queries", 3), ("residual", 48)),
    "head_dim": (("head_dim", 10), ("residual", 40)),
}


def longrope(channels):
    """Factors for so many channels; sequences of more than 16 tokens use the long ones."""
    return {
        "original_max_position_embeddings": 16,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0 + 0.1 * i for i in range(channels // 2)],
            "long_factor": [1.5 + 0.7 * i for i in range(channels // 2)],
            "original_max_position_embeddings": 16,
        },
    }


def phi3(variant, refused=None, steps=None, **changes):
    return Case("phi3", variant, SMALL | changes, refused or {}, steps or {})


FACTOR = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}
CASES = [
    phi3("untied, all channels turn", NO_COPIES),
    phi3("tied, in part", tie_word_embeddings=True, rope_parameters=FACTOR),
    phi3("in part, old form of the config", partial_rotary_factor=0.5, rope_theta=5000.0),
    phi3("one query a head, window", num_key_value_heads=4, sliding_window=4, rope_parameters=FACTOR),
    phi3("one KV head, head_dim 12", num_key_value_heads=1, head_dim=12, partial_rotary_factor=0.5),
    phi3("longrope", NO_COPIES, LONGROPE_STEPS, **longrope(8)),
    phi3(
        "longrope in part, tied",
        None,
        LONGROPE_STEPS,
        **longrope(6),
        partial_rotary_factor=0.75,
        tie_word_embeddings=True,
    ),
    phi3(
        "longrope, an axis alone",
        dict.fromkeys(("residual", "heads", "queries", "head_dim, pad"), "Grow residual together") | NO_COPIES,
        **longrope(8),
    ),
]
