"""A family: the table of a model type of your own, here that of a Llama with another name."""

from growth.architectures.base import Architecture, family
from growth.architectures.config import Config
from growth.architectures.decoder import decoder


@family
def example(config: Config) -> Architecture:
    """Return the table of an `example`."""
    return decoder(config)
