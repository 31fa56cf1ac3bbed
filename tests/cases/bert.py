"""BERT and other encoders, run as what their heads predict: masked tokens, or the next one (is_decoder)."""

from tests.cases.gpt2 import OWN_KEYS
from tests.cases.neox import SMALL
from tests.cases.opt import MIRROR, POST_NORM_STEPS
from tests.support.families import Case

UNTIED = {"tie_word_embeddings": False}
CAUSAL = {"is_decoder": True}
ROBERTA = SMALL | {"pad_token_id": 1, "bos_token_id": 0}
EQUAL = {
    f"{axis}, {init}": "only equally many copies"
    for axis in ("residual", "embedding", "head_embedding", "inner")
    for init in ("sample", "pad")
}
PRE_NORM = OWN_KEYS | EQUAL
FULL = {"attention_type": "original_full"}
NARROWER = {"embedding_size": 16, "rotary_value": True}
POST_NORM = PRE_NORM | {"layers": "a LayerNorm's output differs"}

ROTARY = POST_NORM | {"head_dim": "the code fixes its base"}

BY_TILE = {"residual": "tile", "embedding": "tile", "inner": "tile"}
NARROW = POST_NORM_STEPS | {"residual": (*POST_NORM_STEPS["residual"], ("embedding", 32))}
NARROW["embedding"] = NARROW["residual"]
STEPS = POST_NORM_STEPS | {"adapter": (("adapter", 32),), "embedding": (("embedding", 32),)}
# RoCBert's embedding, which is no part of the stream, is as wide as it
AS_WIDE = {axis: (*steps, ("inner", dict(steps)["residual"])) for axis, steps in POST_NORM_STEPS.items()}
AS_WIDE["inner"] = AS_WIDE["residual"]


def case(family, variant, config=ROBERTA, refused=POST_NORM, **changes):
    own = {"roc_bert": AS_WIDE}.get(family, STEPS)
    steps = NARROW if changes.get("embedding_size") == 16 else own
    return Case(family, variant, config | changes, refused, steps, BY_TILE)


WIDTHS = {"input_embedding_size": 16, "output_embedding_size": 24}
GLYPHS = {"shape_vocab_size": 19, "shape_embed_dim": 12, "pronunciation_vocab_size": 13, "pronunciation_embed_dim": 10}
LANGUAGES = {"languages": ["en_XX", "de_DE"], "default_language": "de_DE"}
ONE_LANGUAGE = {"languages": ["en_XX"], "default_language": "en_XX"}
OWN_NORMS = {"pre_norm": True, "ln_before_adapter": False, "adapter_layer_norm": True}
CASES = [
    case("bert", "causal", SMALL, **CAUSAL),
    case("bert", "masked, untied", SMALL, **UNTIED),
    case("electra", "causal, narrow embedding", SMALL, **CAUSAL, embedding_size=16),
    case("electra", "masked, untied, narrow embedding", SMALL, **UNTIED, embedding_size=16),
    case("electra", "masked", SMALL, embedding_size=32),
    case("ernie", "causal", SMALL, **CAUSAL),
    case("ernie", "masked, untied, tasks", SMALL, **UNTIED, use_task_id=True),
    case("roberta", "causal", **CAUSAL),
    case("roberta", "masked, untied", **UNTIED),
    case("camembert", "causal", **CAUSAL),
    case("camembert", "masked, untied", **UNTIED),
    case("xlm-roberta", "causal", **CAUSAL),
    case("xlm-roberta", "masked, untied", **UNTIED),
    case("data2vec-text", "causal", **CAUSAL),
    case("data2vec-text", "masked, untied", **UNTIED),
    case("big_bird", "causal", SMALL, **CAUSAL, **FULL),
    case("big_bird", "masked, untied", SMALL, **UNTIED, **FULL),
    case("bert-generation", "causal", SMALL, POST_NORM | MIRROR, **CAUSAL),
    case("bert-generation", "masked, untied", SMALL, **UNTIED),
    case("roformer", "causal", SMALL, ROTARY, **CAUSAL),
    case("roformer", "masked, untied, narrow embedding, rotary values", SMALL, ROTARY, **UNTIED, **NARROWER),
    case("megatron-bert", "causal", SMALL, PRE_NORM, **CAUSAL),
    case("megatron-bert", "masked, untied", SMALL, PRE_NORM, **UNTIED),
    case("roberta-prelayernorm", "causal", refused=PRE_NORM, **CAUSAL),
    case("roberta-prelayernorm", "masked, untied", refused=PRE_NORM, **UNTIED),
    case("xlm-roberta-xl", "causal", refused=PRE_NORM, **CAUSAL),
    case("xlm-roberta-xl", "masked, untied", refused=PRE_NORM, **UNTIED, type_vocab_size=2),
    case("rembert", "causal", SMALL, **CAUSAL, **WIDTHS),
    case("rembert", "masked", SMALL, **WIDTHS),
    case("roc_bert", "causal", SMALL, **CAUSAL, **GLYPHS),
    case("roc_bert", "masked, untied", SMALL, **UNTIED, **GLYPHS),
    case("xmod", "causal", **CAUSAL, **ONE_LANGUAGE),
    case("xmod", "masked, untied, no norm in front of adapters", **UNTIED, **LANGUAGES, adapter_reuse_layer_norm=False),
    case("xmod", "norms first, adapters added to what they normalise", **LANGUAGES, pre_norm=True),
    case("xmod", "norms first", refused=PRE_NORM, **LANGUAGES, pre_norm=True, ln_before_adapter=False),
    case("xmod", "norms first, norms of adapters", refused=PRE_NORM, **LANGUAGES, **OWN_NORMS),
]
