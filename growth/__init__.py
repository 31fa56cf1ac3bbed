"""growth: start a larger language model from a smaller one, exactly.

    plan = growth.plan("phi-1.5-to-phi-2", "phi-1_5/")      # what would happen; headers only
    growth.grow("phi-1.5-to-phi-2", "phi-1_5/", "phi-2-init/")
    report = growth.verify("phi-1_5/", "phi-2-init/")       # that it computes the same
    larger = growth.grow_model(model, "double-width")       # a transformers model in memory

The names are loaded when they are used: `import growth` imports neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from growth.advice import Advice, advise
    from growth.api import grow, grow_model, plan
    from growth.diagnosis import Diagnosis, diagnose
    from growth.errors import (
        CheckpointError,
        ConfigError,
        GrowthError,
        MissingExtra,
        OptimizerError,
        RecipeError,
        VerificationError,
    )
    from growth.expansion import Expansion
    from growth.groups import param_groups
    from growth.growth import Growth
    from growth.integrity import WeightsReport, verify_weights
    from growth.operators import Operator, break_symmetry, chain, deepen, reuse, upcycle, widen
    from growth.optimizer import grow_optimizer
    from growth.planning import Plan
    from growth.recipe import Recipe, load_recipe
    from growth.trainer_checkpoint import grow_training
    from growth.verification import Report, verify

_HOMES = {
    "growth.advice": ("Advice", "advise"),
    "growth.api": ("grow", "grow_model", "plan"),
    "growth.diagnosis": ("Diagnosis", "diagnose"),
    "growth.errors": (
        "CheckpointError",
        "ConfigError",
        "GrowthError",
        "MissingExtra",
        "OptimizerError",
        "RecipeError",
        "VerificationError",
    ),
    "growth.expansion": ("Expansion",),
    "growth.groups": ("param_groups",),
    "growth.growth": ("Growth",),
    "growth.integrity": ("WeightsReport", "verify_weights"),
    "growth.operators": ("Operator", "break_symmetry", "chain", "deepen", "reuse", "upcycle", "widen"),
    "growth.optimizer": ("grow_optimizer",),
    "growth.planning": ("Plan",),
    "growth.recipe": ("Recipe", "load_recipe"),
    "growth.trainer_checkpoint": ("grow_training",),
    "growth.verification": ("Report", "verify"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Advice",
    "CheckpointError",
    "ConfigError",
    "Diagnosis",
    "Expansion",
    "Growth",
    "GrowthError",
    "MissingExtra",
    "Operator",
    "OptimizerError",
    "Plan",
    "Recipe",
    "RecipeError",
    "Report",
    "VerificationError",
    "WeightsReport",
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
