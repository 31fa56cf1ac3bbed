"""ModernBERT as a decoder."""

from tests.cases.bert import BY_TILE, PRE_NORM, UNTIED
from tests.cases.llama import UNCOPIED
from tests.cases.neox import SMALL
from tests.cases.opt import POST_NORM_STEPS
from tests.support.families import Case

TOKENS = {"cls_token_id": 3, "sep_token_id": 4}
BIASES = {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}
WINDOW = {"local_attention": 8}
REFUSED = PRE_NORM | UNCOPIED | {"one layer": "which lacks what|must stay the first"}


def case(family, variant, **changes):
    return Case(family, variant, SMALL | TOKENS | WINDOW | changes, REFUSED, POST_NORM_STEPS, BY_TILE)


CASES = [
    case("modernbert-decoder", "tied"),
    case("modernbert-decoder", "untied, biases, no bias of the head", **UNTIED, **BIASES, decoder_bias=False),
    case(
        "modernbert-decoder",
        "full attention first, other bases",
        layer_types=["full_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0},
        },
    ),
]
