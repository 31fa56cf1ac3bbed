"""Flint: sinks beside normed queries and keys, sigmoids as scores, and RoPE in layers with a window alone."""

from dataclasses import replace

from growth.architectures.base import Architecture, family, linear
from growth.architectures.blocks import Attention, attention_bias, gated_mlp, layer_types
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import SIZES, decoder
from growth.architectures.families.moe import sparse_layers
from growth.architectures.grouped_experts import called, chosen_in_groups, with_dense
from growth.architectures.mixtures import added
from growth.architectures.rotary import rotary_of_layers


@family
def flint(config: Config) -> Architecture:
    """Return the table of a Flint: an expert that all tokens share, and a dense MLP in the first two layers or so."""
    if config.get("mlp_only_layers") is None:
        config = {**config, "mlp_only_layers": [0, 1]}
    last = size(config, "num_hidden_layers") - 1
    kinds = layer_types(config, lambda layer: not (layer < 2 or layer % 4 == 1 or layer == last))
    dense, _ = sparse_layers(config)
    routed = gated_mlp("mlp.experts.{expert}")
    sparse = (
        *linear("mlp.gate", "experts", "normed"),
        *(routed if flag(config, "norm_topk_prob", True) else added(routed)),
        *gated_mlp("mlp.shared_expert", axis="shared_ffn"),
    )
    mlp, sizes = with_dense(config, sparse, dense)
    names = {"n_routed_experts": "num_experts", "n_shared_experts": "shared_expert_intermediate_size"}
    sizes = {key: axes.replace("shared_experts", "shared_ffn") for key, axes in called(sizes, names).items()}
    table = decoder(
        {**config, "decoder_sparse_step": 1, "mlp_only_layers": list(dense)},
        Attention(bias=attention_bias(config), qk_norm="shared", sinks="softmax_offset"),
        mlp,
        sizes={**{key: axes for key, axes in SIZES.items() if axes != "ffn"}, **sizes},
        defaults={"heads": 4, "head_dim": 128, "ffn": 512, "shared_ffn": 1024, "experts": 256},
        rotary=rotary_of_layers([kind == "sliding_attention" for kind in kinds], size(config, "head_dim", 128)),
        layer_types=kinds,
    )
    return replace(chosen_in_groups(table, top_k=6, groups=None), layer_sets={"mlp_only_layers": dense})
