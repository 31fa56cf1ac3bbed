"""growth: start a larger language model from a smaller one, exactly.

    plan = growth.plan("phi-1.5-to-phi-2", "phi-1_5/")      # what would happen; reads headers only
    growth.grow("phi-1.5-to-phi-2", "phi-1_5/", "phi-2-init/")
    report = growth.verify("phi-1_5/", "phi-2-init/")       # whether both compute the same function
    larger = growth.grow_model(model, "double-width")       # a transformers model in memory

The public names are listed in __init__.pyi, for type checkers and for this module, which imports each on first use
(Scientific Python SPEC 1, lazy loading): `import growth` imports neither torch nor transformers.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text())
_MODULES = {name.name: node.module for node in _STUB.body if isinstance(node, ast.ImportFrom) for name in node.names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'growth' has no attribute '{name}'")
    return getattr(import_module(str(_MODULES[name])), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
