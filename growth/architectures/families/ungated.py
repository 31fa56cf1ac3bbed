"""Llama's layers with an MLP that has no gate: arcee, apertus, jais2, nanochat, nemotron.

Its activation is a squared ReLU, or xIELU, whose scalars are trained and stay what they are at any width.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, family, weight
from growth.architectures.blocks import (
    Attention,
    Norms,
    attention_bias,
    implied_head_dim,
    layer_norms,
    mlp,
)
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import decoder
from growth.architectures.families.llama import check_whole_heads
from growth.architectures.families.olmo import TIED
from growth.architectures.rotary import rotary_channels, with_default_rope

NO_QK_GAIN = (
    "queries and keys pass an RMSNorm without a gain, which would enlarge the old channels to make up for fresh ones, "
    "and nothing after it could undo that. Widen heads instead."
)
EMBEDDING_NORM = "the embedding passes a norm, whose output has the same size at any eps"


@family
def arcee(config: Config) -> Architecture:
    """Return the table of an Arcee (AFM)."""
    check_whole_heads(config, "Arcee")
    bias = flag(config, "mlp_bias", False)
    return decoder(
        config,
        Attention(bias=attention_bias(config)),
        mlp("mlp.up_proj", "mlp.down_proj", bias=bias),
        Norms(eps_default=1e-5),
    )


@family
def nemotron(config: Config) -> Architecture:
    """Return the table of a Nemotron: LayerNorms whose gains are stored as their difference from 1."""
    head_dim = implied_head_dim(config)
    size(config, "num_key_value_heads")  # which the class takes no default for
    return decoder(
        config,
        Attention(bias=attention_bias(config)),
        mlp("mlp.up_proj", "mlp.down_proj", bias=flag(config, "mlp_bias", False)),
        replace(layer_norms("input_layernorm", "post_attention_layernorm", eps="norm_eps"), offset=1.0),
        rotary=rotary_channels(config, head_dim, 0.5),
    )


@family
def jais2(config: Config) -> Architecture:
    """Return the table of a Jais 2: LayerNorms, and biases everywhere by default."""
    check_whole_heads(config, "Jais 2")
    bias = flag(config, "attention_bias", True)
    return decoder(
        config,
        Attention(bias=(bias, bias)),
        mlp("mlp.up_proj", "mlp.down_proj", bias=flag(config, "mlp_bias", True)),
        layer_norms("input_layernorm", "post_attention_layernorm"),
    )


@family
def apertus(config: Config) -> Architecture:
    """Return the table of an Apertus: a norm on each head's queries and keys; xIELU has four scalars."""
    config = with_default_rope(
        config,
        rope_type="llama3",
        rope_theta=12e6,
        factor=8.0,
        original_max_position_embeddings=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    trained = config.get("hidden_act", "xielu") == "xielu"
    scalars = {"alpha_p": "1", "alpha_n": "1", "beta": "", "eps": ""} if trained else {}
    return decoder(
        config,
        Attention(bias=attention_bias(config), qk_norm="shared"),
        (
            *mlp("mlp.up_proj", "mlp.down_proj", bias=False),
            *(weight(f"mlp.act_fn.{name}", pattern) for name, pattern in scalars.items()),
        ),
        Norms(("attention_layernorm", "feedforward_layernorm"), eps_default=1e-5),
        bases=(("", "rope_theta", 12e6),),
    )


@family
def nanochat(config: Config) -> Architecture:
    """Return the table of a nanochat: norms without gains on the embedding, its branches, each head's queries and keys.

    The norm of the embedding undoes any factor. So the stream keeps its mean square, as with norm_eps: stock.
    """
    table = decoder(
        config,
        Attention(bias=attention_bias(config)),
        mlp("mlp.fc1", "mlp.fc2", bias=False),
        Norms(gain=False, eps=None),
    )
    return replace(
        table.with_axes(
            replace(table.axes["residual"], refusal=TIED if flag(config, "tie_word_embeddings", False) else ""),
            replace(table.axes["head_dim"], refusal=NO_QK_GAIN),
        ),
        no_rescale=EMBEDDING_NORM,
    )
