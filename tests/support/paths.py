"""Where the repository and the checkpoint that it ships are."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PHI_MINI = ROOT / "examples" / "phi-mini"
