"""GPT-Neo and GPT-BigCode (SantaCoder, StarCoder): GPT-2's layers with weights stored (out, in).

GPT-Neo's scores are not scaled, and its layers attend to all tokens or to a window. GPT-BigCode has one KV head
(multi_query) or, in one weight within each head, as many as query heads.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, Axis, family
from growth.architectures.blocks import Attention, layer_norms, mlp, square_head_dim
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import OWN_KEYS, decoder, with_learned_positions
from growth.architectures.families.falcon import ONE_GROUP
from growth.architectures.families.gpt2 import check_decoder_only
from growth.errors import ConfigError

NAMES = ("transformer.wte", "transformer.h.{layer}", "transformer.ln_f")
NORMS = layer_norms("ln_1", "ln_2", eps="layer_norm_epsilon")
MLP = mlp("mlp.c_fc", "mlp.c_proj", bias=True)
GPT_NEO = {
    "hidden_size": "residual",
    "intermediate_size": "ffn",
    "num_heads": "heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab",
}
BIGCODE = {
    "n_embd": "residual",
    "n_inner": "ffn",
    "n_head": "heads queries",
    "num_key_value_heads": "heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab",
}


@family
def gpt_neo(config: Config) -> Architecture:
    """Return the table of a GPT-Neo."""
    table = decoder(
        config,
        Attention("attn.attention", ("q_proj", "k_proj", "v_proj", "out_proj"), bias=(False, True), scaled=False),
        MLP,
        NORMS,
        names=NAMES,
        default_tied=True,
        depth="num_layers",
        sizes=GPT_NEO,
        defaults={
            "ffn": 4 * size(config, "hidden_size"),
            "head_dim": square_head_dim(config, "hidden_size", "num_heads"),
        },
        rotary=0,
    )
    return replace(
        with_learned_positions(table, "transformer.wpe.weight", "max_position_embeddings", 2048),
        layer_lists={"attention_layers": _kinds(config)},
        grouped_lists={"attention_types": "attention_layers"},
    )


def _kinds(config: Config) -> list[str]:
    """Return global or local for each layer, from groups of these and how often each occurs.

    Raises:
        ConfigError: not such groups, or not as many as layers.
    """
    groups, depth = config.get("attention_types") or [[["global", "local"], 12]], size(config, "num_layers")
    try:
        kinds = [kind for some, times in groups for kind in some * min(times, depth + 1)]
    except (TypeError, ValueError):
        kinds = []
    if len(kinds) != depth or any(kind not in ("global", "local") for kind in kinds):
        raise ConfigError(
            f"config.json has attention_types = {groups!r}, which is not {depth} times global or local. Correct one of "
            "attention_types and num_layers."
        )
    return kinds


@family
def gpt_bigcode(config: Config) -> Architecture:
    """Return the table of a GPT-BigCode."""
    check_decoder_only(config)
    heads, multi_query = size(config, "n_head"), flag(config, "multi_query", True)
    one_group = Axis("heads", 1, refusal=ONE_GROUP), Axis("queries", heads)
    table = decoder(
        config,
        Attention(
            "attn",
            ("c_attn",) * 3 + ("c_proj",),
            bias=(True, True),
            within=() if multi_query else ("heads",),
            scaled=flag(config, "scale_attn_weights", True),
        ),
        MLP,
        NORMS,
        names=NAMES,
        default_tied=True,
        depth="n_layer",
        sizes=BIGCODE,
        defaults={"ffn": 4 * size(config, "n_embd"), "head_dim": square_head_dim(config, "n_embd", "n_head")},
        heads=one_group if multi_query else (Axis("heads", heads), Axis("queries", 1, refusal=OWN_KEYS)),
        rotary=0,
    )
    return with_learned_positions(table, "transformer.wpe.weight", "n_positions", 1024)
