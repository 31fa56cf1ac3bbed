"""Plans of configs alone, as if a checkpoint held their weights."""

from growth.architectures import architecture
from growth.arrays.tensor_info import TensorInfo
from growth.operators.base import Growth
from growth.planning.plan import make_plan


def plan_of(config, recipe, dtype="F32"):
    """The plan of a recipe or an operator for a model of a config."""
    built = architecture(config)
    headers = {name: TensorInfo(name, dtype, shape) for name, shape in built.example_shapes().items()}
    return make_plan(built, recipe.grow(built, 0) if hasattr(recipe, "grow") else recipe(Growth.start(built)), headers)
