"""Sizes of axes as recipes count them, and the new sizes that `to`, `factor` and `multiple` ask for."""

import math
import operator
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, cast

from growth.architectures.config import DEPTHS, LARGEST_AXIS, LARGEST_DEPTH, SYNONYMS
from growth.errors import RecipeError, did_you_mean
from growth.operators.base import Growth
from growth.operators.proposals import SIZE_KEYS, Candidates, Proposal, Unfit, around

# what people call an axis, where it is no config key
COLLOQUIAL = {
    "width": "residual", "hidden": "residual", "embed_dim": "residual", "mlp": "ffn",
    "d_ff": "ffn", "ff": "ffn", "head_size": "head_dim",
    "d_head": "head_dim", "query_heads": "heads", "vocabulary": "vocab", "tokens": "vocab", "context": "positions",
}  # fmt: skip


def one_size(step: Any) -> Any:
    """Check that a recipe's step states one size, or lists its layers.

    Raises:
        ValueError: none, or several.
    """
    given = [getattr(step, key, None) for key in SIZE_KEYS]
    if given.count(None) != 2 and not isinstance(getattr(step, "order", None), list):
        *known, last = [f"'{key}' ({meaning})" for key, meaning in SIZE_KEYS.items() if hasattr(step, key)]
        raise ValueError(f"give exactly one of {', '.join(known)} and {last}")
    return step


def counted_units(growth: Growth, axis: str) -> tuple[str, int]:
    """Return what a recipe counts along an axis, in words, and how many there are: ("query heads", 32) for `heads`.

    The axis itself counts KV heads (`growth.sizes["heads"]`), so its name and its size do not belong in a message.
    """
    units = growth.sizes[axis] * (growth.sizes["queries"] if axis == "heads" else 1)
    return {"heads": "query heads", "queries": "query heads per KV head"}.get(axis, axis), units


def other_sizes(growth: Growth, axis: str, wanted: float, key: str = "to") -> tuple[Candidates, ...]:
    """Return sizes to try in place of one, as recipes count them: those below and those above, nearest first.

    key: the argument that states the size.
    """
    traits, (_, old) = growth.axes[axis], counted_units(growth, axis)
    init = {"init": "tile"} if traits.equal_copies and key == "to" else {}
    step = old if traits.equal_copies else old // growth.sizes[axis]
    sizes = around(old, wanted, math.lcm(step, 2) if traits.rotary_pairs and not traits.partly_rotary else step)
    return as_candidates(sizes, key, **init)


def as_candidates(sizes: Iterable[range], key: str = "to", **more: str) -> tuple[Candidates, ...]:
    """Return ranges of sizes as candidates that state them, together with other arguments."""
    return tuple([Proposal({**more, key: size}) for size in side] for side in sizes)


def new_units(
    growth: Growth, axis: str, to: int | None, factor: float | None, multiple: int | None = None, *, key: str = "to"
) -> int:
    """Return the new size of an axis in its own units: KV heads, where the recipe counts query heads.

    key: the argument that states the size, in what an error proposes.

    Raises:
        RecipeError: an unknown axis, a smaller size, or a number of query heads that KV heads do not divide.
    """
    if axis == "rotary":
        raise RecipeError(
            "Cannot widen rotary channels: their number sets the frequencies of all of them, so the function would "
            "change. Widen heads, or head_dim (its new channels are not rotary, or lie between the old ones with "
            "rope_pairs: spread)."
        )
    if axis not in growth.axes:
        raise _unknown_axis(growth, axis)
    traits, (label, old) = growth.axes[axis], counted_units(growth, axis)
    new = grown_size(label, old, to, factor, multiple, others=lambda wanted: other_sizes(growth, axis, wanted, key))
    queries = growth.sizes["queries"] if axis == "heads" else 1
    if traits.refusal and new != old and new > traits.max_size * queries:
        raise RecipeError(f"Cannot widen {label} from {old} to {new}: {traits.refusal}")
    if new % queries:
        raise Unfit(
            f"Cannot widen {label} from {old} to {new}: each KV head has {queries} query heads, and {new} is not a "
            f"multiple of {queries}.",
            *other_sizes(growth, axis, new, key),
        )
    return new // queries


def _unknown_axis(growth: Growth, name: str) -> RecipeError:
    """The error of an axis that a family does not have, with the one that is meant: a config's key names its axis."""
    axes = growth.source.axes
    same = next((keys for keys in SYNONYMS if name in keys), (name,))
    sized = [growth.source.sizes[key] for key in same if key in growth.source.sizes]
    meant = sized[0].split()[0] if sized else COLLOQUIAL.get(name, "")
    hint = did_you_mean(name, axes)
    if name in DEPTHS or name in ("layers", "depth"):
        hint = " Layers are added by deepen."
    elif name == "kv_heads" or name in next(keys for keys in SYNONYMS if "num_key_value_heads" in keys):
        hint = (
            " 'heads' counts query heads, and KV heads grow along; regroup makes more KV heads of as many query heads."
        )
    elif meant in axes:
        hint = f" Did you mean '{meant}'?"
    return RecipeError(f"Cannot widen '{name}': the axes of this family are {', '.join(axes)}.{hint}")


def check_axes(growth: Growth, change: str, *axes: str) -> None:
    """Check that a family has the axes that a change is about.

    Raises:
        RecipeError: it lacks one.
    """
    if not growth.axes.keys() >= set(axes):
        raise RecipeError(f"Cannot {change}: the axes of this family are {', '.join(growth.axes)}.")


def grown_size(
    what: str,
    old: int,
    to: int | None,
    factor: float | None,
    multiple: int | None = None,
    *,
    others: Callable[[float], tuple[Candidates, ...]] | None = None,
) -> int:
    """Return the new size that `to`, `factor` or `multiple` (the next multiple of it) asks for.

    what: the name of the size in errors.
    others: returns sizes to try in place of one that is not a whole number; by default any.

    Raises:
        RecipeError: none or several given, a factor that does not give a whole number, or a smaller size.
        TypeError: `to` or `multiple` is no whole number.
    """
    if [to, factor, multiple].count(None) != 2:
        raise RecipeError(f"Growing {what} needs exactly one of 'to' (a size), 'factor' (a ratio) and 'multiple'.")
    if factor is not None:
        to = _by_factor(what, old, factor, others or (lambda wanted: as_candidates(around(old, wanted))))
    if multiple is not None:
        if operator.index(multiple) < 1:
            raise RecipeError(f"Cannot grow {what} to a multiple of {multiple}: use a whole number from 1 on.")
        to = -(-old // multiple) * multiple
    to = operator.index(cast("int", to))
    largest = LARGEST_DEPTH if what == "layers" else LARGEST_AXIS
    if to > largest:
        raise RecipeError(f"Cannot grow {what} from {old} to {to:,}: at most {largest:,} are supported.")
    if to < old:
        raise RecipeError(
            f"Cannot shrink {what} from {old} to {to}: growth only makes models larger. Use {old} or more."
        )
    return to


def _by_factor(what: str, old: int, factor: float, others: Callable[[float], tuple[Candidates, ...]]) -> int:
    if not 0 < factor < 2**31:
        raise RecipeError(f"Cannot grow {what} by a factor of {factor}: use a ratio of 1 or more.")
    near = Fraction(factor).limit_denominator(1000)
    exact = old * (Fraction(factor) if near == 1 else near)
    if exact.denominator != 1:
        raise Unfit(
            f"Cannot grow {what} from {old} by a factor of {factor:.9g}: {float(exact):.9g} is not a whole number.",
            *others(float(exact)),
        )
    return int(exact)
