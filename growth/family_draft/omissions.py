"""What a table makes of a config that leaves keys out, against the values that the stock class takes for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from growth.architectures import Architecture, architecture
from growth.architectures.config import NEUTRAL
from growth.errors import ConfigError
from growth.family_draft.outcome import Outcome
from growth.family_draft.stock import WIDE, StockClass

LONG = 80  # characters of a value that is not shown
COMPARED = ("spaces", "norms", "rotary")  # besides axes, weights and lists of layers


def omissions(stock: StockClass) -> list[Outcome]:
    """Leave out each key of a config, and all but the sizes together, and compare the registered table with the class.

    The table of a config without a key is that of the config in which the class has filled the key in, and so is the
    config that it gives to a larger model.
    """
    stated = _wide(stock)
    full = stock.filled(stated)
    without = {key: {other: full[other] for other in full if other != key} for key in full if key not in NEUTRAL}
    rows = _grouped({key: found for key, config in without.items() if (found := _compared(stock, config, key))})
    if all(row.stands for row in rows) and (together := _compared(stock, stated, "")):
        rows.append(replace(together, axis=f"all but {', '.join(stated)} left out"))
    return rows if any(not row.stands for row in rows) else [*rows, Outcome("any other left out", "exact")]


def _wide(stock: StockClass) -> dict[str, Any]:
    """What a config of large sizes states, or a small one if the settings allow no other."""
    for sizes in (WIDE, {**WIDE, "depth": stock.sizes["depth"]}):
        with suppress(Exception):  # classes raise many kinds of error
            stated = stock.stated(**sizes)
            architecture(stock.filled(stated))
            return stated
    return stock.stated()


def _compared(stock: StockClass, config: Mapping[str, Any], key: str) -> Outcome | None:
    """What comes of a config that leaves a key out, or several; None if it is exact, or the class has no such model."""
    try:
        filled = stock.filled(config)
        expected = architecture(filled)
    except Exception:  # classes raise many kinds of error
        return None
    try:
        found = architecture({"model_type": stock.model_type, **config})
    except ConfigError as error:
        return Outcome(key, "refused", str(error))
    differs = next(_differences(stock, found, expected, key), "")
    taken = repr(filled.get(key))
    why = f"the class takes {taken}; the table {differs}" if key and len(taken) < LONG else f"the table {differs}"
    return Outcome(key, "broken", why) if differs else None


def _grouped(found: Mapping[str, Outcome]) -> list[Outcome]:
    """Outcomes by key as rows: keys that are refused in the same words have one."""
    alike: dict[str, list[str]] = {}
    for key, outcome in found.items():
        alike.setdefault(outcome.why.replace(key, "KEY") if outcome.stands else key, []).append(key)
    return [replace(found[keys[0]], axis=f"{', '.join(keys)} left out") for keys in alike.values()]


def _differences(stock: StockClass, found: Architecture, expected: Architecture, key: str) -> Iterator[str]:
    """In what a table differs from the one that is expected, in words.

    Where the class derives values from sizes, a table may do so too or state them, so larger models are not compared.
    """
    derived = _is_derived(stock, key)
    kinds: list[tuple[str, list[Mapping[str, Any]]]] = [
        ("", [{name: axis.size for name, axis in table.axes.items()} for table in (found, expected)]),
        ("another axis ", [table.axes for table in (found, expected)]),
        ("another weight ", [{weight.name: weight for weight in table.weights} for table in (found, expected)]),
        ("", [table.layer_lists for table in (found, expected)]),
        ("other ", [{name: getattr(table, name) for name in COMPARED[derived:]} for table in (found, expected)]),
        ("for a larger model ", [{} if derived else _grown(stock, table) for table in (found, expected)]),
    ]
    for what, both in kinds:
        if all(both):
            ours, theirs = both
            yield from (
                f"has {what}{name}{_values(ours.get(name), theirs.get(name))}"
                for name in {**theirs, **ours}
                if ours.get(name) != theirs.get(name)
            )


def _values(ours: Any, theirs: Any) -> str:
    """Two values for a message, if they are those of a config."""
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        layer = next(layer for layer, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)
        return f"[{layer}]{_values(ours[layer], theirs[layer])}"
    plain = isinstance(theirs, int | float | str | Mapping | list | None)
    return f" = {ours!r} in place of {theirs!r}" if plain else ""


def _is_derived(stock: StockClass, key: str) -> bool:
    """Whether the class derives a key from the sizes; true of several keys."""
    if not key:
        return True
    return bool(stock.taken_for(key, {}) != stock.taken_for(key, WIDE))


def _grown(stock: StockClass, table: Architecture) -> dict[str, Any]:
    """The content of the config of a larger model, as the class reads it; none if it has no such model."""
    sizes = {name: axis.size * (1 if axis.refusal else 2) for name, axis in table.axes.items()}
    with suppress(Exception):  # classes raise many kinds of error
        return stock.filled(table.grown_config(sizes, range(table.depth), 4.0 if table.eps else 1.0))
    return {}
