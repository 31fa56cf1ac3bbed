"""Families with latent attention: DeepSeek-V2 and -V3, GLM-4.7 Flash, A.X K1, Youtu and MiniCPM3."""

from dataclasses import replace

from growth.architectures.base import Architecture, Weight, family, linear, norm
from growth.architectures.blocks import Norms, gated_mlp
from growth.architectures.config import Config, flag, of_layers, size
from growth.architectures.families.llama import check_whole_heads
from growth.architectures.grouped_experts import (
    DENSE,
    chosen_in_groups,
    corrected_router,
    counted,
    leading_dense,
    listed_dense,
    mlp_layer_types,
    shared_and_routed,
    without_prediction_layers,
)
from growth.architectures.latent import LatentAttention, latent_decoder
from growth.errors import ConfigError

DEEPSEEK = {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}


@family
def deepseek_v3(config: Config) -> Architecture:
    """Return the table of a DeepSeek-V3 or Kimi K2: sigmoids as scores, corrected by a bias for the choice alone."""
    mlp, sizes = leading_dense(config, (*corrected_router(), *shared_and_routed(config)), default=3)
    table = latent_decoder(
        config,
        _attention(config),
        mlp,
        sizes=sizes,
        defaults={**DEEPSEEK, "heads": 128, "ffn": 2048, "experts": 256, "shared_experts": 1},
        interleaved=flag(config, "rope_interleave", True),
    )
    table = chosen_in_groups(table, top_k=8, groups=(8, 4))
    return without_prediction_layers(counted(table, default=3), default=1)


@family
def deepseek_v2(config: Config) -> Architecture:
    """Return the table of a DeepSeek-V2: a softmax over all experts, of which the best are chosen, or in groups."""
    method, mlp_bias = config.get("topk_method", "greedy"), flag(config, "mlp_bias", False)
    if method not in ("greedy", "group_limited_greedy"):
        raise ConfigError(
            f"config.json has topk_method = {method!r}, and a stock DeepSeek-V2 has only greedy and "
            "group_limited_greedy. State the one that the model was trained with."
        )
    check_whole_heads(config, "DeepSeek-V2")
    sparse = (*linear("mlp.gate", "experts", "normed"), *shared_and_routed(config, softmax=True, shared_bias=mlp_bias))
    mlp, sizes = leading_dense(config, sparse, default=0, bias=mlp_bias)
    table = latent_decoder(
        config,
        _attention(config),
        mlp,
        sizes=sizes,
        defaults={**DEEPSEEK, "ffn": 1407, "experts": 64, "shared_experts": 2},
    )
    for key in ("kv_lora_rank", "qk_nope_head_dim"):
        if table.axes[key].size % 2:
            raise ConfigError(
                f"config.json has {key} = {table.axes[key].size}: a stock DeepSeek-V2 takes rotary channels as complex "
                "numbers from what follows them in memory, so an even number is needed."
            )
    groups = None if method == "greedy" else (None, None)
    return counted(chosen_in_groups(table, top_k=None, groups=groups, others_weigh=False), default=0)


@family
def glm4_moe_lite(config: Config) -> Architecture:
    """Return the table of a GLM-4.7 Flash: DeepSeek-V3's weights, with a list of the layers' kinds."""
    kinds = mlp_layer_types(config, dense=1)
    sparse = (*corrected_router(), *shared_and_routed(config))
    defaults = {
        **DEEPSEEK,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "heads": 20,
        "ffn": 1536,
        "experts": 64,
        "shared_experts": 1,
    }
    attention = _attention(config, query_rank=768)
    return chosen_in_groups(_listed(config, attention, sparse, kinds, Norms(eps_default=1e-5), defaults), top_k=4)


@family
def youtu(config: Config) -> Architecture:
    """Return the table of a Youtu: DeepSeek-V3's attention in a dense model."""
    config = {key: value for key, value in config.items() if key != "initializer_range" or value is not None}
    table = latent_decoder(
        config,
        _attention(config),
        defaults={**DEEPSEEK, "heads": 16},
        interleaved=flag(config, "rope_interleave", True),
        default_tied=True,
    )
    return replace(table, initial_std=("initializer_range", 2 / (5 * table.axes["residual"].size) ** 0.5))


@family
def minicpm3(config: Config) -> Architecture:
    """Return the table of a MiniCPM3: DeepSeek's attention, and branches and logits scaled by depth and width.

    What a layer adds is divided by the root of the number of layers, and the head's input by hidden_size, each over a
    number of the config, which counts the layers or channels if it is null.
    """
    check_whole_heads(config, "MiniCPM3")
    bias = flag(config, "mlp_bias", False)
    table = latent_decoder(
        config,
        _attention(config, query_rank=768),
        gated_mlp(bias=bias),
        Norms(eps_default=1e-5),
        defaults={
            "q_lora_rank": 768,
            "kv_lora_rank": 256,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32,
            "v_head_dim": size(config, "hidden_size") // size(config, "num_attention_heads"),
            "heads": 40,
        },
        interleaved=False,
        default_tied=True,
        logits_scaled=config.get("dim_model_base", 256) is not None,
    )
    return replace(table, depth_roots={"scale_depth": 1.4} if config.get("scale_depth", 1.4) is not None else {})


def _attention(config: Config, query_rank: int = DEEPSEEK["q_lora_rank"]) -> LatentAttention:
    """Return the attention of a config; a q_lora_rank of null stands for queries of full rank."""
    bias = flag(config, "attention_bias", False)
    return LatentAttention(config.get("q_lora_rank", query_rank) is not None, (bias, bias))


@family
def axk1(config: Config) -> Architecture:
    """Return the table of an A.X K1: DeepSeek-V3's weights, and a norm on the output of all experts together."""
    leading, step = size(config, DENSE, 1, least=0), size(config, "moe_layer_freq", 1)
    depth = size(config, "num_hidden_layers")
    implied = ["dense" if at < leading or at % step else "sparse" for at in range(depth)]
    experts = (*corrected_router(), *shared_and_routed(config))
    sparse = (
        *(replace(one, branch_end=False) for one in experts),
        *norm("post_mlp_layernorm", "residual", "residual", bias=False, branch_end=True),
    )
    defaults = {**DEEPSEEK, "heads": 64, "ffn": 2048, "experts": 192, "shared_experts": 1}
    kinds = of_layers(config, "mlp_layer_types") or implied
    stated = {key: value for key, value in config.items() if key not in (DENSE, "moe_layer_freq")}
    return chosen_in_groups(
        _listed(stated, _attention(config), sparse, kinds, Norms(), defaults), top_k=8, groups=(8, 4)
    )


def _listed(
    config: Config,
    attention: LatentAttention,
    sparse: tuple[Weight, ...],
    kinds: list[str],
    norms: Norms,
    defaults: dict[str, int],
) -> Architecture:
    """Return the table of a mixture that lists the kinds of its MLPs. sparse: the weights of a layer with experts."""
    mlp, sizes = listed_dense(config, sparse, kinds)
    interleaved = flag(config, "rope_interleave", True)
    table = latent_decoder(config, attention, mlp, norms, sizes=sizes, defaults=defaults, interleaved=interleaved)
    return replace(without_prediction_layers(table), layer_lists={"mlp_layer_types": kinds})
