"""The JSON that commands print with `--json`.

`make tables` makes docs/json.md and docs/growth.schema.json of it; tests/cli/test_json.py holds outputs against it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Union, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter

PATH = Path(__file__).parent / "growth.schema.json"


class Output(BaseModel):
    """A JSON object whose keys are all stated here."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


Sizes = dict[str, int]
ByLayer = dict[str, float]
Number = float | None  # null where it is not finite


class Step(Output):
    """An operator of a recipe, and what it promises."""

    operator: str
    """what it does, in words"""
    preserving: bool
    """whether it preserves the function"""
    why: str
    """why it does, or why not"""
    adds_tokens: bool
    """whether all that changes is the probability that added tokens take"""


class Tensor(Output):
    """A tensor of the grown model."""

    name: str
    """its name in the grown checkpoint"""
    source: str
    """the tensor that it copies; empty if its values are drawn"""
    shape: list[int]
    """its grown shape"""
    dtype: str
    """its type, as safetensors names it"""
    what: str
    """how it is made"""


class Plan(Output):
    """`growth plan --json`, and `Plan.to_dict()`."""

    preserving: bool
    """whether the grown model computes the same function"""
    steps: list[Step]
    """the operators, in order"""
    before: Sizes
    """the size of each axis of the source, and the number of `layers`"""
    after: Sizes
    """the same of the grown model"""
    parameters: int
    """the number of parameters of the grown model"""
    active_parameters: int
    """of these, those that a token uses: fewer in a mixture of experts"""
    source_parameters: int
    """the number of parameters of the source"""
    source_active_parameters: int
    """of these, those that a token uses"""
    bytes: int
    """the size of the grown weights"""
    seed: int
    """the random seed"""
    config: dict[str, Any]
    """the grown config.json"""
    dropped: list[str]
    """tensors of the source that the model class computes itself"""
    unchanged: Sizes
    """parts that are copied as they are, such as a vision tower, and their parameters"""
    kept: list[str]
    """config keys that set no size and are carried over"""
    notes: list[str]
    """how the source was read: files and names that were chosen or left out"""
    warnings: list[str]
    """what may go wrong where the model runs as it is stored, such as an overflow in fp16"""
    tensors: list[Tensor]
    """every tensor of the grown model"""


class Grow(Output):
    """`growth grow --json`."""

    output: str
    """the folder"""
    complete: bool
    """whether all of it is there; false where other parts are still missing (`--part`)"""
    written: bool
    """false if the folder was finished before"""
    seconds: float
    """the wall-clock time"""
    verify: str
    """the command that verifies the folder"""
    plan: Plan
    """what `growth plan --json` prints"""


class Layer(Output):
    """The residual stream behind one layer of the grown model."""

    layer: int
    """the layer of the grown model; −1 is the embedding"""
    source: int
    """the layer of the source whose output is expected here"""
    silent: bool
    """whether the layer is expected to be an identity"""
    relative_error: Number
    """the error, relative to the expected stream"""
    floor: Number
    """the error that rounding alone usually causes"""
    limit: Number
    """the largest error that rounding alone can cause"""


class Totals(Output):
    """What was compared in full."""

    problems: dict[str, str]
    """what differs: tensors, files and keys, each with the difference"""
    covered: list[str]
    """what was compared"""
    not_covered: list[str]
    """what was not"""


class Generation(Output):
    """One comparison of generation (`--generation`)."""

    name: str
    """what is compared with what"""
    relative_error: Number
    """the relative error; null where `note` says why there is none"""
    limit: Number
    """the largest that passes"""
    note: str
    """what else there is to say"""


class Amplification(Output):
    """How a model amplifies a small change of its residual stream."""

    layers: list[Number]
    """the amplification after each layer, relative to the change"""
    logits: Number
    """that of the logits"""


class Stability(Output):
    """How differences between copies grow (`--stability`)."""

    step: float
    """the relative size of the deviations"""
    channels: int
    """the number of residual channels that have copies; 0 if nothing was measured"""
    others: list[str]
    """other axes that have copies, which were not measured"""
    grown: Amplification | None
    """the amplification of differences between copies"""
    source: Amplification | None
    """that of random deviations in the source"""
    reason: str
    """why nothing was measured"""


class Verify(Output):
    """`growth verify --json`, and `Report.to_dict()`."""

    status: Literal["PASSED", "LOSSY", "FAILED"]
    """the verdict"""
    passed: bool
    """whether the status is PASSED"""
    unconfirmed: bool
    """whether the status is LOSSY, and only the grown folder says that its recipe is lossy"""
    first_bad_layer: int | None
    """the first layer whose error exceeds its limit; −1 is the embedding"""
    source: str
    """the folder of the source"""
    grown: str
    """the grown folder"""
    dtype: str
    """the type in which the models computed"""
    storage: list[str]
    """the types in which source and grown model are stored"""
    shape: list[int]
    """rows and positions of the tokens that were run"""
    tokens_from: str
    """where the tokens come from"""
    distinct_tokens: int
    """how many different tokens there are"""
    sizes: dict[Literal["before", "after"], Sizes]
    """the sizes of all axes"""
    parameters: list[int]
    """stored parameters of source and grown model"""
    depth: list[int]
    """layers of source and grown model"""
    logits: dict[str, Number]
    """the value of each [metric](trust.md)"""
    floor: Number
    """the `relative_error` of the logits that rounding alone usually causes"""
    limit: Number
    """the largest that rounding alone can cause"""
    layers: list[Layer]
    """the residual stream, layer by layer"""
    recipe_from: Literal["given", "growth.json", ""]
    """where the recipe comes from; empty if none is known"""
    steps: list[Step]
    """the operators of the recipe"""
    preserving: bool | None
    """whether the recipe promises the source's function"""
    keeps_logits: bool | None
    """whether it promises the logits of the source's tokens"""
    totals: Totals
    """what was compared in full"""
    generation: list[Generation]
    """the comparisons of generation; empty without `--generation`"""
    stability: Stability | None
    """null without `--stability`"""
    routed: bool
    """whether rounding made routers of a mixture choose other experts, and every bit is proved to be right"""
    seconds: float
    """the wall-clock time"""


class VerifyWeights(Output):
    """`growth verify --weights --json`, and `WeightsReport.to_dict()`."""

    passed: bool
    """whether every bit is what the recipe makes of the source"""
    source: str
    """the folder of the source"""
    grown: str
    """the grown folder"""
    tensors: int
    """how many tensors were compared"""
    size: int
    """their bytes"""
    files: int
    """how many other files were compared"""
    problems: dict[str, str]
    """what differs, by the name of the tensor or file"""
    warnings: dict[str, str]
    """what differs and may"""
    taken_from_folder: dict[str, str]
    """what only the grown folder states, and the option that gives it"""
    not_covered: list[str]
    """what was not compared"""


class Push(Output):
    """`growth push --json`."""

    repository: str
    """the repository"""
    url: str
    """its address"""
    commit: str
    """the commit"""
    files: list[str]
    """what was uploaded"""


class Inspect(Output):
    """`growth inspect --json`."""

    folder: str
    """the folder"""
    model_type: str | None
    """the `model_type` of its config"""
    sizes: Sizes
    """the sizes of its axes; empty if its family is not known"""
    parameters: int
    """the number of stored values"""
    bytes: int
    """their size"""
    dtypes: dict[str, int]
    """the number of values of each type"""
    files: int
    """the number of files with tensors"""
    problem: str | None
    """why it cannot grow"""
    not_finite: dict[str, int]
    """tensors with NaN or Inf, and how many"""
    notes: list[str]
    """files and names that were chosen or left out"""
    dropped: list[str]
    """tensors that the model class computes itself"""


class Recipe(Output):
    """A recipe: `growth recipe --json`, `import --json`, `recipes NAME --json`; `recipes --json` has one per name."""

    description: str = ""
    """what it is for"""
    source: str = ""
    """the checkpoint that it is meant for"""
    seed: int = 0
    """the random seed"""
    steps: list[dict[str, Any]]
    """the operators: `op`, and its [keys](recipes.md) that are not defaults"""
    expect: dict[str, Any] = {}
    """config values that the result must have"""


class Export(Output):
    """`growth export --json`."""

    config: str
    """the config of mergekit, as YAML"""


class Copies(Output):
    """How far the copies along an axis diverged."""

    axis: str
    """the axis"""
    side: str
    """`written` or `read`: the weights that write the copies, or those that read them"""
    state: str
    """`identical`, `diverging`, `independent` or `cannot tell`"""
    why: str
    """why it cannot tell"""
    apart: float
    """0 where copies move as one, 1 where they move independently"""
    moved: float
    """how far they moved, relative to the weights"""
    grain: float
    """the rounding of the trained checkpoint, relative to the movement"""
    floor: float
    """the largest `apart` that this rounding explains"""
    layers: ByLayer
    """`apart` in each layer"""
    groups: dict[str, int]
    """how many groups of copies moved, by layer"""
    identical_groups: dict[str, int]
    """how many of these groups moved as one"""
    identical: float
    """the fraction of the groups that moved as one"""
    identical_layers: list[str]
    """the layers in which any group moved as one"""


class Distance(Output):
    """How different the weights are that write copies: 0 equal, 1.41 independent."""

    axis: str
    """the axis"""
    before: float
    """the mean before training"""
    after: float
    """after training"""
    layers: ByLayer
    """the same for each layer, after training"""


class Rank(Output):
    """The effective rank of a matrix that writes a grown axis."""

    axis: str
    """the axis"""
    tensor: str
    """the matrix"""
    units: int
    """the axis's units"""
    before: float
    """the rank before training"""
    after: float
    """after training"""


class Fresh(Output):
    """The size of fresh units' weights relative to old units'."""

    axis: str
    """the axis"""
    side: str
    """`written` or `read`"""
    before: float
    """the ratio before training"""
    after: float
    """after training"""
    layers: ByLayer
    """the same for each layer, after training"""


class NewLayer(Output):
    """How far a new layer has come."""

    layer: int
    """the layer"""
    source: int | None
    """the layer that it copies; null if it is random"""
    gained: dict[str, float]
    """the norm of each branch's last weight, relative to the old layers'"""
    mean: float
    """the root mean square over the branches"""


class Diagnose(Output):
    """`growth diagnose --json`, and `Diagnosis.to_dict()`."""

    init: str
    """the grown folder"""
    trained: str
    """the checkpoint that was trained from it"""
    verdict: Literal["identical", "cannot tell", "not identical", "no copies"]
    """whether any copies are identical"""
    cannot_tell: dict[str, str]
    """axes for which no verdict is possible, and why"""
    identical: dict[str, list[str]]
    """axes with identical copies, and the layers in which they are"""
    copies: list[Copies]
    """how far copies diverged"""
    alike: dict[str, float]
    """axes whose copies differ, but little"""
    distances: list[Distance]
    """how different copies are"""
    ranks: list[Rank]
    """effective ranks"""
    fresh: list[Fresh]
    """how large fresh weights have become"""
    new_layers: list[NewLayer]
    """how far new layers have come"""
    unmeasured: list[str]
    """axes whose copies are not compared"""


class Publication(Output):
    """Where a finding was published."""

    name: str
    """authors, year and title"""
    where: str
    """where it can be read"""
    read: str
    """how much of it was read"""


class Evidence(Output):
    """A finding."""

    topic: str
    """what it is about"""
    says: str
    """the finding, in a sentence"""
    source: Publication
    """its source"""
    grows: str
    """what grew: `width`, `depth`, `experts` or `any`"""
    seen: dict[str, list[float]]
    """the ranges in which it was seen"""
    saving: dict[str, list[float]]
    """FLOPs saved, least and most, by tokens per parameter"""
    interval: str
    """what least and most are, where they are the ends of intervals"""
    overstated: bool
    """whether the finding says that its saving is too large; no verdict draws on it"""


class Advise(Output):
    """`growth advise --json`, and `Advice.to_dict()`."""

    parameters: int
    """the parameters of the model to grow"""
    tokens: int
    """the tokens that it was trained on"""
    to: int
    """the parameters of the grown model"""
    planned_tokens: int | None
    """the tokens that the grown model will be trained on"""
    growth_factor: float
    """parameters after over parameters before"""
    tokens_per_parameter: list[float | None]
    """the tokens per parameter before, and after training on the planned tokens"""
    flops: list[float | None]
    """training compute before and after"""
    chinchilla_tokens: int
    """the compute-optimal number of tokens for the grown model"""
    growth_timing: float | None
    """the tokens after which to grow, by the rule of G_stack"""
    evidence: list[Evidence]
    """the findings"""


class ProposedModel(Output):
    """A model of a proposed schedule."""

    config: dict[str, Any]
    """its config.json"""
    parameters: int
    """its parameters"""
    flops_per_token: int
    """the FLOPs of training on a token"""
    flops: int
    """the FLOPs that are spent on it"""
    grows: Literal["width", "depth"] | None
    """what grows next; null for the target"""
    recipe: Recipe | None
    """the exact recipe into the next model"""
    tokens: int
    """the tokens that it is trained on"""


class Schedule(Output):
    """`growth schedule --json`, and `ScheduleProposal.to_dict()`."""

    verdict: Literal["worth trying", "not worth it", "unknown"]
    """whether growth is worth it; `unknown` outside of what was measured"""
    reasons: list[str]
    """the reasons of the verdict"""
    saving: list[float] | None
    """FLOPs saved as a factor, least and most"""
    flops: int
    """the budget"""
    tokens_per_parameter: float
    """the tokens per parameter that the budget gives the target from scratch"""
    models: list[ProposedModel]
    """the models; the last is the target"""
    evidence: list[Evidence]
    """the findings"""
    schedule: str
    """the [schedule](schedules.md), as YAML"""


class ScheduleStage(Output):
    """A growth of a schedule, and the training that follows."""

    at: dict[str, float]
    """when: a number of `steps`, `tokens` or `flops`, or a `share` of the run"""
    recipe: Recipe
    """how"""
    optimizer: Literal["carry", "reset", "fresh"] = "carry"
    """what becomes of the optimizer's state"""
    rewarm: dict[str, Any] | None = None
    """the second warm-up"""
    rates: dict[str, float] | None = None
    """factors on the learning rate by kind of value"""


class ShippedSchedule(Output):
    """A shipped schedule: `growth recipes NAME --json`, with the keys of [its file](schedules.md#the-file)."""

    description: str = ""
    """what it is for"""
    reference: str | None = None
    """the publication that it follows"""
    until: dict[str, float] | None = None
    """the length of the run"""
    stages: list[ScheduleStage]
    """the growths, in order"""


class Outcome(Output):
    """What came of growing one axis, or of another config."""

    axis: str
    """the axis, the keys left out, or the boolean with its other value"""
    verdict: Literal["exact", "refused", "invalid", "broken"]
    """the [verdict](add-a-family.md)"""
    why: str
    """where it breaks, or the reason"""


class Family(Output):
    """`growth family --json`."""

    exact: bool
    """whether all tensors are there, and every outcome is exact or refused"""
    differences: list[str]
    """tensors that the table and the class do not share"""
    outcomes: list[Outcome]
    """of each axis, and of other configs"""


OUTPUTS: dict[str, type[BaseModel]] = {
    "plan": Plan,
    "grow": Grow,
    "verify": Verify,
    "verify --weights": VerifyWeights,
    "push": Push,
    "inspect": Inspect,
    "recipe": Recipe,
    "import": Recipe,
    "export": Export,
    "diagnose": Diagnose,
    "advise": Advise,
    "schedule": Schedule,
    "recipes SCHEDULE": ShippedSchedule,
    "family": Family,
}


def check(output: type[BaseModel], found: Any) -> None:
    """Hold JSON values against what is stated: every key, and the type of every value.

    Raises:
        pydantic.ValidationError: a key is missing, or is not stated, or a value has another type.
    """
    output.model_validate(found, strict=True)


def schema() -> str:
    """Return docs/growth.schema.json."""
    every = TypeAdapter(Union[tuple(OUTPUTS.values())]).json_schema()  # noqa: UP007
    first = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "The JSON that growth prints"}
    return json.dumps(first | every, indent=1, ensure_ascii=False) + "\n"


def tables() -> str:
    """Return the sections of docs/json.md: a table for each command, and one for each kind of entry below them."""
    shown: list[type[BaseModel]] = list(OUTPUTS.values())
    parts = [f"## growth {name}\n\n{_table(output, shown)}" for name, output in OUTPUTS.items()]
    entries = [f"### {one.__name__}\n\n{_first_line(one)}\n\n{_rows(one)}" for one in shown[len(OUTPUTS) :]]
    return "\n\n".join([*parts, "## Entries", *entries])


def _table(output: type[BaseModel], shown: list[type[BaseModel]]) -> str:
    _add_entries(output, shown)
    return f"{_first_line(output)}\n\n{_rows(output)}"


def _add_entries(output: type[BaseModel], shown: list[type[BaseModel]]) -> None:
    """Add the kinds of entries that an output has to those that are shown."""
    for field in output.model_fields.values():
        for kind in _kinds(field.annotation):
            if kind not in shown:
                shown.append(kind)
                _add_entries(kind, shown)


def _kinds(annotation: Any) -> list[type[BaseModel]]:
    """The kinds of entries in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for argument in get_args(annotation) for kind in _kinds(argument)]


def _first_line(output: type[BaseModel]) -> str:
    return (output.__doc__ or "").splitlines()[0]


def _rows(output: type[BaseModel]) -> str:
    fields = output.model_fields.items()
    lines = [f"| `{name}` | {_type(field.annotation)} | {field.description} |" for name, field in fields]
    return "\n".join(["| key | type | meaning |", "|---|---|---|", *lines])


NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null", Any: "any"}


def _type(annotation: Any) -> str:
    """A type as a table names it."""
    if annotation in NAMES:
        return NAMES[annotation]
    if _kinds(annotation) == [annotation]:
        name = annotation.__name__
        command = next((command for command, output in OUTPUTS.items() if output is annotation), None)
        return f"[{name}](#{f'growth-{command}' if command else name.lower()})"
    arguments = get_args(annotation)
    origin = getattr(annotation, "__origin__", None)
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "object" if arguments[1] is Any else f"object of {_type(arguments[1])}"
    return " or ".join(map(_type, arguments))
