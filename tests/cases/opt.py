"""OPT."""

from tests.cases.gpt2 import OWN_KEYS, SQUARE
from tests.support.families import Case

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OWN = OWN_KEYS | {"rescale": "states no eps"}
# what grows the stream of a model that cannot grow it
MIRROR = dict.fromkeys(("residual", "heads", "head_dim"), "neither a final norm's gain nor a projection")
POST_NORM_STEPS = {
    "residual": (("residual", 64), ("heads", 8)),
    "heads": (("heads", 12), ("residual", 96)),
    "head_dim": (("residual", 64), ("head_dim", 16)),
}
UNEQUAL = {
    f"{axis}, {init}": "only equally many copies"
    for axis in ("residual", "heads", "head_dim")
    for init in ("sample", "pad")
}
POST_NORM = OWN_KEYS | UNEQUAL | {"layers": "normalises the residual stream after its branches"}
# norms without a gain: all that reads the stream takes copies in shares that are forced
FORCED = OWN | {
    f"{axis}, {init}": "must read them in equal shares|states no eps"
    for axis in ("residual", "heads", "head_dim")
    for init in ("tile", "sample")
}
PROJECTED = {"word_embed_proj_dim": 16}
BEHIND = {"do_layer_norm_before": False}


def opt(variant, refused=OWN, steps=SQUARE, **changes):
    return Case("opt", variant, SMALL | changes, refused, steps)


CASES = [
    opt("tied"),
    opt("untied", tie_word_embeddings=False),
    opt("no biases, no gains", OWN | MIRROR, enable_bias=False, layer_norm_elementwise_affine=False),
    opt("no gains, untied", FORCED, layer_norm_elementwise_affine=False, tie_word_embeddings=False),
    opt("projected", **PROJECTED),
    opt("projected, untied", **PROJECTED, tie_word_embeddings=False),
    opt("projected, no gains", FORCED, **PROJECTED, layer_norm_elementwise_affine=False),
    opt("no final norm", OWN | MIRROR, _remove_final_layer_norm=True),
    opt("no final norm, untied", _remove_final_layer_norm=True, tie_word_embeddings=False),
    opt("no final norm, projected", **PROJECTED, _remove_final_layer_norm=True),
    opt("norms behind", OWN_KEYS | MIRROR | {"layers": POST_NORM["layers"]}, POST_NORM_STEPS, **BEHIND),
    opt("norms behind, projected", POST_NORM, POST_NORM_STEPS, **PROJECTED, **BEHIND),
    opt("norms behind, untied", POST_NORM, POST_NORM_STEPS, tie_word_embeddings=False, **BEHIND),
    opt(
        "norms behind, no gains", POST_NORM, POST_NORM_STEPS, **PROJECTED, **BEHIND, layer_norm_elementwise_affine=False
    ),
]
