"""Published models: what their config.json says of sizes and of the function, and their numbers of parameters.

Each file in tests/cases/published/ states one series of models, the smallest first. `parameters` is the number of
parameters of the stock class, as published; `stored`, the number in the published files, is larger where these hold a
copy of the embedding as a head, or `buffers`, such as biases that correct a router's scores. A series with `paired: false` is compared by its numbers of parameters alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from growth.architectures import architecture
from growth.checkpoints.formats.safetensors import layout
from tests.support.paths import ROOT

FOLDER = ROOT / "tests" / "cases" / "published"
LARGER = 2  # each model is paired with that many larger ones of its series


@dataclass(frozen=True)
class Published:
    """A published model.

    name: on the Hugging Face hub.
    parameters: of the stock class.
    stored: in the published files.
    buffers: numbers in the files that the stock class has no parameters of, but buffers.
    """

    name: str
    config: Mapping[str, Any]
    parameters: int
    stored: int
    buffers: int = 0


@dataclass(frozen=True)
class Series:
    """Models of one series, the smallest first, and the pairs of names to grow from and to."""

    title: str
    models: tuple[Published, ...]
    pairs: tuple[tuple[str, str], ...]


@cache
def all_series() -> tuple[Series, ...]:
    """Return all series, by title."""
    found = [_series(yaml.safe_load(path.read_text())) for path in FOLDER.glob("*.yaml")]
    return tuple(sorted(found, key=lambda series: series.title.lower()))


@cache
def published() -> dict[str, Published]:
    """Return all models by name."""
    return {model.name: model for series in all_series() for model in series.models}


def stored_shapes(model: Published) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of the published files, of a tied head too if they hold one."""
    built = architecture(model.config)
    return dict((built.with_head(tied=False) if model.stored > model.parameters + model.buffers else built).shapes())


def write_headers(model: Published, folder: Path) -> Path:
    """Write a checkpoint with the config and the headers of the published files; its values take no space on disk."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model.config))
    path = folder / "model.safetensors"
    header, places = layout(path, [(name, "BF16", shape) for name, shape in stored_shapes(model).items()])
    path.write_bytes(header)
    os.truncate(path, len(header) + sum(place.bytes for place in places))
    return folder


def _series(stated: Mapping[str, Any]) -> Series:
    models = tuple(_model(name, {**stated["common"], **facts}) for name, facts in stated["models"].items())
    names = [model.name for model in models]
    pairs = [(name, larger) for place, name in enumerate(names) for larger in names[place + 1 : place + 1 + LARGER]]
    pairs = pairs if stated.get("paired", True) else []
    return Series(stated["title"], models, (*pairs, *(tuple(pair) for pair in stated.get("also", ()))))


def _model(name: str, facts: Mapping[str, Any]) -> Published:
    config = {key: value for key, value in facts.items() if key not in ("parameters", "buffers", "stored")}
    parameters, buffers = facts["parameters"], facts.get("buffers", 0)
    return Published(name, config, parameters, facts.get("stored", parameters + buffers), buffers)
