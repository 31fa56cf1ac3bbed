"""growth: start a larger language model from a smaller one, exactly.

    plan = growth.plan("phi-1.5-to-phi-2", "phi-1_5/")      # what would happen; headers only
    growth.grow("phi-1.5-to-phi-2", "phi-1_5/", "phi-2-init/")
    report = growth.verify("phi-1_5/", "phi-2-init/")       # that it computes the same
    larger = growth.grow_model(model, "double-width")       # a transformers model in memory

The names are loaded when they are used: `import growth` imports neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from growth.version import __version__

if TYPE_CHECKING:
    from growth.algebra.expansion import Expansion
    from growth.api import grow, plan
    from growth.distributed.grow_reader import GrowReader
    from growth.errors import (
        CheckpointError,
        ConfigError,
        GrowthError,
        MissingExtra,
        OptimizerError,
        RecipeError,
        VerificationError,
    )
    from growth.operators import Operator, break_symmetry, chain, deepen, reuse, upcycle, widen
    from growth.operators.base import Growth
    from growth.output.in_memory import grow_model
    from growth.planning.plan import Plan
    from growth.planning.recipe import Recipe, load_recipe
    from growth.training.advice import Advice, advise
    from growth.training.diagnosis import Diagnosis, diagnose
    from growth.training.optimizer import grow_optimizer
    from growth.training.param_groups import param_groups
    from growth.training.trainer_callback import GrowthCallback, Moment
    from growth.training.trainer_checkpoint import grow_training
    from growth.verification.bitwise import WeightsReport, verify_weights
    from growth.verification.report import Report
    from growth.verification.verify import verify

_HOMES = {
    "growth.training.advice": ("Advice", "advise"),
    "growth.api": ("grow", "plan"),
    "growth.training.diagnosis": ("Diagnosis", "diagnose"),
    "growth.distributed.grow_reader": ("GrowReader",),
    "growth.errors": (
        "CheckpointError",
        "ConfigError",
        "GrowthError",
        "MissingExtra",
        "OptimizerError",
        "RecipeError",
        "VerificationError",
    ),
    "growth.algebra.expansion": ("Expansion",),
    "growth.training.param_groups": ("param_groups",),
    "growth.operators.base": ("Growth",),
    "growth.verification.bitwise": ("WeightsReport", "verify_weights"),
    "growth.operators": ("Operator", "break_symmetry", "chain", "deepen", "reuse", "upcycle", "widen"),
    "growth.training.optimizer": ("grow_optimizer",),
    "growth.output.in_memory": ("grow_model",),
    "growth.planning.plan": ("Plan",),
    "growth.planning.recipe": ("Recipe", "load_recipe"),
    "growth.training.trainer_callback": ("GrowthCallback", "Moment"),
    "growth.training.trainer_checkpoint": ("grow_training",),
    "growth.verification.report": ("Report",),
    "growth.verification.verify": ("verify",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Advice",
    "CheckpointError",
    "ConfigError",
    "Diagnosis",
    "Expansion",
    "GrowReader",
    "Growth",
    "GrowthCallback",
    "GrowthError",
    "MissingExtra",
    "Moment",
    "Operator",
    "OptimizerError",
    "Plan",
    "Recipe",
    "RecipeError",
    "Report",
    "VerificationError",
    "WeightsReport",
    "__version__",
    "advise",
    "break_symmetry",
    "chain",
    "deepen",
    "diagnose",
    "grow",
    "grow_model",
    "grow_optimizer",
    "grow_training",
    "load_recipe",
    "param_groups",
    "plan",
    "reuse",
    "upcycle",
    "verify",
    "verify_weights",
    "widen",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'growth' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
