"""From a model type to the file of its family, with what its proof found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from growth.architectures.base import RotaryPairs
from growth.family_draft.blocks import Choice
from growth.family_draft.omissions import omissions
from growth.family_draft.outcome import Outcome
from growth.family_draft.proof import PAIRS, prove, registered, tensor_differences
from growth.family_draft.stock import StockClass
from growth.family_draft.table import Draft
from growth.family_draft.variants import variants
from growth.runtime.terminal import simple_table

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 12  # tensors that differ
DECIDED = ("head_dim", PAIRS, "heads")  # the axes that tell choices apart


@dataclass(frozen=True)
class ProvedTable:
    """A family file and what its proof found.

    text: of the file.
    differences: tensors that the table and the files of the class do not share.
    """

    text: str
    differences: Sequence[str]
    outcomes: Sequence[Outcome]

    @property
    def exact(self) -> bool:
        """Whether the table reproduces every tensor, and no axis breaks the function."""
        return not self.differences and all(outcome.stands for outcome in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        """The findings as JSON has them."""
        return {
            "exact": self.exact,
            "differences": [*self.differences],
            "outcomes": [asdict(one) for one in self.outcomes],
        }

    def table(self) -> Table:
        """The findings for people: the tensors that differ, or what came of each axis."""
        if self.differences:
            shown = [line.partition(": ")[::2] for line in self.differences[:SHOWN]]
            return simple_table(f"{len(self.differences)} tensors differ", ("tensor", "shapes"), shown)
        return simple_table(
            "", ("axis or config", "verdict", "why"), ((one.axis, one.verdict, one.why) for one in self.outcomes)
        )


def draft(model_type: str, settings: dict[str, Any], module: str = "") -> ProvedTable:
    """Draft the table of a model type, and prove it; call it with float64 throughout.

    settings: values of config keys that the small models need, or that a variant of the family has.
    module: that registers the classes, and is imported already.

    Raises:
        ConfigError: transformers has no such causal model, cannot build a small one, or it is not a decoder of
            attention and MLP.
    """
    stock = StockClass.of(model_type, **settings)
    found = Draft.of(stock, module)
    _add_others(found)
    return check(stock, found.text(_choose(found)))


def check_file(model_type: str, settings: dict[str, Any], text: str) -> ProvedTable:
    """Prove the table in the text of a family file, as `draft` does."""
    return check(StockClass.of(model_type, **settings), text)


def check(stock: StockClass, text: str) -> ProvedTable:
    """Prove the table in the text of a family file."""
    with registered(stock.model_type, text):
        differences = tensor_differences(stock)
        if differences:
            return ProvedTable(text, differences, [])
        outcomes = [*prove(stock), *omissions(stock)]
        known = {outcome.axis for outcome in outcomes if outcome.verdict != "exact"}
        return ProvedTable(text, differences, [*outcomes, *variants(stock, known)])


def _add_others(found: Draft) -> None:
    """Add the tensors that the blocks do not make to a draft."""
    with registered(found.stock.model_type, found.text(Choice())):
        missing = [line.partition(":")[0] for line in tensor_differences(found.stock) if "none in the table" in line]
    for name in missing:
        found.add(name)


def _choose(found: Draft) -> Choice:
    """The choice that keeps most of the axes of attention exact, the first of such."""
    best, most = Choice(), -1
    for choice in _choices(found):
        with registered(found.stock.model_type, found.text(choice)):
            if tensor_differences(found.stock):
                continue
            standing = sum(outcome.stands for outcome in prove(found.stock, DECIDED))
        if standing > most:
            best, most = choice, standing
        if standing == len(DECIDED):
            break
    return best


def _choices(found: Draft) -> Iterator[Choice]:
    fused = len(found.blocks.layer.inputs) == 1
    pairings: tuple[RotaryPairs, ...] = ("halves", "neighbours")
    for within, scaled, pairs in product((False, True)[: 1 + fused], (True, False), pairings):
        yield Choice(pairs, within, scaled)
