"""Growth operators: functions from a growth to a longer one. Chains of operators are operators."""

from growth.operators.chain import Operator, chain
from growth.operators.deepen import deepen
from growth.operators.reuse import reuse
from growth.operators.symmetry import break_symmetry
from growth.operators.upcycle import upcycle
from growth.operators.widen import widen

__all__ = ["Operator", "break_symmetry", "chain", "deepen", "reuse", "upcycle", "widen"]
