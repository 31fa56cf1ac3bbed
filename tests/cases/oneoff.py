"""Families without relatives: layers weighed by their number, and linear attention."""

from tests.cases.deepseek import GROUPS, NORMED, WINDOWS
from tests.cases.llama import SMALL, UNCOPIED
from tests.support.families import Case

TIED = {"tie_word_embeddings": True}
BEAM = (
    SMALL | WINDOWS | GROUPS | {"head_dim": 8, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
)
KINDS = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
RWKV = {key: SMALL[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
RWKV_STEPS = {"residual": (("residual", 64), ("inner", 64)), "inner": (("residual", 64), ("inner", 64))}
FIRST = {"first layers": "the class gives values of its own", "one layer": "division by zero"}
EQUAL = FIRST | {
    f"{axis}, {init}": "only equally many copies" for axis in ("residual", "inner") for init in ("sample", "pad")
}
NUMBERED = {"layers": "a new one changes how much eps weighs"}

CASES = [
    Case("beam", "RoPE in layers with a window alone", BEAM | KINDS, UNCOPIED | NUMBERED),
    Case(
        "beam",
        "one group, weights not normalised, tied, biases, bases",
        BEAM
        | TIED
        | {
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "attention_bias": True,
            "mlp_layer_types": ["sparse"] * 3,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            },
        },
        UNCOPIED | NUMBERED,
    ),
    Case(
        "beam",
        "no rotary layer, no experts",
        BEAM | {"mlp_layer_types": ["dense"] * 3, "layer_types": ["full_attention"] * 3},
        NORMED | NUMBERED,
    ),
    Case("rwkv", "untied", RWKV | {"rescale_every": 0}, EQUAL, RWKV_STEPS),
    Case("rwkv", "tied, not halved yet", RWKV | TIED | {"rescale_every": 9}, EQUAL, RWKV_STEPS),
]
