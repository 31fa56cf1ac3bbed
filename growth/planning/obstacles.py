"""Obstacles: what stands between a source and a target config, one line of an error each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from growth.architectures.config import shown
from growth.errors import RecipeError


@dataclass(frozen=True)
class Obstacle:
    """A difference between two configs that no exact recipe removes.

    text: key or axis, both values, reason and remedy.
    keys: config keys, with the target's values, that a lossy recipe states to remove it; empty if none can.
    """

    text: str
    keys: Mapping[str, Any] = field(default_factory=dict)


def obstacle(what: str, ours: Any, theirs: Any, reason: str, *, keys: Mapping[str, Any] | None = None) -> Obstacle:
    """Return the obstacle that a config key or axis has two values.

    reason: why no exact recipe leads from one to the other, and the remedy.
    """
    return Obstacle(f"{what}: {shown(ours)} in the source, {shown(theirs)} in the target. {reason}", keys or {})


def no_recipe(obstacles: Iterable[Obstacle], *, lossy: bool) -> RecipeError:
    """Return the error that names all obstacles, apart from those that a lossy recipe removes.

    lossy: whether the recipe may be lossy, so that those do not stand in the way.
    """
    found = list(dict.fromkeys((each.text, bool(each.keys)) for each in obstacles))
    lasting = [f"  - {text}" for text, removable in found if not removable]
    removable = [f"  - {text}" for text, removable in found if removable]
    lines = ["No recipe leads from the source to the target:", *lasting] if lasting else []
    if removable and not lossy:
        also = "It would also change the function" if lasting else "No exact recipe leads from the source to the target"
        lines += [f"{also}. With --lossy the recipe takes these values from the target:", *removable]
    return RecipeError(*lines)
