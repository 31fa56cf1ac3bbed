"""Mixtures with attention sinks, gates, bases of their own for layers, or experts of attention."""

from tests.cases.deepseek import BEHIND, LISTED, NORMED, WINDOWS, without
from tests.cases.llama import SMALL, UNCOPIED
from tests.cases.mixtures import COUNTED, LOCAL, MULTIPLIERS
from tests.support.families import Case

TIED = {"tie_word_embeddings": True}
HEADS = SMALL | {"head_dim": 8}
ROUTED = HEADS | COUNTED | {"moe_intermediate_size": 24}
SHARED = {"num_shared_experts": 2}
GRANITE = HEADS | MULTIPLIERS | {"sliding_window": 4}
THETAS = {"layer_rope_theta": [10000.0, 0, 500.0]}
NO_ROPE = {"layer_rope_theta": [0, 0, 0]}
# copies of the dense layer behind others
COUNTED_BEHIND = dict.fromkeys(BEHIND, "num_dense_layers counts, behind a copy")
JETMOE = without(SMALL, "num_attention_heads") | LOCAL | {"kv_channels": 8}
FLINT = ROUTED | {"mlp_only_layers": [0], "shared_expert_intermediate_size": 40}
OWN_QUERIES = {"queries": "those of the experts that a token goes to", "rescale": "an eps of the class"}

CASES = [
    Case("granite_swa", "tied, a base for each layer", GRANITE | THETAS, UNCOPIED),
    Case(
        "granite_swa",
        "untied, biases, one base",
        GRANITE | {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
        UNCOPIED,
    ),
    Case("granite_swa", "no RoPE", GRANITE | NO_ROPE),
    Case("granitemoe_swa", "shared MLP", GRANITE | LOCAL | THETAS | {"shared_intermediate_size": 40}, UNCOPIED),
    Case("granitemoe_swa", "no shared MLP, tied, biases", GRANITE | LOCAL | TIED | {"attention_bias": True}, UNCOPIED),
    Case("mellum", "two bases", ROUTED | WINDOWS, UNCOPIED),
    Case(
        "mellum",
        "weights not normalised, dense layers listed, tied, biases",
        ROUTED | TIED | LISTED | {"norm_topk_prob": False, "attention_bias": True},
        UNCOPIED,
    ),
    Case("afmoe", "windows", ROUTED | SHARED | WINDOWS, UNCOPIED | COUNTED_BEHIND),
    Case(
        "afmoe",
        "no rotary layer, scaled embedding, no dense layer, tied, biases",
        ROUTED
        | SHARED
        | TIED
        | {
            "layer_types": ["full_attention"] * 3,
            "mup_enabled": True,
            "num_dense_layers": 0,
            "attention_bias": True,
        },
        NORMED,
    ),
    Case("hy_v3", "one leading dense layer", ROUTED | SHARED, UNCOPIED),
    Case(
        "hy_v3",
        "dense layers listed, tied, biases",
        ROUTED | SHARED | TIED | LISTED | {"attention_bias": True, "mlp_bias": True},
        UNCOPIED,
    ),
    Case("cohere2_moe", "softmax, shared experts", HEADS | COUNTED | SHARED | {"sliding_window": 4}, UNCOPIED),
    Case(
        "cohere2_moe",
        "sigmoids, RMSNorms, dense layers listed, untied, biases",
        HEADS
        | COUNTED
        | LISTED
        | {
            "tie_word_embeddings": False,
            "attention_bias": True,
            "rms_norm_eps": 1e-6,
            "expert_selection_fn": "sigmoid",
            "norm_topk_prob": False,
            "prefix_dense_intermediate_size": 40,
            "layer_types": ["full_attention"] * 3,
        },
        UNCOPIED,
    ),
    Case("jetmoe", "tied", JETMOE, UNCOPIED | OWN_QUERIES),
    Case(
        "jetmoe",
        "untied, top 1",
        JETMOE | {"tie_word_embeddings": False, "num_experts_per_tok": 1},
        UNCOPIED | OWN_QUERIES,
    ),
    Case("flint", "windows", FLINT | WINDOWS, UNCOPIED),
    Case(
        "flint",
        "no rotary layer, weights not normalised, no dense layer, tied, biases",
        FLINT
        | TIED
        | {
            "layer_types": ["full_attention"] * 3,
            "norm_topk_prob": False,
            "mlp_only_layers": [],
            "attention_bias": True,
        },
        NORMED,
    ),
]
