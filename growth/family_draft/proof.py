"""The proof of a table: small random stock models grow along every axis, and compute the same in float64 or not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from growth.architectures import FAMILIES, Architecture, architecture
from growth.errors import ConfigError, GrowthError
from growth.family_draft.dataflow import calls_of
from growth.family_draft.outcome import Outcome
from growth.family_draft.stock import StockClass
from growth.operators import Operator, chain, deepen, widen
from growth.output.in_memory import grow_model, plan_in_memory
from growth.planning.plan import Plan

EXACT = 1e-12  # relative error of the logits
WIDER = {"residual": 80, "ffn": 60, "vocab": 70, "positions": 60}
INITS: tuple[Literal["pad", "tile"], ...] = ("pad", "tile")
PAIRS = "rotary pairs"  # which channels they are shows where old pairs take every second place of wider heads


@contextmanager
def registered(model_type: str, text: str) -> Iterator[None]:
    """Register the family of a file's text, in place of one that is there.

    Raises:
        ConfigError: the text does not register it.
    """
    before = dict(FAMILIES)
    FAMILIES.pop(model_type, None)
    try:
        try:
            _import_file(text)
        except Exception as error:
            raise ConfigError(f"The table of {model_type} fails with {type(error).__name__}: {error}.") from error
        if model_type not in FAMILIES:
            raise ConfigError(f"The file registers no family {model_type!r}. Decorate its function with `family`.")
        yield
    finally:
        FAMILIES.clear()
        FAMILIES.update(before)


def _import_file(text: str) -> None:
    """Import the text of a Python file as a module of its own."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "family.py")
        path.write_text(text)
        spec = spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(module_from_spec(spec))


def tensor_differences(stock: StockClass) -> list[str]:
    """The tensors that the registered table and the files of the class do not share, with both shapes."""
    ours, theirs = architecture(stock.config().to_dict()).shapes(), stock.shapes()
    differ = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
    return [f"{name}: {_shape(ours.get(name))} in the table, {_shape(theirs.get(name))} in files" for name in differ]


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else " × ".join(map(str, shape)) or "one number"


def random_model(stock: StockClass) -> PreTrainedModel:
    """A small model with every parameter random, norm gains and biases too."""
    model = stock.model("cpu").double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.ndim > 1 else 0.5, generator=generator)
    return model


def prove(stock: StockClass, axes: Sequence[str] = ()) -> list[Outcome]:
    """Grow a model of the registered family along some axes, all by default; call it with float64 throughout."""
    model = random_model(stock)
    table = architecture(model.config.to_dict())
    pairs = [PAIRS] if table.head_channels.rotary_pairs and not table.head_channels.refusal else []
    return [_outcome(model, table, axis) for axis in axes or (*table.axes, *pairs, "depth")]


def _outcome(model: PreTrainedModel, table: Architecture, axis: str) -> Outcome:
    """What comes of growing an axis alone, or else together with the stream."""
    tried: list[Outcome] = []
    for along, operators in _growths(axis, table):
        found = _tried(model, axis, operators)
        if found.verdict == "exact" and along:
            return replace(found, why=f"together with {along}; alone: {tried[0].why}")
        if found.verdict in ("exact", "broken"):
            return found
        tried.append(found)
    return tried[-1]


def _growths(axis: str, table: Architecture) -> Iterator[tuple[str, list[Operator]]]:
    """The axis that grows along with another one, in proportion, where a config needs both; and the operators."""
    old = {name: of.size for name, of in table.axes.items()}
    all_heads, wide = old["heads"] * old["queries"], old["residual"]
    if axis == "depth":
        yield "", [deepen(to=table.depth + 2)]
        return
    if axis == PAIRS:
        spread = widen("head_dim", factor=2, rope_pairs="spread")
        yield "", [spread]
        yield "residual", [chain(widen("residual", factor=2), spread)]
        return
    new = {name: WIDER.get(name, size * 3 // 2) for name, size in old.items()}
    new |= {"heads": (old["heads"] + 1) * old["queries"], "queries": old["queries"] + 1}
    new |= {"head_dim": old["head_dim"] + 4, "experts": 2 * old.get("experts", 0)}
    yield "", _widened({axis: new[axis]})
    if axis == "residual":
        yield "heads", _widened({"residual": wide * new["heads"] // all_heads, "heads": new["heads"]})
    if axis in ("heads", "queries"):
        heads = new["heads"] if axis == "heads" else old["heads"] * new["queries"]
        yield "residual", _widened({axis: new[axis], "residual": wide * heads // all_heads})
    if axis == "head_dim":
        yield "residual", _widened({axis: new[axis], "residual": all_heads * new[axis]})


def _widened(steps: Mapping[str, int]) -> list[Operator]:
    return [chain(*(widen(name, to=to, init=init) for name, to in steps.items())) for init in INITS]


def _tried(model: PreTrainedModel, axis: str, operators: Sequence[Operator]) -> Outcome:
    """What comes of operators: broken if one is, exact if one is and the others are refused."""
    refused, exact = None, False
    for operator in operators:
        try:
            plan = plan_in_memory(operator, model)
            larger = grow_model(model, plan)
            error = relative_error(model, larger)
        except GrowthError as found:
            refused = refused or Outcome(axis, "refused", str(found))
            continue
        except Exception as found:  # classes raise many kinds of error
            text = " ".join(str(found).split())[:200]
            refused = refused or Outcome(axis, "invalid", f"transformers fails with {type(found).__name__}: {text}")
            continue
        if not error <= EXACT:
            where = first_difference(model, larger, plan)
            return Outcome(axis, "broken", f"the relative error of the logits is {error:.0e}; it begins {where}")
        exact = True
    return Outcome(axis, "exact") if exact or refused is None else refused


def relative_error(model: PreTrainedModel, larger: PreTrainedModel) -> float:
    """The relative error of the logits of the old vocabulary."""
    with torch.no_grad():
        expected, found = (each(_tokens(model)).logits for each in (model, larger))
    found = found[..., : expected.shape[-1]]
    return float((found - expected).norm() / expected.norm())


def _tokens(model: PreTrainedModel) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, model.config.get_text_config().vocab_size, (2, 12), generator=generator)


def first_difference(model: PreTrainedModel, larger: PreTrainedModel, plan: Plan) -> str:
    """The first tensor whose module no longer writes the old units in proportion to what it wrote."""
    maps = {tensor.target: tensor for tensor in plan.tensors}
    pairs = zip(calls_of(model, _tokens(model)), calls_of(larger, _tokens(model)), strict=False)
    for old, new in pairs:
        tensor = maps.get(f"{new.name}.weight")
        if tensor is None:
            continue
        reads = set(tensor.weight.parts[0].reads)
        written = [
            one
            for one, spaces in zip(tensor.dimensions, tensor.weight.parts[0].dimensions, strict=True)
            if old.kind == "embedding" or not set(spaces) & reads
        ]
        units = next((one for one in reversed(written) if len(one) == new.written.shape[-1]), None)
        if units is None or old.written.shape[-1] != units.size:
            continue
        kept = units.source >= 0
        scale = torch.ones(int(kept.sum())) if old.kind == "norm" else torch.tensor(units.scale[kept])
        expected = old.written[..., torch.tensor(units.source[kept])] * scale
        found = new.written[..., torch.tensor(kept)]
        if expected.shape != found.shape:
            continue
        factor = float((expected * found).sum() / (expected * expected).sum())
        if not math.isclose(float((found - factor * expected).norm() / found.norm()), 0, abs_tol=1e-9):
            return f"in what '{tensor.target}' writes"
    return "in the logits"
