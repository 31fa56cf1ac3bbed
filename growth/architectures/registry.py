"""Families by model_type: ours, and those of installed packages (entry points of the group `growth.families`).

Packages are asked last: when a model_type is none of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from growth.architectures.config import Config
from growth.errors import ConfigError, GrowthError
from growth.extensions import Extensions

if TYPE_CHECKING:
    from growth.architectures.base import Architecture

GROUP = "growth.families"
Family = Callable[[Config], "Architecture"]
FAMILIES: dict[str, Family] = {}  # by model_type
EXTENSIONS = Extensions(
    GROUP, "family", "family", FAMILIES, lambda table, guard: guard(table), ConfigError, GrowthError
)


def register(model_type: str, table: Family) -> None:
    """Register a function from a config to its table as the family of a model_type.

    Raises:
        ConfigError: the model_type has a family already.
    """
    if model_type in FAMILIES:
        raise ConfigError(f"model_type {model_type!r} has a family already. Remove the other, or rename this one.")
    FAMILIES[model_type] = table


def find_family(model_type: object) -> Family | None:
    """Return the family of a model_type, None if there is none. That of an installed package is loaded first.

    Raises:
        ConfigError: the package's family cannot be loaded, or several packages have one.
    """
    return EXTENSIONS.find(model_type) if isinstance(model_type, str) else None
