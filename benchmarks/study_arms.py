"""The design of the study: a default, and arms that each differ from it in one thing."""

from dataclasses import dataclass, field
from typing import Any

# The ratios of Phi-1.5 to Phi-2 (5/4 in width and head_dim, 4/3 in depth) on phi-mini's geometry at half its width.
SOURCE = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "partial_rotary_factor": 0.5,
    "hidden_act": "gelu_pytorch_tanh",  # gelu_new's function as one kernel, a fifth faster
}
TARGET = {"residual": 80, "ffn": 320, "head_dim": 20}
LAYERS = 8

Step = dict[str, Any]


def width(**options: Any) -> list[Step]:
    """Return the steps that widen every axis to the target's size."""
    return [{"op": "widen", "axis": axis, "to": size, **options} for axis, size in TARGET.items()]


def depth(order: str = "interleave", init: str = "identity") -> Step:
    """Return the step that deepens to the target's number of layers."""
    return {"op": "deepen", "to": LAYERS, "order": order, "init": init}


def reuse(**options: Any) -> list[Step]:
    """Return the step of lossy reuse to the target's geometry."""
    return [{"op": "reuse", "to": dict(TARGET), "layers": LAYERS, **options}]


TILE = width(init="tile", shares="random")
EXACT = [*TILE, depth()]


@dataclass(frozen=True)
class Arm:
    """One way to start the target model and to train it.

    steps: the recipe's; none starts from random weights.
    factor: what the arm varies, by which the plots group it.
    length: training tokens over those of the default, with a schedule of its own.
    peak: of the learning rate, over the source's peak. warmup: as a share of the steps.
    grown_state: whether the optimizer's state grows with the model.
    grows: False trains the source on instead.
    """

    name: str
    label: str
    factor: str
    steps: list[Step] = field(default_factory=list)
    exact: bool = False
    length: float = 1.0
    peak: float = 1.0
    warmup: float = 0.05
    grown_state: bool = False
    grows: bool = True

    @property
    def needs_source(self) -> bool:
        """Whether it starts from a trained model."""
        return bool(self.steps) or not self.grows

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe, as a file would state it."""
        return {"description": self.label, "steps": self.steps}


def _grown(name: str, label: str, factor: str, steps: list[Step] = EXACT, exact: bool = True, **options: Any) -> Arm:
    return Arm(name, label, factor, steps, exact, **options)


DEFAULT = _grown("default", "exact tile, random shares, interleaved identity layers", "default")
SCRATCH = Arm("scratch", "from scratch", "scratch")
LONGER = (Arm("scratch-2x", "from scratch, 2x the tokens", "scratch", length=2),
          Arm("scratch-4x", "from scratch, 4x the tokens", "scratch", length=4))  # fmt: skip
HALF = _grown("default-half", "default, half the tokens", "length", length=0.5)

ARMS = (
    DEFAULT,
    SCRATCH,
    *LONGER,
    _grown("grown-state", "grown optimizer state", "training", grown_state=True),
    _grown("half-peak", "half the peak learning rate", "training", peak=0.5),
    _grown("pad", "exact pad (fresh silent units)", "width", [*width(init="pad"), depth()]),
    _grown("copied", "copied layers, interleaved (lossy)", "depth", [*TILE, depth(init="copy")], exact=False),
    _grown("reuse-submatrix", "reuse: sub-matrix in random (lossy)", "reuse",
           reuse(method="submatrix", at="middle"), exact=False),
    _grown("reuse-tile", "reuse: tiled, fan-in normalised (lossy)", "reuse",
           reuse(method="tile", at="middle", fan_in=True), exact=False),
    _grown("equal-shares", "tile, equal shares (copies stay equal)", "symmetry",
           [*width(init="tile", shares="equal"), depth()]),
    _grown("stack", "identity layers stacked on top", "depth", [*TILE, depth("stack")]),
    _grown("append", "identity layers: last ones again", "depth", [*TILE, depth("append")]),
    _grown("copied-stack", "copied layers, stacked (lossy)", "depth", [*TILE, depth("stack", "copy")], exact=False),
    _grown("long-warmup", "warm-up over a quarter of the steps", "training", warmup=0.25),
    _grown("grown-half-peak", "grown optimizer state and half the peak", "training", grown_state=True, peak=0.5),
    HALF,
    Arm("source-on", "the source trained on, not grown", "control", grows=False),
    Arm("scratch-half-peak", "from scratch, half the peak learning rate", "control", peak=0.5),
)  # fmt: skip
BY_NAME = {arm.name: arm for arm in ARMS}
