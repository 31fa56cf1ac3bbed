"""Further mixtures of experts, by what differs in their routers and the layout of their experts."""

from tests.cases.deepseek import NORMED
from tests.cases.llama import LLAMA_STEPS, SMALL, UNCOPIED
from tests.cases.olmo import ACROSS
from tests.support.families import Case

TIED = {"tie_word_embeddings": True}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
COUNTED = {"num_experts": 4, "num_experts_per_tok": 2}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.4,
    "logits_scaling": 2.0,
}
TWO_CHOICES = {"experts": "chooses two experts"}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [2.0, 2.5, 3.0, 4.0],
    "short_mscale": 1.25,
    "long_mscale": 1.5,
    "original_max_position_embeddings": 8,
}
DEFAULT_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
GPT_OSS = SMALL | LOCAL | {"head_dim": 8, "sliding_window": 4, "swiglu_limit": 1.5}
LLAMA4 = (
    SMALL
    | LOCAL
    | {
        "head_dim": 8,
        "intermediate_size_mlp": 40,
        "attention_chunk_size": 5,
        "no_rope_layer_interval": 2,
        "floor_scale": 3,
    }
)
NO_QK = {"head_dim": "RMSNorm without a gain", "rescale": "its eps"}
ARIA = {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 2, "head_dim": 8}
ERNIE = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "head_dim": 8}
# dense layers lead, and no config has one behind a layer with experts
BEHIND = dict.fromkeys(("layers, stack", "layers, prepend"), "moe_layer_start_index counts, behind a copy")
# blocks of three tokens, of which all but one are chosen by an indexer
M3 = (
    SMALL
    | LOCAL
    | {
        "head_dim": 8,
        "dense_intermediate_size": 40,
        "shared_intermediate_size": 20,
        "index_n_heads": 2,
        "index_head_dim": 6,
        "index_block_size": 3,
        "index_topk_blocks": 2,
    }
)
INDEXED = {"layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"]}
CHOSEN = {"index_head_dim": "only chooses which blocks of tokens"}

# with one norm over all heads; channels that are not rotary have copies
PADDED = {f"{axis}, pad": "one norm runs over all heads" for axis in ("heads", "queries", "head_dim")}

CASES = [
    Case("granitemoe", "multipliers", SMALL | LOCAL | MULTIPLIERS, UNCOPIED),
    Case(
        "granitemoe",
        "top 2 of 3, tied, biases",
        SMALL | TIED | {"num_local_experts": 3, "num_experts_per_tok": 2, "attention_bias": True},
        UNCOPIED,
    ),
    Case("granitemoeshared", "shared MLP", SMALL | LOCAL | MULTIPLIERS | {"shared_intermediate_size": 40}, UNCOPIED),
    Case("granitemoeshared", "no shared MLP, tied", SMALL | LOCAL | TIED, UNCOPIED),
    Case(
        "phimoe",
        "biases",
        SMALL | LOCAL | {"attention_bias": True, "lm_head_bias": True, "router_jitter_noise": 0.3},
        UNCOPIED | TWO_CHOICES,
    ),
    Case(
        "phimoe",
        "tied, window, longrope",
        SMALL | LOCAL | TIED | {"sliding_window": 4, "rope_parameters": LONGROPE, "router_jitter_noise": 1.0},
        TWO_CHOICES | {"head_dim": "longrope"},
    ),
    Case("flex_olmo", "weights not normalised", SMALL | COUNTED, UNCOPIED | ACROSS),
    Case(
        "flex_olmo",
        "weights normalised, tied, biases, one KV head",
        SMALL | COUNTED | TIED | {"norm_topk_prob": True, "attention_bias": True, "num_key_value_heads": 1},
        UNCOPIED | ACROSS,
    ),
    Case("hunyuan_v1_moe", "top 2 of 4", SMALL | {"num_experts": 4, "moe_topk": 2, "head_dim": 8}, UNCOPIED),
    Case(
        "hunyuan_v1_moe",
        "one expert, tied, biases",
        SMALL | TIED | {"num_experts": 1, "moe_topk": 1, "head_dim": 12, "attention_bias": True},
        UNCOPIED,
    ),
    Case("gpt_oss", "plain RoPE", GPT_OSS | DEFAULT_ROPE, UNCOPIED),
    Case("gpt_oss", "yarn, tied, no biases", GPT_OSS | TIED | {"attention_bias": False}, {"head_dim": "yarn"}),
    Case("llama4_text", "queries and keys normed", LLAMA4, NO_QK),
    Case(
        "llama4_text",
        "not normed, tied, biases, every second layer sparse",
        LLAMA4 | TIED | {"use_qk_norm": False, "attention_bias": True, "interleave_moe_layer_step": 2},
        UNCOPIED,
    ),
    Case("minimax_m2", "whole head rotary", SMALL | LOCAL | {"head_dim": 8}, UNCOPIED | ACROSS),
    Case(
        "minimax_m2", "half rotary, tied", SMALL | LOCAL | TIED | {"head_dim": 8, "partial_rotary_factor": 0.5}, PADDED
    ),
    Case(
        "minimax_m3_vl_text",
        "indexers, one dense layer, half rotary",
        M3 | INDEXED | {"mlp_layer_types": ["dense", "sparse", "sparse"], "partial_rotary_factor": 0.5},
        NORMED | CHOSEN,
    ),
    Case("minimax_m3_vl_text", "no indexers, tied", M3 | TIED, UNCOPIED),
    Case(
        "minimax_m3_vl_text",
        "indexers in all layers, all dense",
        M3 | {"layer_types": ["minimax_m3_sparse"] * 3, "mlp_layer_types": ["dense"] * 3},
        UNCOPIED | CHOSEN,
    ),
    Case("ernie4_5_moe", "leading dense layer, shared experts", SMALL | ERNIE, UNCOPIED | BEHIND),
    Case(
        "ernie4_5_moe",
        "untied, biases, no shared experts, all sparse",
        SMALL
        | ERNIE
        | {"moe_num_shared_experts": 0, "moe_layer_start_index": 0, "use_bias": True, "tie_word_embeddings": False},
        UNCOPIED,
    ),
    Case("aria_text", "untied", SMALL | ARIA, UNCOPIED, LLAMA_STEPS),
    Case(
        "aria_text",
        "tied, biases, top 1",
        SMALL | ARIA | TIED | {"attention_bias": True, "mlp_bias": True, "moe_topk": 1},
        UNCOPIED,
        LLAMA_STEPS,
    ),
]
