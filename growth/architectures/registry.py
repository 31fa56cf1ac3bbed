"""Families by model_type: ours, and those of installed packages (entry points of the group `growth.families`).

Packages are asked last: when a model_type is none of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from growth.architectures.config import Config
from growth.errors import ConfigError, GrowthError

if TYPE_CHECKING:
    from growth.architectures.base import Architecture

GROUP = "growth.families"
Family = Callable[[Config], "Architecture"]
FAMILIES: dict[str, Family] = {}  # by model_type


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
    if not isinstance(model_type, str):
        return None
    if model_type not in FAMILIES:
        found = entry_points(group=GROUP, name=model_type)
        if len(found) > 1:
            raise ConfigError(
                f"Several packages register a family {model_type!r}: {', '.join(sorted(map(_stated, found)))}. "
                "Uninstall all but one."
            )
        for entry in found:
            _load(entry)
    return FAMILIES.get(model_type)


def _load(entry: EntryPoint) -> None:
    """Import the module of an entry point, which registers the family of its name."""
    ours = set(FAMILIES)
    try:
        entry.load()
    except Exception as error:  # whatever a module of others may raise
        for name in FAMILIES.keys() - ours:
            del FAMILIES[name]
        raise _broken(entry, error) from error
    if entry.name not in FAMILIES:
        raise ConfigError(
            f"The package {_stated(entry)} has an entry point for a family {entry.name!r}, and its module registers "
            "none of that name. Decorate the function with `family`, or correct the entry point's name."
        )
    FAMILIES[entry.name] = _guarded(FAMILIES[entry.name], entry)


def _guarded(table: Family, entry: EntryPoint) -> Family:
    """Return a family whose unexpected errors name the package that it is of."""

    @wraps(table)
    def guarded(config: Config) -> Architecture:
        try:
            return table(config)
        except GrowthError:
            raise
        except Exception as error:  # whatever a function of others may raise
            raise _broken(entry, error) from error

    return guarded


def _broken(entry: EntryPoint, error: Exception) -> ConfigError:
    return ConfigError(
        f"The family {entry.name!r} of the package {_stated(entry)} fails with {type(error).__name__}: {error}. "
        "Correct the package, or uninstall it."
    )


def _stated(entry: EntryPoint) -> str:
    """Return a package and where its family is defined."""
    package = entry.dist.name if entry.dist else "without a name"
    return f"{package} ({entry.value})"
