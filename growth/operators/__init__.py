"""Growth operators: functions from a growth to a longer one. Chains of operators are operators."""

from growth.operators.break_symmetry import break_symmetry
from growth.operators.deepen import deepen
from growth.operators.reuse import reuse
from growth.operators.sizes import Operator, chain
from growth.operators.upcycle import upcycle
from growth.operators.widen import widen

__all__ = ["Operator", "break_symmetry", "chain", "deepen", "reuse", "upcycle", "widen"]
