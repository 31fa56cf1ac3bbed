"""Grow a model and the state of its optimizer half-way through a plain PyTorch loop.

python examples/plain_loop.py
"""

import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import growth

MODEL = Path(__file__).parent / "phi-mini"
STEPS, GROW_AT, ROWS, LENGTH = 8, 4, 4, 64


def batches(tokenizer, seed: int = 0):
    """Endless random windows of a file of the standard library, shape (ROWS, LENGTH)."""
    ids = torch.tensor(tokenizer(Path(os.__file__).read_text(), verbose=False)["input_ids"])
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(ids) - LENGTH, (ROWS,), generator=generator)
        yield torch.stack([ids[start : start + LENGTH] for start in starts])


def main() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

    stream = batches(AutoTokenizer.from_pretrained(MODEL))
    for step in range(STEPS):
        rows = next(stream)

        if step == GROW_AT:
            with torch.no_grad():
                print(f"before: {model(input_ids=rows, labels=rows).loss:.5f}, {model.num_parameters():,} parameters")
            plan = growth.plan("phi-mini", model)  # a recipe's name, a file, or operators
            larger = growth.grow_model(model, plan)
            optimizer = growth.grow_optimizer(optimizer, model, larger, plan)
            scheduler.optimizer = optimizer  # it continues where it is: the new optimizer has the old one's groups
            model = larger
            with torch.no_grad():
                print(f"after:  {model(input_ids=rows, labels=rows).loss:.5f}, {model.num_parameters():,} parameters")

        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        print(f"step {step + 1}: loss {loss:.5f}, learning rate {scheduler.get_last_lr()[0]:.2e}")


if __name__ == "__main__":
    main()
