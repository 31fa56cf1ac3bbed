"""Falcon: one weight for queries, keys and values, LayerNorms with biases, attention and MLP in parallel or not.

The query heads of each KV head stand in front of its key and value. With multi_query there is one KV head, without it
each query head has its own, and Falcon-40B and later (new_decoder_architecture) state the number of KV heads.

With ALiBi, a score is (q·k + slope · position) / sqrt(head_dim). No weight reaches the positions, so head_dim cannot
grow.
"""

from dataclasses import replace

from growth.architectures.alibi import PLACES, SCALED_BIAS, largest_with_slopes, sloped
from growth.architectures.base import Architecture, Axis, family
from growth.architectures.blocks import Attention, layer_norms, mlp, square_head_dim
from growth.architectures.config import Config, divide, flag, size
from growth.architectures.decoder import OWN_KEYS, decoder
from growth.errors import ConfigError

ONE_GROUP = "all query heads share one KV head (multi_query). Widen queries instead."


@family
def falcon(config: Config) -> Architecture:
    """Return the table of a Falcon."""
    new, bias, alibi = (flag(config, key, False) for key in ("new_decoder_architecture", "bias", "alibi"))
    table = decoder(
        config,
        Attention("self_attention", ("query_key_value",) * 3 + ("dense",), bias=(bias, bias), within=("heads",)),
        mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=bias),
        layer_norms(_norms(config, new), eps="layer_norm_epsilon"),
        names=("transformer.word_embeddings", "transformer.h.{layer}", "transformer.ln_f"),
        default_tied=True,
        sizes={
            "hidden_size": "residual",
            "ffn_hidden_size": "ffn",
            "num_attention_heads": "heads queries",
            "num_kv_heads": "heads" if new else "heads queries",
            "head_dim": "head_dim",
            "vocab_size": "vocab",
        },
        defaults={"ffn": 4 * size(config, "hidden_size"), "head_dim": square_head_dim(config)},
        heads=_heads(config, new, alibi),
        rotary=0 if alibi else None,
    )
    return table.with_axes(replace(table.axes["head_dim"], refusal=SCALED_BIAS)) if alibi else table


def _norms(config: Config, new: bool) -> str:
    """Return the names of a layer's LayerNorms: one for attention and one for the MLP, or one that both share.

    Raises:
        ConfigError: the class builds other norms than it runs.
    """
    parallel, separate = flag(config, "parallel_attn", True), size(config, "num_ln_in_parallel_attn", 1 + new)
    if new and not parallel:
        raise ConfigError(
            "config.json has parallel_attn = false and new_decoder_architecture = true, which Falcon of transformers "
            "cannot run. Set parallel_attn to true."
        )
    if parallel and separate not in (1, 1 + new):
        raise ConfigError(
            f"config.json has num_ln_in_parallel_attn = {separate}, which Falcon of transformers cannot run with "
            f"new_decoder_architecture = {str(new).lower()}. Set it to {'1 or 2' if new else '1'}."
        )
    if not parallel:
        return "input_layernorm post_attention_layernorm"
    return "ln_attn ln_mlp" if separate == 2 else "input_layernorm"


def _heads(config: Config, new: bool, alibi: bool) -> tuple[Axis, Axis]:
    """Return the axes of KV heads and of query heads per KV head, and how far ALiBi lets them grow."""
    all_queries = size(config, "num_attention_heads")
    below = largest_with_slopes(all_queries) if alibi else 0
    if new:
        heads = size(config, "num_kv_heads", all_queries)
        queries = divide("num_attention_heads", all_queries, "num_kv_heads", heads)
        of_each = Axis("queries", queries, fixed=queries, refusal=PLACES) if alibi else Axis("queries", queries)
        return _sloped("heads", heads, below // queries), of_each
    if flag(config, "multi_query", True):
        return Axis("heads", 1, refusal=ONE_GROUP), _sloped("queries", all_queries, below)
    if size(config, "num_kv_heads", all_queries) != all_queries:
        raise ConfigError(
            f"config.json has num_kv_heads = {config['num_kv_heads']} for {all_queries} query heads, which Falcon of "
            "transformers can run only with new_decoder_architecture or multi_query. Remove num_kv_heads."
        )
    return _sloped("heads", all_queries, below), Axis("queries", 1, refusal=OWN_KEYS)


def _sloped(name: str, units: int, largest: int) -> Axis:
    return sloped(name, units, largest) if largest else Axis(name, units)
