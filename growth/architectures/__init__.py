"""The families that can grow, one file each."""

from growth.architectures.base import Architecture, Family
from growth.architectures.config import Config
from growth.architectures.families.cohere import cohere, cohere2
from growth.architectures.families.falcon import falcon
from growth.architectures.families.gemma import gemma, gemma2, gemma3_text
from growth.architectures.families.glm import glm, glm4
from growth.architectures.families.gpt2 import gpt2
from growth.architectures.families.gpt_neox import gpt_neox
from growth.architectures.families.gptj import gptj
from growth.architectures.families.llama import granite, llama, ministral, mistral, qwen2, qwen3
from growth.architectures.families.moe import mixtral, olmoe, qwen2_moe, qwen3_moe
from growth.architectures.families.olmo import olmo, olmo2, olmo3
from growth.architectures.families.opt import opt
from growth.architectures.families.phi import phi
from growth.architectures.families.phi3 import phi3
from growth.architectures.families.smollm3 import smollm3
from growth.architectures.families.stablelm import stablelm
from growth.architectures.families.starcoder2 import starcoder2
from growth.errors import ConfigError

FAMILIES: dict[str, Family] = {
    "cohere": cohere,
    "cohere2": cohere2,
    "falcon": falcon,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma3_text,
    "glm": glm,
    "glm4": glm4,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "gptj": gptj,
    "granite": granite,
    "llama": llama,
    "ministral": ministral,
    "mistral": mistral,
    "mixtral": mixtral,
    "olmo": olmo,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "olmoe": olmoe,
    "opt": opt,
    "phi": phi,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen2_moe": qwen2_moe,
    "qwen3": qwen3,
    "qwen3_moe": qwen3_moe,
    "smollm3": smollm3,
    "stablelm": stablelm,
    "starcoder2": starcoder2,
}


def architecture(config: Config) -> Architecture:
    """The architecture that a config.json describes.

    Raises:
        ConfigError: an unknown family, a missing key, an impossible size.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(
            f"config.json has model_type {model_type!r}. Families that can grow: {', '.join(sorted(FAMILIES))}."
        )
    built = FAMILIES[model_type](config)
    built.refuse_enormous()
    return built
