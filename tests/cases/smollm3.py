"""SmolLM3: some layers turn no channels."""

from tests.cases.llama import SMALL, UNCOPIED
from tests.support.families import Case


def smollm3(variant, refused=UNCOPIED, **changes):
    return Case("smollm3", variant, SMALL | changes, refused)


WINDOWS = {"use_sliding_window": True, "sliding_window": 4}
CASES = [
    smollm3("tied, every second layer", no_rope_layer_interval=2),
    smollm3("untied, listed", tie_word_embeddings=False, no_rope_layers=[0, 1, 0]),
    smollm3("windows", no_rope_layer_interval=2, **WINDOWS),
    smollm3(
        "windows that are listed",
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        no_rope_layers=[1, 0, 1, 1, 1],
        **WINDOWS,
    ),
    smollm3("biases, head_dim 6", attention_bias=True, mlp_bias=True, head_dim=6),
    smollm3("one query a head", num_key_value_heads=4),
    smollm3("no layer turns", {}, no_rope_layers=[0, 0, 0]),
]
