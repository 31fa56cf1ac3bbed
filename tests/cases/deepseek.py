"""DeepSeek and other families with latent attention, and mixtures with leading dense layers."""

from tests.cases.llama import SMALL
from tests.support.families import Case

LATENT = SMALL | {
    "num_key_value_heads": 4,
    "q_lora_rank": 10,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
}
EXPERTS = {
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}
GROUPS = {"n_group": 4, "topk_group": 2}
UNCOPIED = dict.fromkeys(("qk_rope_head_dim, tile", "qk_rope_head_dim, sample"), "so none can be copied")
REFUSED = {"queries": "every query head has keys and values of its own"} | UNCOPIED
# copies of the dense layer behind others
BEHIND = dict.fromkeys(("layers, stack", "layers, prepend"), "first_k_dense_replace counts, behind a copy")
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "mscale": 1.0,
    "mscale_all_dim": 0.8,
}
NO_YARN = {"qk_rope_head_dim": "no other base for 'yarn' frequencies"}
# hidden_size must stay a multiple of the number of heads
STEPS = {"heads": (("heads", 8),)}
# rotary channels are taken as complex numbers, two after an even number
EVEN = {"kv_lora_rank": (("kv_lora_rank", 16),), "qk_nope_head_dim": (("qk_nope_head_dim", 8),)}


def deepseek_v3(variant, refused=BEHIND, **changes):
    return Case("deepseek_v3", variant, LATENT | EXPERTS | GROUPS | changes, REFUSED | refused)


def deepseek_v2(variant, refused=BEHIND, **changes):
    return Case("deepseek_v2", variant, LATENT | EXPERTS | changes, REFUSED | refused, STEPS | EVEN)


# the same experts behind other attention
GROUPED = SMALL | EXPERTS | {"head_dim": 8}
NORMED = {"head_dim, pad": "an RMSNorm runs over the channels of a head"}
PLAIN = dict.fromkeys(("head_dim, tile", "head_dim, sample"), "so none can be copied")
LISTED = {"mlp_layer_types": ["dense", "sparse", "dense"]}
WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


def glm4_moe_lite(variant, **changes):
    return Case("glm4_moe_lite", variant, without(LATENT | EXPERTS, "first_k_dense_replace") | changes, REFUSED)


def youtu(variant, **changes):
    """A model without a padding token, whose row the class sets to zero whenever it loads a tied model."""
    return Case("youtu", variant, LATENT | {"pad_token_id": None} | changes, REFUSED)


def minicpm3(variant, **changes):
    return Case("minicpm3", variant, LATENT | changes, REFUSED, STEPS)


def glm4_moe(variant, refused=BEHIND, **changes):
    return Case("glm4_moe", variant, GROUPED | changes, refused)


def dots1(variant, refused=BEHIND, **changes):
    return Case("dots1", variant, GROUPED | changes, PLAIN | refused)


def solar_open(variant, **changes):
    return Case("solar_open", variant, without(GROUPED, "first_k_dense_replace", "intermediate_size") | changes, PLAIN)


def exaone_moe(variant, refused=PLAIN, **changes):
    own = {"num_experts": 8, "num_shared_experts": 2}
    config = without(GROUPED, "n_routed_experts", "n_shared_experts", "first_k_dense_replace") | own | changes
    return Case("exaone_moe", variant, config, refused)


FULL = {"attention_bias": True, "tie_word_embeddings": True}
ONE_GROUP = {"n_group": 1, "topk_group": 1}


def listed(family, variant, refused={}, **changes):  # noqa: B006 (read)
    return Case(family, variant, without(LATENT | EXPERTS, "first_k_dense_replace") | changes, REFUSED | refused)


INDEX = {"index_n_heads": 3, "index_head_dim": 8, "index_topk": 5}
INDEXED = {key: why for key, why in REFUSED.items() if key not in UNCOPIED} | {
    "qk_rope_head_dim": "the indexer, which does not grow, has as many rotary channels"
}


def indexed(family, variant, refused={}, **changes):  # noqa: B006 (read)
    return Case(family, variant, LATENT | EXPERTS | INDEX | changes, INDEXED | refused)


def kolibri1(variant, refused=PLAIN, **changes):
    own = {"num_experts": 8, "shared_expert_intermediate_size": 20}
    others = ("n_routed_experts", "n_shared_experts", "first_k_dense_replace", "intermediate_size")
    return Case("kolibri1", variant, without(GROUPED, *others) | own | changes, refused)


CASES = [
    deepseek_v3("groups"),
    deepseek_v3(
        "one group, yarn, tied",
        NO_YARN | BEHIND,
        n_group=1,
        topk_group=1,
        rope_parameters=YARN,
        tie_word_embeddings=True,
    ),
    deepseek_v3(
        "queries of full rank, halves, biases, two dense layers",
        {"layers, stack": BEHIND["layers, stack"]},
        q_lora_rank=None,
        rope_interleave=False,
        attention_bias=True,
        first_k_dense_replace=2,
    ),
    deepseek_v3("weights not normalised", norm_topk_prob=False),
    deepseek_v3(
        "groups of too few", BEHIND | {"experts": "are chosen by position"}, topk_group=1, num_experts_per_tok=3
    ),
    deepseek_v3("all layers dense", {}, first_k_dense_replace=3),
    deepseek_v2("best groups", topk_method="group_limited_greedy", **GROUPS),
    deepseek_v2("groups of too few", topk_method="group_limited_greedy", n_group=4, topk_group=1),
    deepseek_v2(
        "queries of full rank, no dense layer, tied",
        {},
        q_lora_rank=None,
        first_k_dense_replace=0,
        tie_word_embeddings=True,
    ),
    deepseek_v2("biases", attention_bias=True, mlp_bias=True),
    glm4_moe_lite("one leading dense layer"),
    glm4_moe_lite(
        "dense layers listed, groups, tied, halves", rope_interleave=False, tie_word_embeddings=True, **LISTED, **GROUPS
    ),
    youtu("tied"),
    youtu("untied, queries of full rank, biases", q_lora_rank=None, attention_bias=True, tie_word_embeddings=False),
    minicpm3("tied"),
    minicpm3(
        "untied, queries of full rank, biases",
        q_lora_rank=None,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
        dim_model_base=8,
    ),
    glm4_moe("norms on queries and keys", BEHIND | NORMED, use_qk_norm=True),
    glm4_moe(
        "groups, weights not normalised, biases, tied",
        norm_topk_prob=False,
        attention_bias=True,
        tie_word_embeddings=True,
        **GROUPS,
    ),
    dots1("windows, weights not normalised", **WINDOWS),
    dots1(
        "biases, tied", {}, first_k_dense_replace=0, norm_topk_prob=True, attention_bias=True, tie_word_embeddings=True
    ),
    solar_open("untied"),
    solar_open("tied, biases", attention_bias=True, tie_word_embeddings=True),
    exaone_moe("windows", **WINDOWS),
    exaone_moe(
        "no rotary layer, dense layers listed, tied",
        NORMED,
        layer_types=["full_attention"] * 3,
        tie_word_embeddings=True,
        **LISTED,
    ),
    indexed("deepseek_v32", "groups, the first layer dense", **GROUPS),
    indexed(
        "deepseek_v32", "dense layers listed, biases, yarn, tied", **FULL, **LISTED, **ONE_GROUP, rope_parameters=YARN
    ),
    indexed("glm_moe_dsa", "the first layer dense"),
    indexed(
        "glm_moe_dsa",
        "dense layers listed, a shared indexer",
        {"layers": "attends to the tokens that the last indexer before it has chosen"},
        **LISTED,
        **ONE_GROUP,
        indexer_types=["full", "shared", "full"],
    ),
    listed("axk1", "groups, the first layer dense", **GROUPS),
    listed("axk1", "dense layers listed, halves, biases, tied", **FULL, **LISTED, rope_interleave=False, **ONE_GROUP),
    kolibri1("windows", **WINDOWS),
    kolibri1(
        "no rotary layer, weights normalised, tied",
        NORMED,
        layer_types=["full_attention"] * 3,
        norm_topk_prob=True,
        tie_word_embeddings=True,
    ),
]
