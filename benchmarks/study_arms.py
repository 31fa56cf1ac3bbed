"""The design of the study: scales, arms, and the runs that they consist of.

Training is warmup, constant rate, decay (Hu et al. 2024, MiniCPM), so that budgets share the part at the constant rate,
the trunk: each budget branches off at 80 % of its FLOPs and decays over the rest. A model that grows branches off the
trunk of its source, which for most arms is the small model's own. Budgets and all positions count FLOPs, in units of
those of one token per parameter of the target.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from growth.operators import deepen, reuse, widen

LAYERS = 6
DECAY = 0.2  # of a budget
SEEDS = 3
Rates = Mapping[tuple[str, str, float], float]  # the best peak rate, by scale, kind of arm and budget


@dataclass(frozen=True)
class Scale:
    """A target and the budgets at which it is trained.

    width: of the target; its small models are half as wide. budgets: in tokens per parameter. reported: the least
        budget in tables; smaller ones only serve interpolation. sweep: the budget at which `rates` are tried. halved:
        longer budgets, which try the best rate of the one before and half of it.
    also: rates that a kind tries besides, where the least of `rates` was its best.
    seeds: at most. batches: of 32 windows of held-out text, behind every loss.
    """

    name: str
    width: int
    budgets: tuple[float, ...]
    reported: float
    sweep: float
    rates: tuple[float, ...]
    halved: tuple[float, ...] = ()
    also: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    seeds: int = SEEDS
    batches: int = 48


BASE = Scale("base", 48, (2.5, 5, 10, 20, 40), 5, 10, (4e-3, 8e-3, 1.6e-2, 3.2e-2), (20, 40))
LARGE = Scale("large", 96, (10, 20), 20, 10, (4e-3, 8e-3), also={"scratch": (2e-3,)}, seeds=1)
QUICK = Scale("quick", 24, (0.1,), 0.1, 0.1, (8e-3,), seeds=1, batches=1)
SCALES = {scale.name: scale for scale in (BASE, LARGE, QUICK)}


@dataclass(frozen=True)
class Arm:
    """One way to spend a budget.

    kind: whose peak rate it takes. share: of the target's width. layers: of the model.
    source: the arm whose trunk it grows from, at the share `at` of the budget; `recipe` makes the growth from the
        target's width. optimizer: the state of the old one is grown (`carry`, or `reset`: zero for what is new), or
        `fresh`. rewarm: steps of a second warm-up, of what is new, or of all with a fresh optimizer.
    unit_shares: divide equal shares anew, one share per unit (the default of an early version).
    free: the source is the finished small model of the largest budget, which costs nothing.
    stops: shares of each budget at which other runs branch off its trunk. seeds: how many.
    """

    name: str
    label: str
    kind: Literal["scratch", "small", "grown"] = "grown"
    share: float = 1
    layers: int = LAYERS
    source: str | None = None
    at: float = 0.25
    recipe: Callable[[int], Any] = lambda _: "double-width"
    optimizer: Literal["carry", "reset", "fresh"] = "carry"
    rewarm: int = 0
    unit_shares: bool = False
    free: bool = False
    stops: tuple[float, ...] = ()
    seeds: int = 1
    lossy: bool = False


def _widths(**options: Any) -> list[Any]:
    return [widen(axis, factor=2, **options) for axis in ("residual", "ffn", "heads")]


def _submatrix(width: int) -> list[Any]:
    return [reuse(to={"residual": width, "ffn": 4 * width, "heads": width // 12}, method="submatrix")]


STACK, BY_COPIES = {"to": LAYERS, "order": "stack"}, {"init": "copy"}
ARMS = (
    Arm("scratch", "the target from scratch", "scratch", stops=(0.8,), seeds=SEEDS),
    Arm("small", "the small model alone, half as wide", "small", 0.5, stops=(0.1, 0.25, 0.5, 0.8), seeds=SEEDS),
    Arm("default", "width × 2: `double-width`, fresh silent units (pad)", source="small", seeds=SEEDS),
    Arm("exact", "width × 2: `double-width-exact`, unread copies in the residual stream, ffn and heads pad",
        source="small", recipe=lambda _: "double-width-exact", seeds=SEEDS),
    Arm("free", "width × 2: `double-width` from a finished small model, not counted; fresh optimizer",
        source="small", optimizer="fresh", rewarm=50, free=True, seeds=SEEDS),
    Arm("submatrix", "width × 2: old weights as a sub-matrix of random ones (`reuse`), fresh optimizer",
        source="small", recipe=_submatrix, optimizer="fresh", rewarm=50, seeds=SEEDS, lossy=True),
    Arm("random", "width × 2: copies, each weight divided at random (`shares: random`)",
        source="small", recipe=lambda _: _widths(init="tile", shares="random")),
    Arm("unit-shares", "width × 2: copies, one random share per unit (the default at 6ba53c3)",
        source="small", recipe=lambda _: _widths(init="tile", shares="equal"), unit_shares=True),
    Arm("sparkling", "width × 2 at half of the budget: equal copies, moments of copies reset, re-warm-up (SPARKLING)",
        source="small", at=0.5, recipe=lambda _: _widths(init="tile", shares="equal"), optimizer="reset", rewarm=100),
    Arm("default-half", "as the default, growth at half of the budget", source="small", at=0.5),
    Arm("default-tenth", "as the default, growth at a tenth of the budget", source="small", at=0.1, seeds=SEEDS),
    Arm("two-layers", "source of G_stack", "small", layers=2, stops=(0.25,), seeds=0),
    Arm("g-stack", "depth 2 → 6: copies stacked (G_stack)", source="two-layers",
        recipe=lambda _: [deepen(**STACK, init="copy")], lossy=True),
    Arm("one-layer", "source of depth from one layer", "small", layers=1, stops=(0.1,), seeds=0),
    Arm("depth-one", "depth 1 → 6 at a tenth of the budget: identity layers", source="one-layer", at=0.1,
        recipe=lambda _: [deepen(**STACK)]),
)  # fmt: skip
BY_NAME = {arm.name: arm for arm in ARMS}


@dataclass(frozen=True)
class Run:
    """One stretch of training, from a new model or the end of another run, to a loss and a checkpoint.

    peak: the rate before and after decay's factor. start, stop, decay_from: positions in FLOPs (see above).
    grows: whether it begins with the arm's growth.
    """

    scale: str
    arm: str
    seed: int
    peak: float
    start: float
    stop: float
    parent: "Run | None" = None
    decay_from: float | None = None
    grows: bool = False

    @property
    def name(self) -> str:
        """Of its files. Trunks are told apart from runs that decay."""
        kind = f"{self.start:g}-{self.stop:g}" if self.decay_from else f"trunk-{self.stop:g}"
        return f"{self.scale}-{self.arm}-{self.peak:g}-s{self.seed}-{kind}"

    @property
    def ancestry(self) -> "list[Run]":
        """All runs before it, the first one first, and itself."""
        return [*(self.parent.ancestry if self.parent else []), self]


def trunk(scale: Scale, arm: Arm, seed: int, peak: float, stop: float) -> Run:
    """The run at the constant rate that ends at `stop`, after those that end where others branch off."""
    stops = sorted({share * budget for share in arm.stops for budget in scale.budgets})
    before = max((each for each in stops if each < stop), default=0.0)
    parent = trunk(scale, arm, seed, peak, before) if before else None
    return Run(scale.name, arm.name, seed, peak, before, stop, parent)


def final(scale: Scale, arm: Arm, seed: int, budget: float, rates: Rates, peak: float | None = None) -> Run:
    """The run that ends a budget; `peak` other than the best one.

    Raises:
        KeyError: a rate that is not known yet.
    """
    peak = peak or rates[scale.name, arm.kind, budget]
    source_peak = rates[scale.name, "small", scale.sweep] if arm.source else 0
    grows = arm.source is not None
    start, end = arm.at * budget, budget
    if not grows:
        start = (1 - DECAY) * budget
        parent = trunk(scale, arm, seed, peak, start)
    elif arm.free:
        start = scale.budgets[-1]
        end = start + budget
        parent = final(scale, BY_NAME[arm.source], seed, start, rates, source_peak)
    else:
        parent = trunk(scale, BY_NAME[arm.source], seed, source_peak, start)
    return Run(scale.name, arm.name, seed, peak, start, end, parent, end - DECAY * budget, grows)


def sweep(scale: Scale, kind: str, budget: float, rates: Rates) -> list[Run]:
    """One run for each peak rate that is tried at a budget, of the first arm of a kind; none if it is not known yet.

    Longer budgets try the best rate of the one before, and half of it.
    """
    arm = next(arm for arm in ARMS if arm.kind == kind)
    swept = (scale.sweep, *scale.halved)
    best = rates.get((scale.name, kind, swept[max(0, swept.index(budget) - 1)]), 0)
    tried = (*scale.also.get(kind, ()), *scale.rates)
    peaks = tried if budget == scale.sweep else (best, best / 2) if best else ()
    if kind == "grown" and (scale.name, "small", scale.sweep) not in rates:
        return []
    return [final(scale, arm, 0, budget, rates, peak) for peak in peaks]


def best_rates(
    scales: Mapping[str, Scale], loss: Callable[[Run], float | None], partial: bool = False
) -> dict[tuple[str, str, float], float]:
    """The rates with the least loss, of sweeps that are complete; with `partial`, of what is done."""
    rates: dict[tuple[str, str, float], float] = {}
    for scale in scales.values():
        for kind in ("small", "scratch", "grown"):
            for budget in (scale.sweep, *scale.halved):
                losses = {run.peak: loss(run) for run in sweep(scale, kind, budget, rates)}
                done = {peak: value for peak, value in losses.items() if value is not None}
                if done and (partial or len(done) == len(losses)):
                    same = {*scale.budgets} - {*scale.halved} if budget == scale.sweep else {budget}
                    rates |= {(scale.name, kind, each): min(done, key=lambda peak: done[peak]) for each in same}
    return rates


MAIN = ("scratch", "small", "default", "exact")
RIVALS = ("submatrix", "g-stack", "sparkling", "unit-shares", "depth-one")
KINDS = ("scratch", "small", "grown")


def chapters(scale: Scale, rates: Rates) -> Iterator[Iterator[Run]]:
    """Groups of runs in the order of their importance."""

    def runs(arms: Sequence[str], budgets: Sequence[float], seeds: Sequence[int]) -> Iterator[Run]:
        for seed in seeds:
            for arm in (BY_NAME[name] for name in arms):
                for budget in budgets:
                    if {(scale.name, arm.kind, budget), (scale.name, "small", scale.sweep)} <= rates.keys():
                        yield final(scale, arm, seed, budget, rates)

    def sweeps(kinds: Sequence[str], budgets: Sequence[float]) -> Iterator[Run]:
        return (run for kind in kinds for budget in budgets for run in sweep(scale, kind, budget, rates))

    every = [arm.name for arm in ARMS if arm.seeds]
    often = [arm.name for arm in ARMS if arm.seeds == SEEDS]
    middle = [budget for budget in scale.budgets if budget <= 20]
    seeds = range(scale.seeds)
    yield sweeps(KINDS, [scale.sweep])
    if scale is BASE:
        yield sweeps(("scratch", "grown"), scale.halved)
        yield runs(MAIN, middle, [0])
        yield runs(RIVALS[:2], middle, [0])
        yield runs(["free"], middle, [0])
        yield runs(["default-tenth"], scale.budgets, [0])
        yield runs(RIVALS, middle, [0])
        yield runs(["scratch", "default-tenth", "default"], scale.budgets, seeds)
        yield sweeps(("small",), scale.halved)
        yield runs(often, middle, seeds)
        yield runs(every, middle, [0])
        yield runs(every, scale.budgets, [0])
        yield runs(often, scale.budgets, seeds)
    else:
        yield runs((*MAIN[:3], *RIVALS[:2], *MAIN[3:]), [scale.reported], seeds)


def wanted(scales: Mapping[str, Scale], rates: Rates) -> list[Run]:
    """All runs that end a budget or belong to a sweep, the most important first, as far as rates are known."""
    found: dict[str, Run] = {}
    for scale in scales.values():
        for runs in chapters(scale, rates):
            found |= {run.name: run for run in runs if run.name not in found}
    return list(found.values())
