"""The families that can grow, one file each."""

from growth.architecture import Architecture, Config, Family
from growth.architectures.gpt2 import gpt2
from growth.architectures.gpt_neox import gpt_neox
from growth.architectures.llama import llama, ministral, mistral, qwen2, qwen3
from growth.architectures.opt import opt
from growth.architectures.phi import phi
from growth.errors import ConfigError

FAMILIES: dict[str, Family] = {
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "llama": llama,
    "ministral": ministral,
    "mistral": mistral,
    "opt": opt,
    "phi": phi,
    "qwen2": qwen2,
    "qwen3": qwen3,
}


def architecture(config: Config) -> Architecture:
    """The architecture that a config.json describes.

    Raises:
        ConfigError: an unknown family, a missing key, an impossible size.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise ConfigError(
            f"config.json has model_type {model_type!r}. Families that can grow: {', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[model_type](config)
