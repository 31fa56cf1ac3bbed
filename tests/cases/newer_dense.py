"""Dense models with attention or residual connections of their own."""

from tests.cases.llama import SMALL, UNCOPIED
from tests.support.families import Case

TIED = {"tie_word_embeddings": True}
HEADS = SMALL | {"head_dim": 8}
DOGE = HEADS | {"keep_window_size": 5}
# pairs of heads in two halves
DIFFLLAMA = HEADS | {"num_attention_heads": 8, "num_key_value_heads": 4}
NUMBERED = UNCOPIED | {"layers, prepend": "depends on the layer's number"}

CASES = [
    Case("doge", "untied, a mask of few tokens", DOGE, UNCOPIED),
    Case("doge", "tied, biases", DOGE | TIED | {"attention_bias": True, "mlp_bias": True}, UNCOPIED),
    Case("diffllama", "untied", DIFFLLAMA, NUMBERED),
    Case("diffllama", "tied, biases", DIFFLLAMA | TIED | {"attention_bias": True}, NUMBERED),
]
