"""Relatives of Llama, Gemma 2, OLMo 2 and GPT-NeoX."""

from tests.cases.gpt2 import OWN_KEYS, SQUARE
from tests.cases.granite import MULTIPLIERS
from tests.cases.llama import LLAMA_STEPS, SMALL, UNCOPIED
from tests.cases.neox import SMALL as NEOX
from tests.support.families import Case

WIDE = SMALL | {"head_dim": 8}
TIED, UNTIED = ({"tie_word_embeddings": tied} for tied in (True, False))
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
FULL = ["full_attention"] * 3
# norms without a gain
BARE = {"head_dim": "RMSNorm without a gain", "rescale": "the embedding passes a norm"}
HELIUM_STEPS = {
    "residual": (("residual", 48), ("heads", 6)),
    "heads": (("residual", 48), ("heads", 6)),
    "queries": (("residual", 48), ("queries", 3)),
    "head_dim": (("residual", 40), ("head_dim", 10)),
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 8,
    "llama_4_scaling_beta": 0.1,
}
PLAIN = {key: YARN[key] for key in ("rope_theta", "original_max_position_embeddings", "llama_4_scaling_beta")}


def case(family, variant, refused=UNCOPIED, steps=(), **changes):
    return Case(family, variant, WIDE | changes, refused, dict(steps))


CASES = [
    case("arcee", "untied", steps=LLAMA_STEPS),
    case("arcee", "tied, biases", steps=LLAMA_STEPS, **TIED, attention_bias=True, mlp_bias=True),
    case("nemotron", "untied", {}),
    case("nemotron", "tied, biases", {}, **TIED, attention_bias=True, mlp_bias=True),
    case("jais2", "untied, biases", steps=LLAMA_STEPS),
    case("jais2", "tied", steps=LLAMA_STEPS, **TIED, attention_bias=False, mlp_bias=False),
    case("apertus", "untied", UNCOPIED | {"fresh layers": "values of its own"}),
    case("apertus", "tied, biases, another activation", **TIED, attention_bias=True, hidden_act="relu2"),
    case("nanochat", "untied", BARE),
    case("nanochat", "tied, biases", BARE | {"residual": "Untie the head"}, **TIED, attention_bias=True),
    case("hyperclovax", "untied", steps=LLAMA_STEPS),
    case(
        "hyperclovax",
        "tied, biases, multipliers, no norms behind",
        steps=LLAMA_STEPS,
        **TIED,
        **MULTIPLIERS,
        attention_bias=True,
        mlp_bias=True,
        use_post_norm=False,
    ),
    case("internlm3", "untied", steps=LLAMA_STEPS),
    case("internlm3", "tied, biases", steps=LLAMA_STEPS, **TIED, attention_bias=True, mlp_bias=True),
    case("iquestcoder", "untied", steps=LLAMA_STEPS),
    case("iquestcoder", "tied, biases", steps=LLAMA_STEPS, **TIED, attention_bias=True, mlp_bias=True),
    case("seed_oss", "untied, biases"),
    case("seed_oss", "tied, biases of outputs", **TIED, attention_bias=False, attention_out_bias=True, mlp_bias=True),
    case("ernie4_5", "tied"),
    case("ernie4_5", "untied, biases", **UNTIED, use_bias=True, head_dim=6),
    case("helium", "untied", steps=HELIUM_STEPS),
    case("helium", "tied, biases", steps=HELIUM_STEPS, **TIED, attention_bias=True, mlp_bias=True),
    case("hunyuan_v1_dense", "untied"),
    case("hunyuan_v1_dense", "tied, biases", **TIED, attention_bias=True),
    case("cwm", "untied", steps=LLAMA_STEPS, sliding_window=4),
    case("cwm", "tied, listed layers", steps=LLAMA_STEPS, **TIED, sliding_window=4, layer_types=MIXED, mlp_bias=True),
    case("ministral3", "untied", rope_parameters=PLAIN),
    case("ministral3", "tied, yarn", {"head_dim": "for 'yarn' frequencies"}, **TIED, rope_parameters=YARN),
    case("vaultgemma", "tied, alternating windows", steps=LLAMA_STEPS, sliding_window=4),
    case(
        "vaultgemma",
        "untied, biases, listed layers",
        steps=LLAMA_STEPS,
        **UNTIED,
        attention_bias=True,
        layer_types=MIXED,
    ),
    case("exaone4", "untied, windows", sliding_window=4, sliding_window_pattern=2),
    case(
        "exaone4",
        "tied, no windows",
        UNCOPIED | {"first layers": "pattern = 0"},
        **TIED,
        sliding_window=None,
        layer_types=FULL,
    ),
    case("exaone4", "no layer turns", {"head_dim, pad": "neither ever has a gradient"}, layer_types=FULL),
    Case("persimmon", "untied", NEOX, OWN_KEYS, SQUARE),
    Case("persimmon", "tied, no norms of queries and keys", NEOX | TIED | {"qk_layernorm": False}, OWN_KEYS, SQUARE),
]
