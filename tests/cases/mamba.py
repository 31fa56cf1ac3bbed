"""State-space models without attention."""

from growth.architectures.state_space import ACTIVATED, ACTIVATED_STATES, LAST_TOKEN, NORMED_STATES
from tests.support.families import Case

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "expand": 2,
    "conv_kernel": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MAMBA = SMALL | {"state_size": 4, "time_step_rank": 3}
MAMBA2 = SMALL | {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8}
TAPS = {f"conv_kernel, {init}": LAST_TOKEN for init in ("tile", "sample")}
# time scales are copied, and a model without layers has none
TAPS |= {"first layers": "the class gives values of its own"}
GATED = TAPS | {
    **{f"{axis}, {init}": ACTIVATED for axis in ("ssm_heads", "ssm_head_dim") for init in ("tile", "sample")},
    **{f"state, {init}": ACTIVATED_STATES for init in ("tile", "sample")},
}


def mamba2(variant, groups=2, **changes):
    heads = 8 // groups
    steps = {
        "residual": (("residual", 40), ("ssm_head_dim", 10)),
        "ssm_groups": (("ssm_groups", 2 * groups), ("residual", 64)),
        "ssm_heads": (("ssm_heads", heads // 2 * 3), ("residual", 48)),
        "ssm_head_dim": (("ssm_head_dim", 10), ("residual", 40)),
    }
    config = MAMBA2 | {"n_groups": groups} | changes
    return Case("mamba2", variant, config, GATED, steps, along={"ssm_head_dim": "pad"})


CASES = [
    Case("mamba", "tied", MAMBA, TAPS),
    Case("mamba", "untied, biases", MAMBA | {"tie_word_embeddings": False, "use_bias": True}, TAPS),
    Case("mamba", "no bias of the convolution", MAMBA | {"use_conv_bias": False}, TAPS),
    Case("falcon_mamba", "tied", MAMBA, TAPS | {"state": NORMED_STATES}),
    Case(
        "falcon_mamba",
        "untied, biases",
        MAMBA | {"tie_word_embeddings": False, "use_bias": True},
        TAPS | {"state": NORMED_STATES},
    ),
    mamba2("untied"),
    mamba2("tied, biases", tie_word_embeddings=True, use_bias=True),
    mamba2("one group, no bias of the convolution", groups=1, use_conv_bias=False),
]
