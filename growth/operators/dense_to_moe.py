"""Dense families and the mixtures of experts that they become by upcycling.

A mixture with one expert, chosen with weight 1, is the dense model. So the dense checkpoint is read as that mixture,
and its experts grow from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from growth.algebra.draws import Draws
from growth.algebra.expansion import FRESH, Expansion
from growth.architectures.base import Architecture, Weight
from growth.architectures.config import Config, flag, number, size
from growth.architectures.registry import FAMILIES
from growth.architectures.rotary import rope
from growth.arrays.tensor_info import NO_SOURCE, TensorInfo
from growth.errors import RecipeError


@dataclass(frozen=True)
class SharedExpert:
    """The expert of a mixture that all tokens pass through.

    names: parts of tensor names, those of the shared expert to those of the dense MLP.
    size: the config key of its size.
    counted: whether this key counts experts of the size of one instead of units.
    weight: the factor on its output where its gate is zero; 1 without a gate.
    """

    names: Mapping[str, str]
    size: str
    counted: bool = False
    weight: float = 1.0


@dataclass(frozen=True)
class Mixture:
    """A mixture family, and how a dense model is read as one.

    names: parts of tensor names, those of the mixture to those of the dense model.
    experts, expert_size, chosen: the config keys of the number of experts, of the size of one, and of the number of
        experts for each token.
    stated: config values to state, because the two families have other defaults.
    refused: flags of the dense family that the mixture does not have.
    shared: the expert that all tokens pass through, if the family has one.
    dense_sizes: config keys that state the dense MLP's size, if the config has no other value for them.
    windows: whether its config lists the layers that have a window, as that of the dense family does.
    """

    model_type: str
    architecture: str
    names: Mapping[str, str]
    experts: str
    expert_size: str
    stated: Mapping[str, Any] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    shared: SharedExpert | None = None
    dense_sizes: tuple[str, ...] = ()
    chosen: str = "num_experts_per_tok"
    windows: bool = False


_MIXTRAL = Mixture(
    "mixtral",
    "MixtralForCausalLM",
    {
        "block_sparse_moe.experts.{expert}.w1": "mlp.gate_proj",
        "block_sparse_moe.experts.{expert}.w3": "mlp.up_proj",
        "block_sparse_moe.experts.{expert}.w2": "mlp.down_proj",
    },
    "num_local_experts",
    "intermediate_size",
    refused=("attention_bias", "mlp_bias"),
)
_QWEN3 = Mixture(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    {"mlp.experts.{expert}.": "mlp."},
    "num_experts",
    "moe_intermediate_size",
    {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
    dense_sizes=("shared_expert_intermediate_size",),
)
_QWEN2 = replace(
    _QWEN3,
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    stated={**_QWEN3.stated, "qkv_bias": True},
    shared=SharedExpert({"mlp.shared_expert.": "mlp."}, "shared_expert_intermediate_size", weight=0.5),
)
# no group is left out, so that the weights of those chosen sum to 1; without `shared`, the shared expert is silent
_DEEPSEEK_V3 = Mixture(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    {"mlp.experts.{expert}.": "mlp."},
    "n_routed_experts",
    "moe_intermediate_size",
    {
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
        "n_shared_experts": 1,
        "num_nextn_predict_layers": 0,
    },
    shared=SharedExpert({"mlp.shared_experts.": "mlp."}, "n_shared_experts", counted=True),
)
_ERNIE = Mixture(
    "ernie4_5_moe",
    "Ernie4_5_MoeForCausalLM",
    {"mlp.experts.{expert}.": "mlp."},
    "moe_num_experts",
    "moe_intermediate_size",
    {"moe_layer_start_index": 0, "moe_layer_end_index": -1, "moe_layer_interval": 1, "moe_num_shared_experts": 0},
    refused=("use_bias",),
    shared=SharedExpert({"mlp.shared_experts.": "mlp."}, "moe_num_shared_experts", counted=True),
    chosen="moe_k",
)
_FLEX_OLMO = Mixture(
    "flex_olmo",
    "FlexOlmoForCausalLM",
    {"mlp.experts.{expert}.": "mlp."},
    "num_experts",
    "intermediate_size",
    {"norm_topk_prob": True},
)
_HUNYUAN = Mixture(
    "hunyuan_v1_moe",
    "HunYuanMoEV1ForCausalLM",
    {"mlp.experts.{expert}.": "mlp."},
    "num_experts",
    "intermediate_size",
    shared=SharedExpert({"mlp.shared_mlp.": "mlp."}, "intermediate_size"),
    chosen="moe_topk",
)
_COHERE2 = Mixture(
    "cohere2_moe",
    "Cohere2MoeForCausalLM",
    {"mlp.experts.{expert}.": "mlp."},
    "num_experts",
    "intermediate_size",
    {"expert_selection_fn": "softmax", "num_shared_experts": 0},
    windows=True,
)
MIXTURES = {
    "llama": _MIXTRAL,
    "mistral": _MIXTRAL,
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "youtu": _DEEPSEEK_V3,
    "ernie4_5": _ERNIE,
    "olmo2": _FLEX_OLMO,
    "hunyuan_v1_dense": _HUNYUAN,
    "cohere2": _COHERE2,
}
# why the mixture of a similar name is not that of a dense family; all others have no mixture with their layers
DIFFERENT = {
    "exaone4": "exaone_moe has its norms in front of attention and MLP, not behind",
    "glm4": "glm4_moe has no norms behind attention and MLP, and other rotary pairs",
    "granite": "granitemoe keeps the gate and up projections of all experts in one tensor, and upcycling makes each "
    "tensor from one",
    "lfm2": "the router of lfm2_moe divides by 1e-6 more than the sum of the scores, so that experts weigh less than 1",
    "olmo": "olmoe and flex_olmo have RMSNorms with gains, and norms of queries and keys",
    "olmo3": "most of its layers have a window, and flex_olmo has none",
    "phi3": "phimoe has LayerNorms in place of RMSNorms",
}


@dataclass(frozen=True)
class Upcycling:
    """How a dense model is read as a mixture of experts.

    dense: the model_type of the dense model.
    top_k: number of experts for each token.
    router_std: standard deviation of the router's initial values.
    parts: number of experts that the dense MLP is divided into; together they compute what it does.
    shared: the part of the MLP's output that the shared expert computes, from 0 to 1.
    reinit: the fraction of every expert's units that are random instead of copies.
    seed: the random seed of their choice.
    """

    dense: str
    top_k: int
    router_std: float
    parts: int = 1
    shared: float = 0.0
    reinit: float = 0.0
    seed: int = 0

    @property
    def mixture(self) -> Mixture:
        """The mixture family.

        Raises:
            RecipeError: no mixture matches the dense family.
        """
        if self.dense not in MIXTURES:
            why = f": {DIFFERENT[self.dense]}" if self.dense in DIFFERENT else ""
            raise RecipeError(
                f"upcycle: {self.dense} has no matching mixture family{why}. Families it can upcycle: "
                f"{', '.join(MIXTURES)}."
            )
        return MIXTURES[self.dense]

    def __call__(
        self, table: Architecture, tensors: Mapping[str, TensorInfo]
    ) -> tuple[Architecture, dict[str, TensorInfo]]:
        """Return the table of the mixture, and the stored tensors by its names.

        Raises:
            RecipeError: the config of the mixture cannot express the source.
        """
        built = self.table(table)
        dtype = next(iter(tensors.values())).dtype
        found = {}
        for weight in built.weights:
            dense, missing = self._dense(weight), TensorInfo(NO_SOURCE, dtype, built.shape(weight))
            for place in weight.places(built.depth, built.length(weight.units)):
                found[weight.at(*place)] = tensors.get(dense.at(*place), missing)
        return built, found

    def table(self, dense: Architecture) -> Architecture:
        """Return a dense architecture, read as the mixture of as many experts as its MLP is divided into.

        Raises:
            RecipeError: no mixture matches the family, or its config cannot express the source.
        """
        mixture = self.mixture
        if dense.outer:
            raise RecipeError(
                f"upcycle: this {dense.model_type} is inside a {dense.outer.wrapper.model_type}, and upcycling is of "
                "text models on their own. Leave out upcycle."
            )
        _check_expressible(dense, mixture)
        built = FAMILIES[mixture.model_type](_config(dense, mixture, self))
        return replace(built, config={**built.config, mixture.chosen: self.top_k}, ratios={})

    def _dense(self, weight: Weight) -> Weight:
        """Return the dense weight that a weight of the mixture is made from; a router or a silent expert has none."""
        shared = self.mixture.shared
        name = weight.name
        for theirs, ours in {**self.mixture.names, **(shared.names if shared and self.shared else {})}.items():
            name = name.replace(theirs, ours)
        return replace(weight, name=name)

    @property
    def differ(self) -> bool:
        """Whether experts have other units than the dense MLP."""
        return self.parts > 1 or self.reinit > 0

    def units(self, size: int, part: int, layer: int, expert: int) -> Expansion:
        """Return the map from the units of the dense MLP to those of one expert.

        part: which part of the MLP the expert is. layer, expert: its place in the grown model.
        """
        inner = size // self.parts
        source = part * inner + np.arange(inner)
        order = np.argsort(Draws(self.seed, f"upcycle/{layer}/{expert}").uniform(inner), kind="stable")
        source[order[: round(self.reinit * inner)]] = FRESH
        return Expansion(size, source, np.ones(inner), np.ones(inner))

    def factor(self, weight: Weight, *, dual: bool) -> float:
        """Return the factor on a weight of an MLP, or on its gradient if `dual`.

        With all experts of a copy chosen in equal parts, each weighs 1 / parts of the routed output, which is
        1 - shared of the dense one. The last weight makes up for the weight of its expert; a gradient with respect to
        it is multiplied by this weight, and one with respect to the others by the part of the output.
        """
        shared = self.mixture.shared
        if weight.of_experts:
            output, weighs = 1 - self.shared, 1 / self.parts
        elif shared and any(name in weight.name for name in shared.names):
            output, weighs = self.shared, shared.weight
        else:
            return 1.0
        if dual:
            return weighs if weight.writes_stream else output
        return output / weighs if weight.writes_stream else 1.0

    def is_zero(self, weight: Weight, drawn: bool) -> bool:
        """Whether a weight is zero at first: the last one of a silent expert, the gate of a shared one, a bias.

        drawn: whether the source has no such weight.
        """
        bias = drawn and weight.name.endswith("bias")  # which corrects the scores of a router
        gate = drawn and self.shared > 0 and "experts" not in weight.parts[0].pattern
        return bias or gate or (weight.writes_stream and (drawn or self.factor(weight, dual=False) == 0))


def _check_expressible(dense: Architecture, mixture: Mixture) -> None:
    for key in mixture.refused:
        if flag(dense.config, key, False):
            raise RecipeError(
                f"upcycle: this config has {key} = true, and {mixture.model_type} has no biases there. Upcycle a model "
                "without biases."
            )
    if not mixture.windows and "sliding_attention" in dense.layer_lists.get("layer_types", ()):
        raise RecipeError(
            f"upcycle: this config chooses a sliding window layer by layer (layer_types), which {mixture.model_type} "
            "cannot. Upcycle a model without layer_types."
        )


def _config(dense: Architecture, mixture: Mixture, upcycling: Upcycling) -> Config:
    """Return the mixture's config, with every value stated whose default differs between the two families."""
    config = {key: value for key, value in dense.config.items() if key not in (*mixture.refused, "layer_types")}
    units, shared = size(dense.config, "intermediate_size"), mixture.shared
    has_window = dense.model_type == "mistral" or mixture.windows
    config = {**dict.fromkeys(mixture.dense_sizes, units), **config}
    config |= {
        "model_type": mixture.model_type,
        "architectures": [mixture.architecture],
        mixture.experts: upcycling.parts,
        mixture.expert_size: units // upcycling.parts,
        mixture.chosen: 1,
        "num_key_value_heads": dense.axes["heads"].size,
        "head_dim": dense.axes[dense.rotary_axis].size,
        str(dense.eps): number(dense.config, str(dense.eps), dense.eps_default),
        "rope_theta": rope(dense.config, "rope_theta", next((base for *_, base in dense.bases), 10000.0)),
        "sliding_window": dense.config.get("sliding_window", 4096) if has_window else None,
        **({"layer_types": [*dense.layer_lists["layer_types"]]} if mixture.windows else {}),
        **mixture.stated,
        **({shared.size: upcycling.parts if shared.counted else units} if shared and upcycling.shared else {}),
    }
    if dense.tied:  # by default too
        config["tie_word_embeddings"] = True
    if "use_sliding_window" in config:  # no layer has a window, and the mixtures choose other layers for it
        config["use_sliding_window"] = False
    return config
