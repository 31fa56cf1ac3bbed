"""Model families as data. Every module of `families/` registers its own."""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from growth.architectures import families
from growth.architectures.base import Architecture
from growth.architectures.config import Config
from growth.architectures.registry import FAMILIES, find_family
from growth.architectures.spelling import TEXT, current_keys, unknown_family
from growth.architectures.wrapper import Wrapper
from growth.errors import ConfigError

__all__ = ["FAMILIES", "Architecture", "architecture", "find_family"]

TEXT_MODELS = (TEXT, "decoder", "generator")  # keys under which transformers looks for a text model's config

for module in iter_modules(families.__path__, f"{families.__name__}."):
    import_module(module.name)


def architecture(config: Config) -> Architecture:
    """Return the architecture that a config.json describes.

    Raises:
        ConfigError: an unknown family, a missing key, an impossible size, or a config within the config.
    """
    model_type = config.get("model_type")
    table = find_family(model_type)
    if table is None:
        raise unknown_family(config, FAMILIES)
    nested = next((key for key in TEXT_MODELS if isinstance(config.get(key), Mapping)), None)
    if nested is not None and not isinstance(table, Wrapper):
        raise ConfigError(
            f"config.json has model_type {model_type!r} and a config of another model in it, {nested}, which "
            "transformers would read instead. Save the text model on its own, with its own config.json."
        )
    built = table(current_keys(config))
    built.refuse_enormous()
    return built
