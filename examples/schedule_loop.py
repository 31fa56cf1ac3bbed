"""Grow a model by a schedule in a plain PyTorch loop, and resume from a checkpoint between two growths.

python examples/schedule_loop.py
"""

import json
import tempfile
from pathlib import Path

import torch
from plain_loop import MODEL, batches
from transformers import AutoModelForCausalLM, AutoTokenizer

import growth

STEPS, SAVE_AT = 8, 1
SCHEDULE = growth.load_schedule("width-and-depth").over(steps=STEPS)  # or the path of a YAML file of yours


def train(folder: Path, resume: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder if resume else MODEL, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    state = None
    if resume:
        saved = torch.load(folder / "training.pt", weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        state = json.loads((folder / "growth-run.json").read_text())
    run = SCHEDULE.start(model, optimizer, state)  # plans every growth that is still to come

    stream = batches(AutoTokenizer.from_pretrained(MODEL))
    for _ in range(run.steps):
        next(stream)
    while run.steps < STEPS:
        rows = next(stream)
        batch = {"input_ids": rows, "labels": rows}
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        for entry in run.step(batch):  # counts the step; grows model and optimizer in place when a stage begins
            print(f"{entry['growth']}: loss {entry['loss_before']:.5f} → {entry['loss_after']:.5f}")
        print(f"step {run.steps}: loss {loss:.5f}, {model.num_parameters():,} parameters, {run.flops:.3g} FLOPs")
        if run.steps == SAVE_AT:
            model.save_pretrained(folder)
            states = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
            torch.save(states, folder / "training.pt")
            (folder / "growth-run.json").write_text(json.dumps(run.state_dict()))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), resume=False)
        print(f"resumed after step {SAVE_AT}")
        train(Path(folder), resume=True)


if __name__ == "__main__":
    main()
