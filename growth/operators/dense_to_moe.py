"""Dense families and the mixtures of experts that they become by upcycling.

A mixture with one expert, chosen with weight 1, is the dense model. So the dense checkpoint is read as that mixture,
and its experts grow from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from growth.architectures.base import FAMILIES, Architecture
from growth.architectures.config import Config, flag, number, size
from growth.architectures.rotary import rope
from growth.arrays.tensor_info import TensorInfo
from growth.errors import RecipeError

NO_SOURCE = ""  # the name of a tensor that the source does not hold


@dataclass(frozen=True)
class Mixture:
    """A mixture family, and how a dense model is read as one.

    names: parts of tensor names, those of the mixture to those of the dense model.
    stated: config values to state, because the two families have other defaults.
    refused: flags of the dense family that the mixture does not have.
    """

    model_type: str
    architecture: str
    names: Mapping[str, str]
    stated: Mapping[str, Any]
    refused: tuple[str, ...] = ()


_MIXTRAL = Mixture(
    "mixtral",
    "MixtralForCausalLM",
    {
        "block_sparse_moe.experts.0.w1": "mlp.gate_proj",
        "block_sparse_moe.experts.0.w3": "mlp.up_proj",
        "block_sparse_moe.experts.0.w2": "mlp.down_proj",
    },
    {"num_local_experts": 1},
    refused=("attention_bias", "mlp_bias"),
)
_EXPERT = {"mlp.experts.0.": "mlp."}
_ONE_EXPERT = {"num_experts": 1, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
# No dense family has OLMoE's architecture: OLMo 2 has its norms after the branches, and no other family has a
# norm over all heads at once
MIXTURES = {
    "llama": _MIXTRAL,
    "mistral": _MIXTRAL,
    "qwen2": Mixture("qwen2_moe", "Qwen2MoeForCausalLM", _EXPERT, _ONE_EXPERT | {"qkv_bias": True}),
    "qwen3": Mixture("qwen3_moe", "Qwen3MoeForCausalLM", _EXPERT, _ONE_EXPERT),
}


@dataclass(frozen=True)
class Upcycling:
    """How a dense model is read as a mixture of experts.

    top_k: number of experts for each token.
    router_std: standard deviation of the router's initial values.
    """

    top_k: int
    router_std: float

    def __call__(
        self, table: Architecture, tensors: Mapping[str, TensorInfo]
    ) -> tuple[Architecture, dict[str, TensorInfo]]:
        """Return the table of the mixture, and the stored tensors by its names."""
        return as_mixture(table, tensors, self.top_k)


def as_mixture(
    dense: Architecture, tensors: Mapping[str, TensorInfo], top_k: int
) -> tuple[Architecture, dict[str, TensorInfo]]:
    """Return a dense architecture and its tensors, read as the mixture with one expert.

    Raises:
        RecipeError: no mixture matches the family, or its config cannot express the source.
    """
    built = mixture_table(dense, top_k)
    mixture = MIXTURES[dense.model_type]
    return built, {name: _info(name, shape, mixture, tensors) for name, shape in built.shapes().items()}


def mixture_table(dense: Architecture, top_k: int) -> Architecture:
    """Return a dense architecture, read as the mixture with one expert.

    Raises:
        RecipeError: no mixture matches the family, or its config cannot express the source.
    """
    mixture = MIXTURES.get(dense.model_type)
    if mixture is None:
        raise RecipeError(
            f"upcycle: {dense.model_type} has no matching mixture family. Families it can upcycle: "
            f"{', '.join(MIXTURES)}."
        )
    for key in mixture.refused:
        if flag(dense.config, key, False):
            raise RecipeError(
                f"upcycle: this config has {key} = true, and {mixture.model_type} has no biases. Upcycle a model "
                "without biases."
            )
    if "sliding_attention" in dense.layer_lists.get("layer_types", ()):
        raise RecipeError(
            f"upcycle: this config chooses a sliding window layer by layer (layer_types), which {mixture.model_type} "
            "cannot. Upcycle a model without layer_types."
        )
    built = FAMILIES[mixture.model_type](_config(dense, mixture))
    return replace(built, config={**built.config, "num_experts_per_tok": top_k}, ratios={})


def _config(dense: Architecture, mixture: Mixture) -> Config:
    """Return the mixture's config, with every value stated whose default differs between the two families."""
    config = {key: value for key, value in dense.config.items() if key not in (*mixture.refused, "layer_types")}
    config |= {
        "model_type": mixture.model_type,
        "architectures": [mixture.architecture],
        "num_experts_per_tok": 1,
        "num_key_value_heads": dense.axes["heads"].size,
        "head_dim": dense.axes["head_dim"].size,
        "rms_norm_eps": number(dense.config, "rms_norm_eps", dense.eps_default),
        "rope_theta": rope(dense.config, "rope_theta", 10000.0),
        "sliding_window": dense.config.get("sliding_window", 4096) if dense.model_type == "mistral" else None,
        **mixture.stated,
    }
    if "use_sliding_window" in config:  # no layer has a window, and the mixtures choose other layers for it
        config["use_sliding_window"] = False
    if "moe_intermediate_size" not in config and "num_experts" in mixture.stated:
        config["moe_intermediate_size"] = size(dense.config, "intermediate_size")
        config.setdefault("shared_expert_intermediate_size", size(dense.config, "intermediate_size"))
    return config


def _info(name: str, shape: tuple[int, ...], mixture: Mixture, tensors: Mapping[str, TensorInfo]) -> TensorInfo:
    """Return the dense tensor of a tensor of the mixture; a router or a shared expert has none."""
    for theirs, ours in mixture.names.items():
        name = name.replace(theirs, ours)
    dtype = next(iter(tensors.values())).dtype
    return tensors.get(name, TensorInfo(NO_SOURCE, dtype, shape))
