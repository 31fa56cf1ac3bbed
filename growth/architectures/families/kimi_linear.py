"""Kimi Linear: Kimi delta attention in most layers, latent attention without RoPE in the others, and experts."""

from collections.abc import Mapping
from dataclasses import replace

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Norms, in_layers, layers_of
from growth.architectures.config import Config, flag, of_layers, size
from growth.architectures.decoder import never_tied
from growth.architectures.delta_net import KIMI, kimi_delta_net, kinds_of_layers
from growth.architectures.grouped_experts import (
    DENSE,
    called,
    chosen_in_groups,
    corrected_router,
    listed_dense,
    mlp_layer_types,
    shared_and_routed,
)
from growth.architectures.latent import LatentAttention, latent_decoder
from growth.errors import ConfigError

NESTED = "linear_attn_config"
NESTED_KEYS = dict(zip(KIMI, ("num_heads", "head_dim", "short_conv_kernel_size"), strict=True))
LISTS = {"full_attn_layers": "full_attention", "kda_layers": "linear_attention"}
MOE = "block_sparse_moe"
# files of layers with a dense MLP call it `mlp`, but those that transformers saves do not
DENSE_NAMES = {"model.layers.{layer}.mlp.": f"model.layers.{{layer}}.{MOE}."}
DEFAULTS = {
    "heads": 32,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "ffn": 1024,
    "experts": 256,
    "shared_experts": 1,
}


@family
def kimi_linear(config: Config) -> Architecture:
    """Return the table of a Kimi Linear: DeepSeek-V3's weights beside Kimi delta attention."""
    config = never_tied(_flat(config))
    kinds = kinds_of_layers(config, lambda layer: layer > 0 and layer % 4 == 0)
    bias = flag(config, "attention_bias", False)
    mlp_kinds = mlp_layer_types(config, dense=size(config, DENSE, 1, least=0))
    router = corrected_router(f"{MOE}.gate.e_score_correction_bias", f"{MOE}.gate")
    experts = shared_and_routed(config, name=MOE, projections=("w1", "w3", "w2"))
    mlp, sizes = listed_dense(config, (*router, *experts), mlp_kinds)
    mixer = kimi_delta_net(config, "self_attn")
    table = latent_decoder(
        config,
        LatentAttention(config.get("q_lora_rank") is not None, (bias, bias), layers=layers_of(kinds, "full_attention")),
        mlp,
        Norms(eps_default=1e-5),
        sizes=called(sizes, {"n_routed_experts": "num_local_experts"}),
        defaults=DEFAULTS,
        pairs=None,
        layer_types=kinds,
        mixer=replace(mixer, weights=in_layers(layers_of(kinds, "linear_attention"), *mixer.weights)),
    )
    lists = {**table.layer_lists, "mlp_layer_types": mlp_kinds}
    return chosen_in_groups(replace(table, layer_lists=lists, other_names=DENSE_NAMES), top_k=8)


def _flat(config: Config) -> Config:
    """Return a config with what published ones state in a config of linear attention, without the unread head_dim.

    Raises:
        ConfigError: the nested config is not an object, or does not list each layer once.
    """
    nested, depth = config.get(NESTED, {}), size(config, "num_hidden_layers")
    if not isinstance(nested, Mapping):
        raise ConfigError(f"config.json has {NESTED} = {nested!r}; an object is needed. Correct or remove it.")
    flat = {key: value for key, value in config.items() if key not in (NESTED, "head_dim")}
    flat |= {key: nested[inner] for key, inner in NESTED_KEYS.items() if inner in nested}
    if LISTS.keys() <= nested.keys() and not of_layers(config, "layer_types"):
        lists = {kind: nested[key] for key, kind in LISTS.items() if isinstance(nested[key], list)}
        entries = [(layer, kind) for kind, layers in lists.items() for layer in layers]  # counted from 1
        whole = all(type(layer) is int for layer, _ in entries)
        if not whole or sorted(layer for layer, _ in entries) != [*range(1, depth + 1)]:
            raise ConfigError(
                f"config.json has {NESTED} = {nested!r}, which does not list each of {depth} layers once."
            )
        flat["layer_types"] = [kind for _, kind in sorted(entries)]
    return flat
