"""GLM and GLM-4: heads that turn in part, in neighbouring pairs; GLM-4 has norms behind its branches."""

from tests.cases.llama import SMALL
from tests.support.families import Case


def glm(family, variant, refused=None, **changes):
    return Case(family, variant, SMALL | {"head_dim": 8} | changes, refused or {})


def rotary(factor):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": factor}}


NO_COPIES = {f"head_dim, {init}": "none can be copied" for init in ("tile", "sample")}
CASES = [
    case
    for family in ("glm", "glm4")
    for case in (
        glm(family, "untied, biases"),
        glm(family, "tied, without biases", tie_word_embeddings=True, attention_bias=False),
        glm(family, "one query a head, head_dim 12", num_key_value_heads=4, head_dim=12, **rotary(0.34)),
        glm(family, "one KV head, old form of the config", num_key_value_heads=1, partial_rotary_factor=0.75),
        glm(family, "all channels turn", NO_COPIES, **rotary(1.0)),
    )
]
