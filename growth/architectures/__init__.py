"""Model families as data. Every module of `families/` registers its own."""

from importlib import import_module
from pkgutil import iter_modules

from growth.architectures import families
from growth.architectures.base import FAMILIES, Architecture
from growth.architectures.config import Config
from growth.errors import ConfigError

__all__ = ["FAMILIES", "Architecture", "architecture"]

for module in iter_modules(families.__path__, f"{families.__name__}."):
    import_module(module.name)


def architecture(config: Config) -> Architecture:
    """Return the architecture that a config.json describes.

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
