"""Growth operators: functions from a growth to a longer one. Chains of operators are operators.

Each import of an operator registers it for recipes; the docs list the operators in this order.
"""

# isort: off
from growth.operators.base import Operator as Operator, chain as chain
from growth.operators.widen import widen as widen
from growth.operators.deepen import deepen as deepen
from growth.operators.regroup import regroup as regroup
from growth.operators.upcycle import upcycle as upcycle
from growth.operators.untie import untie as untie
from growth.operators.retie import retie as retie
from growth.operators.rescale import rescale as rescale
from growth.operators.break_symmetry import break_symmetry as break_symmetry
from growth.operators.reuse import reuse as reuse
from growth.operators.configure import configure as configure
from growth.operators.registry import OPERATORS as OPERATORS, RecipeStep as RecipeStep
