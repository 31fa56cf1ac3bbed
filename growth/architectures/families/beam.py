"""Beam: AFMoE's gated attention, in layers that are weighed by their number.

Sum number s of the model, counted from 2, is h' = branch / sqrt(s) + h sqrt((s - 1) / s). With g = h sqrt(s), this is
g' = g + branch: a residual stream as any other, which the norms see divided by sqrt(s). So width grows as usual. A norm
computes g / sqrt(mean(g^2) + eps s), and a new layer, even one that adds nothing, makes s larger for all sums behind.
There, eps would have to be smaller, and one number is that of all norms. So no layer can be the identity.
"""

from collections.abc import Mapping
from dataclasses import replace

from growth.architectures.base import Architecture, family
from growth.architectures.blocks import Attention, attention_bias, gated_mlp, layer_types, optional_head_dim
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import SIZES, decoder
from growth.architectures.families.gemma import SANDWICH
from growth.architectures.grouped_experts import (
    called,
    chosen_in_groups,
    corrected_router,
    listed_dense,
    mlp_layer_types,
)
from growth.architectures.mixtures import added
from growth.architectures.rotary import nested_rope, rotary_of_layers

NUMBERED = (
    "every layer divides the stream by a root of its number, so a new one changes how much eps weighs in all norms "
    "behind it. Use init: copy, which changes the function, or widen."
)
WITHOUT_ROPE: Mapping[str, object] = {"sliding_attention": {}, "full_attention": None}


@family
def beam(config: Config) -> Architecture:
    """Return the table of a Beam: RoPE in the layers of a kind for which its parameters are stated."""
    depth = size(config, "num_hidden_layers")
    kinds = layer_types(config, lambda layer: (layer + 1) % 6 != 0 and layer + 1 < depth)
    roped = [kind for kind, form in (nested_rope(config) or WITHOUT_ROPE).items() if form is not None]
    experts = gated_mlp("mlp.experts.{expert}")
    experts = experts if flag(config, "norm_topk_prob", True) else added(experts)
    mlp_kinds = mlp_layer_types(config, dense=3)
    mlp, sizes = listed_dense(config, (*corrected_router(), *experts), mlp_kinds)
    sizes = {key: axes for key, axes in called(sizes).items() if axes != "shared_experts"}
    head_dim = optional_head_dim(config, 128)
    attention = Attention(bias=attention_bias(config), qk_norm="shared", gate="gate_proj", gate_bias="gate_bias")
    table = decoder(
        config,
        attention,
        mlp,
        replace(SANDWICH, offset=0.0),
        sizes={**{key: axes for key, axes in SIZES.items() if axes != "ffn"}, **sizes},
        defaults={"heads": 8, "head_dim": head_dim, "ffn": 2560, "experts": 256},
        rotary=rotary_of_layers([kind in roped for kind in kinds], head_dim),
        bases=tuple((kind, "rope_theta", 1e4) for kind in roped),
    )
    lists = {"layer_types": kinds, "mlp_layer_types": mlp_kinds}
    return replace(chosen_in_groups(table, top_k=8, groups=(8, 4)), layer_lists=lists, no_identity=NUMBERED)
