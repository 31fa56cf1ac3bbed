"""Growth operators: functions from a growth to a longer one. Chains of operators are operators.

Each import of an operator registers it for recipes; the docs list the operators in this order.
"""

# isort: off
from growth.operators.base import Operator, chain
from growth.operators.widen import widen
from growth.operators.deepen import deepen
from growth.operators.upcycle import upcycle
from growth.operators.break_symmetry import break_symmetry
from growth.operators.reuse import reuse
from growth.operators.registry import OPERATORS, RecipeStep

__all__ = ["OPERATORS", "Operator", "RecipeStep", "break_symmetry", "chain", "deepen", "reuse", "upcycle", "widen"]
