"""GPT-J and CodeGen: attention and MLP in parallel after one LayerNorm, a head with a bias.

The config states the number of rotary channels, neighbours are a pair, and the rotary base is fixed. CodeGen stores the
queries, values and keys of four blocks of heads in one weight.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from growth.architectures.base import Architecture, Axis, Weight, family
from growth.architectures.blocks import Attention, layer_norms, mlp, square_head_dim
from growth.architectures.config import Config, divide, size
from growth.architectures.decoder import decoder
from growth.architectures.families.gpt2 import SIZES
from growth.errors import ConfigError

BLOCKS = 4
FOUR = "CodeGen stores its heads in four blocks, and every query head has its own KV head. Widen heads instead."


@family
def gptj(config: Config) -> Architecture:
    """Return the table of a GPT-J."""
    return _parallel(config, Attention("attn", ("q_proj", "k_proj", "v_proj", "out_proj")))


@family
def codegen(config: Config) -> Architecture:
    """Return the table of a CodeGen, in which the axis `queries` is the four blocks of heads.

    Raises:
        ConfigError: the number of heads is not a multiple of four.
    """
    heads = divide("n_head", size(config, "n_head"), "CodeGen's number of blocks", BLOCKS)
    axes = Axis("heads", heads), Axis("queries", BLOCKS, refusal=FOUR)
    attention = Attention("attn", ("qkv_proj",) * 3 + ("out_proj",), within=("queries",))
    table = _parallel(config, attention, {**SIZES, "n_head": "heads queries"}, axes)
    return replace(table, weights=tuple(_in_blocks(weight) for weight in table.weights))


def _in_blocks(weight: Weight) -> Weight:
    """Return a weight with its heads in blocks; in each block, queries precede values, and values precede keys."""
    patterns = (re.sub(r"\(heads (queries )?", "(queries heads ", part.pattern) for part in weight.parts)
    parts = tuple(replace(part, pattern=pattern) for part, pattern in zip(weight.parts, patterns, strict=True))
    return replace(weight, parts=(parts[0], parts[2], parts[1]) if len(parts) == 3 else parts)


def _parallel(
    config: Config, attention: Attention, sizes: Mapping[str, str] = SIZES, heads: tuple[Axis, Axis] | None = None
) -> Architecture:
    """Return the table of a GPT-J with such attention.

    Raises:
        ConfigError: rotary_dim is odd or above head_dim.
    """
    head_dim = square_head_dim(config, "n_embd", "n_head")
    rotary = size(config, "rotary_dim", 64)
    if rotary > head_dim or rotary % 2:
        raise ConfigError(
            f"config.json has rotary_dim = {rotary}, and heads of {head_dim} channels: they come in pairs, so an "
            f"even number of at most {head_dim} is needed."
        )
    table = decoder(
        config,
        attention,
        mlp("mlp.fc_in", "mlp.fc_out", bias=True),
        layer_norms("ln_1", eps="layer_norm_epsilon"),
        names=("transformer.wte", "transformer.h.{layer}", "transformer.ln_f"),
        head_bias=True,
        depth="n_layer",
        sizes=sizes,
        heads=heads,
        defaults={"ffn": 4 * size(config, "n_embd"), "head_dim": head_dim},
        rotary=rotary,
        pairs="neighbours",
    )
    return replace(table, rotary=None, rotary_key="rotary_dim")  # not a fraction of head_dim in this config
