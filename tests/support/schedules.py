"""Runs of 20 steps by a schedule, in a plain loop and in a Trainer, on tiny models."""

import json

import torch
from transformers import AutoModelForCausalLM

import growth
from growth.training.trainer_callback import GrowthCallback
from growth.training.trainer_history import scheduled
from tests.support.trainers import rows, tiny, trainer

STEPS, BATCH = 20, 2
ROWS = rows(STEPS * BATCH)


def batch_of(step):
    some = ROWS[step * BATCH : (step + 1) * BATCH]
    return {key: torch.stack([row[key] for row in some]) for key in some[0]}


def loaded(folder):
    """The model of a checkpoint."""
    return AutoModelForCausalLM.from_pretrained(folder)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)


class Plain:
    """A plain loop that saves itself after each of some steps, into folders of that name."""

    def __init__(self, schedule, model, optimizer=adamw):
        self.schedule, self.model = schedule, model
        self.optimizer = optimizer(model)
        self.scheduler = cosine(self.optimizer)
        self.run = schedule.start(model, self.optimizer)
        self.losses = {}

    @classmethod
    def resume(cls, schedule, folder, optimizer=adamw):
        loop = cls.__new__(cls)
        saved = torch.load(folder / "training.pt", weights_only=True)
        loop.schedule, loop.model = schedule, loaded(folder).train()
        loop.optimizer = optimizer(loop.model)
        loop.scheduler = cosine(loop.optimizer)
        loop.optimizer.load_state_dict(saved["optimizer"])
        loop.scheduler.load_state_dict(saved["scheduler"])
        loop.run = schedule.start(loop.model, loop.optimizer, json.loads(saved["growth"]))
        loop.losses = {}
        return loop

    def save(self, folder):
        self.model.save_pretrained(folder)
        states = {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
        torch.save({**states, "growth": json.dumps(self.run.state_dict())}, folder / "training.pt")

    def train(self, folder=None, save_at=()):
        while self.run.steps < STEPS and not self.run.finished:
            batch = batch_of(self.run.steps)
            loss = self.model(**batch).loss
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.run.step(batch)
            self.losses[self.run.steps] = float(loss.detach())
            if self.run.steps in save_at:
                self.save(folder / f"checkpoint-{self.run.steps}")
        return self


def by_trainer(folder, schedule, model, checkpoint=None, **changes):
    """A Trainer after its run, or after the rest of a run that is resumed."""
    if checkpoint is not None:
        model = loaded(checkpoint)
    run = trainer(folder, model, GrowthCallback.from_schedule(schedule), steps=STEPS, **changes)
    run.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    return run


def losses(run):
    return {entry["step"]: entry["loss"] for entry in run.state.log_history if "loss" in entry}


def steps_of(history):
    return [entry["step"] for entry in scheduled(history)]


SOURCES = {  # the model that a shipped schedule starts from; others start from `tiny`
    "depth-from-one-layer": lambda: tiny(layers=1),
    "depth-from-zero-layers": lambda: tiny(layers=0),
    "middle-stacking": lambda: tiny(layers=4),
    "experts": lambda: growth.grow_model(tiny(), growth.upcycle(experts=4, top_k=2)),
}


def source(name):
    return SOURCES.get(name, tiny)()
