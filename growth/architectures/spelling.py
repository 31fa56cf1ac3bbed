"""Older spellings of configs: keys that transformers still reads, and model types that it no longer knows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from growth.architectures.config import Config
from growth.architectures.unsupported import why_not
from growth.errors import ConfigError, did_you_mean

_OF_GPT = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
_OF_QWEN = {"num_experts": "num_local_experts"}
_OF_OLMOE = {"num_local_experts": "num_experts"}
_OF_DEEPSEEK = {"num_local_experts": "n_routed_experts"}
# by model_type, keys and what transformers reads them as: attribute_map of its config classes, and what they take from
# further arguments, such as n_embed of Falcon
RENAMED: Mapping[str, Mapping[str, str]] = {
    "axk1": _OF_DEEPSEEK,
    "deepseek_v2": {"num_experts": "n_routed_experts"},
    "deepseek_v32": {**_OF_DEEPSEEK, "num_experts": "n_routed_experts"},
    "deepseek_v3": {"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    "bloom": {"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    "codegen": _OF_GPT,
    "ctrl": _OF_GPT,
    "dots1": _OF_DEEPSEEK,
    "ernie4_5_moe": {"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    "flex_olmo": _OF_OLMOE,
    "glm4_moe": {"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    "glm4_moe_lite": {"num_local_experts": "n_routed_experts", "head_dim": "qk_rope_head_dim"},
    "glm_moe_dsa": {**_OF_DEEPSEEK, "num_experts": "n_routed_experts"},
    "solar_open": _OF_DEEPSEEK,
    "falcon": {"n_embed": "hidden_size"},
    "gpt2": _OF_GPT,
    "openai-gpt": _OF_GPT,
    "gpt_bigcode": _OF_GPT,
    "gpt_neo": {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
    "gpt_oss": _OF_QWEN,
    "gptj": _OF_GPT,
    "hy_v3": _OF_OLMOE,
    "hunyuan_v1_moe": {"num_experts_per_tok": "moe_topk", "num_local_experts": "num_experts"},
    "granitemoehybrid": {"layers_block_type": "layer_types"},
    "internlm3": {"qkv_bias": "attention_bias", "bias": "mlp_bias"},
    "jamba": _OF_OLMOE,
    "jetmoe": {"head_dim": "kv_channels"},
    "kimi_linear": {
        "model_max_length": "max_position_embeddings",
        "moe_renormalize": "norm_topk_prob",
        "num_expert_group": "n_group",
        "num_experts": "num_local_experts",
        "num_experts_per_token": "num_experts_per_tok",
        "num_shared_experts": "n_shared_experts",
    },
    "kolibri1": _OF_QWEN,
    "lfm2": {"tie_embedding": "tie_word_embeddings", "block_ff_dim": "intermediate_size"},
    "lfm2_moe": {"tie_embedding": "tie_word_embeddings"},
    "lfm3": {"rms_norm_eps": "norm_eps"},
    "mellum": {**_OF_QWEN, "num_mtp_layers": "num_nextn_predict_layers"},
    "minimax_m2": _OF_QWEN,
    "minimax_m3_vl_text": _OF_QWEN,
    "mixtral": _OF_QWEN,
    "nemotron_h": {
        "layer_types": "layers_block_type",
        "num_local_experts": "n_routed_experts",
        "mamba_n_groups": "n_groups",
        "mamba_d_conv": "conv_kernel",
        "mamba_conv_bias": "use_conv_bias",
    },
    "mpt": {"hidden_size": "d_model", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
    "olmoe": _OF_OLMOE,
    "qwen3_moe": _OF_QWEN,
    "recurrent_gemma": {"sliding_window": "attention_window_size"},
    "rwkv": {"max_position_embeddings": "context_length"},
    "xglm": {"hidden_size": "d_model", "num_attention_heads": "attention_heads", "num_hidden_layers": "num_layers"},
}
# whose published configs have the other name, which other libraries read: where it stands alone, it stays
AS_PUBLISHED = ("kolibri1", "mellum", "qwen3_moe")

_CURRENT = "The current revision of the model on the hub has"
_FALCON = (
    "'falcon', with the same weights. Set model_type, rename n_layer to num_hidden_layers, n_head to "
    "num_attention_heads and n_head_kv to num_kv_heads, and add new_decoder_architecture: true if it had n_head_kv, "
    "else false. "
    f"{_CURRENT} all this."
)
_PHI = (
    f"'phi', whose weights have other names and shapes. {_CURRENT} them; others are converted by "
    "models/phi/convert_phi_weights_to_hf.py of transformers 4."
)
# model types of code that came with a model, by what transformers has instead
OLDER_TYPES: Mapping[str, str] = {
    "RefinedWeb": _FALCON,
    "RefinedWebModel": _FALCON,
    "mixformer-sequential": _PHI,
    "phi-msft": _PHI,
}
TEXT = "text_config"


def current_keys(config: Config) -> dict[str, Any]:
    """A config with the keys that its family's table reads, where it has others that transformers reads as these.

    Raises:
        ConfigError: it has a key under both names, with two values.

    >>> current_keys({"model_type": "gpt2", "hidden_size": 768})
    {'model_type': 'gpt2', 'n_embd': 768}
    """
    model_type, result = str(config.get("model_type")), dict(config)
    for other, ours in RENAMED.get(model_type, {}).items():
        if other not in result or (model_type in AS_PUBLISHED and ours not in result):
            continue
        value = result.pop(other)
        if result.get(ours) not in (None, value):
            raise ConfigError(
                f"config.json has {other} = {value!r} and {ours} = {result[ours]!r}, and transformers reads both as "
                f"{ours} of a {model_type}. Remove the wrong one."
            )
        result[ours] = value
    return result


def unknown_family(config: Config, known: Collection[str]) -> ConfigError:
    """The error of a config of another family than the known ones, with what transformers has instead, if anything."""
    model_type, text = config.get("model_type"), config.get(TEXT)
    if str(model_type) in OLDER_TYPES:
        return ConfigError(
            f"config.json has model_type {model_type!r}, which transformers now has as {OLDER_TYPES[str(model_type)]}"
        )
    inner = text.get("model_type", f"{model_type}_text") if isinstance(text, Mapping) else None
    if isinstance(inner, str) and inner in known:
        return ConfigError(
            f"config.json has model_type {model_type!r}, which holds a {inner!r} (in {TEXT}) and other parts, and only "
            "the text model can grow. Save it on its own: "
            "whole = AutoModelForImageTextToText.from_pretrained(folder); "
            f"text = AutoModelForCausalLM.from_config(whole.config.{TEXT}, dtype=whole.dtype); "
            "text.model = whole.model.language_model; text.lm_head = whole.lm_head; text.save_pretrained(new_folder)."
        )
    reason = why_not(model_type)
    near = "" if reason else did_you_mean(str(model_type), known)
    return ConfigError(
        f"config.json has model_type {model_type!r}. {reason or 'It cannot grow, because growth has no table of it.'} "
        f"{len(known)} model types can grow: docs/families.md lists them.{near}"
    )
