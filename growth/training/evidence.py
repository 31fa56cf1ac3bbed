"""Evidence: the findings of evidence.yaml, the one table that `advise` and `growth schedule` draw on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from ruamel.yaml import YAML

Range = tuple[float, float]  # least and most
ANY = "any"  # of `Evidence.grows`: whatever grows


@dataclass(frozen=True)
class Publication:
    """A publication, and how much of it was read."""

    name: str
    where: str
    read: str


@dataclass(frozen=True)
class Evidence:
    """One finding on a topic, and its source.

    grows: what grew: width, depth, experts or any of them; empty if the finding is not about what a growth saves.
    seen: the ranges in which it was seen: of parameters, layers, tokens_per_parameter; what is left out is unknown.
    saving: FLOPs of the better of two, the target from scratch and the source alone, over FLOPs with growth, at equal
        loss; by tokens per parameter.
    interval: what the ends of `saving` are, in words, where they are those of intervals.
    overstated: whether the finding itself says that its saving is too large; no verdict draws on it.
    """

    topic: str
    says: str
    source: Publication
    grows: str = ""
    seen: Mapping[str, Range] = field(default_factory=dict)
    saving: Mapping[float, Range] = field(default_factory=dict)
    interval: str = ""
    overstated: bool = False

    def contradicted(self, yours: Mapping[str, float]) -> list[str]:
        """What of a plan lies outside the range in which the finding was seen."""
        return [key for key, (least, most) in self.seen.items() if key in yours and not least <= yours[key] <= most]

    @property
    def cited(self) -> RenderableType:
        """The source as a cell of a table."""
        return Group(self.source.name, Text(f"{self.source.where}; read: {self.source.read}", "dim"))


def findings(values: Mapping[str, Any], grows: Collection[str] = ()) -> Iterator[Evidence]:
    """Yield the findings, topic by topic.

    values: what stands for the words in braces.
    grows: only findings on the growth of these.
    """
    table = _table()
    sources = {key: Publication(**stated) for key, stated in table["publications"].items()}
    for topic, found in table["findings"].items():
        for finding in found:
            if grows and finding.get("grows") not in grows:
                continue
            ranges = ({key: tuple(ends) for key, ends in finding.get(kind, {}).items()} for kind in ("seen", "saving"))
            says = finding["says"].format(**values)
            rest = {key: finding[key] for key in ("grows", "interval", "overstated") if key in finding}
            seen, saving = ranges
            yield Evidence(topic, says, sources[finding["source"]], seen=seen, saving=saving, **rest)


@cache
def _table() -> Any:
    return YAML(typ="safe").load((files(__package__) / "evidence.yaml").read_text(encoding="utf-8"))
