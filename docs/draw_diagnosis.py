"""Draw docs/diagnose.png: phi-mini, grown in several ways, trained for 40 steps and diagnosed: `make picture`."""

from __future__ import annotations

import sysconfig
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import growth
from growth.operators import chain, deepen, widen
from growth.training.diagnosis_figure import diagnosis_figure

ROOT = Path(__file__).parent.parent
SOURCE, PICTURE = ROOT / "examples" / "phi-mini", ROOT / "docs" / "diagnose.png"
STEPS, ROWS, LENGTH, RATE = 40, 8, 64, 5e-4
GROWTH = chain(
    widen("residual", factor=2, init="tile", shares="equal"),
    widen("heads", factor=2, init="tile", shares="first"),
    widen("ffn", factor=2, init="tile", shares="random"),
    widen("head_dim", factor=1.5, init="pad"),
    deepen(to=8),
)


def tokens() -> torch.Tensor:
    """Modules of the standard library as token ids."""
    root = Path(sysconfig.get_paths()["stdlib"])
    text = "\n".join((root / name).read_text() for name in ("argparse.py", "ast.py", "inspect.py", "typing.py"))
    ids = AutoTokenizer.from_pretrained(SOURCE)(text, return_tensors="pt", verbose=False).input_ids[0]
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


def main() -> None:
    """Grow, train, diagnose and draw."""
    with tempfile.TemporaryDirectory() as folder:
        init, trained = Path(folder) / "init", Path(folder) / "trained"
        growth.grow(GROWTH, SOURCE, init)
        model, rows = AutoModelForCausalLM.from_pretrained(init, dtype=torch.float32), tokens()
        optimizer, draws = torch.optim.AdamW(model.parameters(), lr=RATE), torch.Generator().manual_seed(0)
        for _ in range(STEPS):
            batch = rows[torch.randint(0, len(rows), (ROWS,), generator=draws)]
            model(batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(trained)
        diagnosis_figure(growth.diagnose(init, trained)).savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
