"""The parts of one run of the study: text, source, start, training, measurement."""

import ast
import functools
import hashlib
import json
import math
import random
import re
import sys
import textwrap
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from study_arms import LAYERS, SOURCE, TARGET, Arm
from torch.nn.functional import cross_entropy
from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

import growth

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))
from train_phi_mini import adamw, batches, encode, learning_rate, standard_library  # noqa: E402

CURVE_WINDOWS = 32  # held-out windows behind every point of a curve
FINAL_WINDOWS = 320  # ... and behind the final figures


@dataclass(frozen=True)
class Settings:
    """What all runs share. steps: of the default; the source and other lengths are multiples."""

    steps: int = 480
    rows: int = 8
    length: int = 128
    peak: float = 3e-3
    source_length: float = 2.0
    prompts: int = 128
    new_tokens: int = 48
    files: int | None = None  # only so many files of text, for a quick look

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a batch."""
        return self.rows * self.length


@dataclass(frozen=True)
class Text:
    """Token ids of both splits, what they came from, and the prompts."""

    training: torch.Tensor
    held_out: torch.Tensor
    prompts: list[str]
    facts: dict[str, Any]


def tokenizer() -> PreTrainedTokenizerFast:
    """phi-mini's."""
    return PreTrainedTokenizerFast.from_pretrained(ROOT / "examples" / "phi-mini")


def headers(texts: list[str]) -> list[str]:
    """The distinct one-line headers of the functions of some files, without their indentation."""
    found = {}
    for text in texts:
        for line in re.findall(r"^[ \t]*(def \w+\([^\n]*\)[^\n:]*:)\n", text, re.M):
            try:
                ast.parse(f"{line}\n    pass\n")
            except SyntaxError:
                continue
            found[line] = None
    return sorted(line for line in found if len(line) <= 80)


def read_text(settings: Settings) -> Text:
    """The standard library with its tests, each distinct file once; a hash of a file's text holds it out."""
    training, held_out = standard_library(tests=True)
    training, held_out = training[: settings.files], held_out[: settings.files]
    tokens = tokenizer()
    lines = headers(held_out)
    prompts = random.Random(0).sample(lines, min(settings.prompts, len(lines)))
    ids = encode(tokens, training), encode(tokens, held_out)
    digest = hashlib.sha256("".join(hashlib.sha256(t.encode()).hexdigest() for t in training).encode()).hexdigest()
    facts = {
        "python": sys.version.split()[0], "training_files": len(training), "held_out_files": len(held_out),
        "training_tokens": len(ids[0]), "held_out_tokens": len(ids[1]), "headers": len(lines),
        "sha256_of_training_files": digest,
    }  # fmt: skip
    return Text(*ids, prompts, facts)


@functools.cache
def load_text(path: Path) -> Text:
    """The text as `study.py` stored it."""
    return Text(**torch.load(path, weights_only=False))


def source_config() -> PhiConfig:
    """The small model's."""
    end = tokenizer().eos_token_id
    return PhiConfig(**SOURCE, vocab_size=len(tokenizer()), bos_token_id=end, eos_token_id=end)


def target_config() -> PhiConfig:
    """The large model's, stated by itself, so that a start cannot choose its own geometry."""
    small = source_config().to_dict()
    rotary = SOURCE["partial_rotary_factor"] * SOURCE["hidden_size"] / TARGET["residual"]  # as many rotary channels
    small["rope_parameters"] = {**small["rope_parameters"], "partial_rotary_factor": rotary}
    return PhiConfig.from_dict(
        {**small, "hidden_size": TARGET["residual"], "intermediate_size": TARGET["ffn"], "num_hidden_layers": LAYERS}
    )


def flops_per_token(model: PhiForCausalLM) -> int:
    """6 N, with N the parameters but for the input embedding, which is only looked up."""
    return 6 * (sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel())


def windows(ids: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """Windows spread evenly over the held-out text, shape (count, length)."""
    whole = ids[: len(ids) // length * length].view(-1, length)
    return whole[torch.linspace(0, len(whole) - 1, min(count, len(whole))).long()]


def loss_of(model: PhiForCausalLM, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss in nats per predicted token, and the share of them predicted rightly."""
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1].flatten(0, 1)
    aims = rows[:, 1:].flatten()
    return cross_entropy(logits, aims), (logits.detach().argmax(-1) == aims).float().mean()


@torch.no_grad()
def measure(model: PhiForCausalLM, rows: torch.Tensor) -> tuple[float, float]:
    """Held-out loss and next-token accuracy."""
    model.eval()
    pairs = [(len(part), *loss_of(model, part)) for part in rows.split(16)]
    model.train()
    return tuple(sum(n * float(pair[i]) for n, *pair in pairs) / len(rows) for i in (0, 1))


def complete(header: str, written: str, ended: bool) -> str:
    r"""Return the function that a completion writes: its header and the indented lines that follow.

    If the sample ends before a line that is not indented, its last, unfinished line is left out.

    >>> complete("def f(x):", "\n    return x\n\nprint(f)\n", ended=False)
    'def f(x):\n    return x\n'
    >>> complete("def f(x):", "\n    y = x\n    retu", ended=False)
    'def f(x):\n    y = x\n'
    """
    lines = written.removeprefix("\n").split("\n")
    body = []
    for line in lines if ended else lines[:-1]:
        if line.strip() and not line[0].isspace():
            break
        body.append(line)
    return "\n".join([header, *body]).rstrip() + "\n"


def parses(function: str) -> bool:
    """Whether it is a function with a body that Python parses."""
    try:
        ast.parse(textwrap.dedent(function))
    except (SyntaxError, ValueError):
        return False
    return True


@torch.no_grad()
def completions(model: PhiForCausalLM, prompts: list[str], new_tokens: int) -> list[str]:
    """One sampled completion of every function header, at temperature 0.8 and a fixed seed."""
    tokens = tokenizer()
    tokens.pad_token, tokens.padding_side = tokens.eos_token, "left"
    batch = tokens([f"{prompt}\n" for prompt in prompts], return_tensors="pt", padding=True)
    torch.manual_seed(0)
    model.eval()
    ids = model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=True, temperature=0.8,
        top_k=0, max_new_tokens=new_tokens, pad_token_id=tokens.eos_token_id,
    )[:, batch["input_ids"].shape[1] :]  # fmt: skip
    model.train()
    written = tokens.batch_decode(ids, skip_special_tokens=True)
    ended = (ids == tokens.eos_token_id).any(1).tolist()
    return [complete(*three) for three in zip(prompts, written, ended, strict=True)]


def evaluation_steps(steps: int) -> list[int]:
    """Steps before which the held-out loss is measured: every hundredth of the first tenth, then every twentieth.

    >>> evaluation_steps(100)[:13]
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20]
    """
    shares = [i / 100 for i in range(10)] + [i / 20 for i in range(2, 21)]
    return sorted({round(steps * share) for share in shares})


def train(
    model: PhiForCausalLM, optimizer: torch.optim.Optimizer, text: Text, settings: Settings, *,
    steps: int, peak: float, warmup: float, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Trains a model in place; returns its curve and its final figures."""
    generator = torch.Generator().manual_seed(seed)
    stream = batches(text.training, settings.rows, settings.length, generator)
    held_out = windows(text.held_out, CURVE_WINDOWS, settings.length)
    due = set(evaluation_steps(steps))
    parameters = list(model.parameters())
    warm = max(1, round(warmup * steps))
    began, curve, norms = time.perf_counter(), [], []
    model.train()
    for step in range(steps + 1):
        if step in due:
            curve.append([step * settings.tokens_per_step, round(measure(model, held_out)[0], 5)])
        if step == steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak, warm)
        loss = loss_of(model, next(stream))[0]
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, 1.0)))
        if not math.isfinite(norms[-1]):
            raise FloatingPointError(f"The gradient is {norms[-1]} at step {step}.")
        optimizer.step()
    seconds = time.perf_counter() - began
    final_loss, accuracy = measure(model, windows(text.held_out, FINAL_WINDOWS, settings.length))
    functions = completions(model, text.prompts, settings.new_tokens)
    return {
        "tokens": steps * settings.tokens_per_step,
        "flops_per_token": flops_per_token(model),
        "parameters": sum(p.numel() for p in parameters),
        "curve": curve,
        "final": {
            "loss": round(final_loss, 5),
            "accuracy": round(accuracy, 5),
            "parse": round(sum(map(parses, functions)) / len(functions), 5),
        },
        "largest_early_gradient": round(max(norms[: max(1, steps // 10)]), 4),
        "seconds": round(seconds, 1),
        "samples": functions[:3],
    }


def train_source(folder: Path, seed: int, settings: Settings) -> dict[str, Any]:
    """Trains one small model and keeps it with its optimizer's state, for the arms of its seed."""
    torch.manual_seed(seed)
    model = PhiForCausalLM(source_config())
    optimizer = adamw(model, settings.peak)
    steps = round(settings.source_length * settings.steps)
    result = train(
        model, optimizer, load_text(folder / "text.pt"), settings,
        steps=steps, peak=settings.peak, warmup=0.05, seed=2000 + seed,
    )  # fmt: skip
    part = source_path(folder, seed).with_suffix(".part")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, part)
    part.replace(source_path(folder, seed))
    return result


def source_path(folder: Path, seed: int) -> Path:
    """Where a trained source is kept."""
    return folder / f"source-{seed}.pt"


def load_source(folder: Path, seed: int, settings: Settings) -> tuple[PhiForCausalLM, torch.optim.Optimizer]:
    """A trained source and its optimizer."""
    stored = torch.load(source_path(folder, seed), weights_only=True)
    model = PhiForCausalLM(source_config())
    model.load_state_dict(stored["model"])
    optimizer = adamw(model, settings.peak)
    optimizer.load_state_dict(stored["optimizer"])
    return model, optimizer


def start(arm: Arm, folder: Path, seed: int, settings: Settings) -> tuple[PhiForCausalLM, torch.optim.Optimizer]:
    """The model an arm starts from, and its optimizer."""
    torch.manual_seed(seed)
    if not arm.needs_source:
        model = PhiForCausalLM(target_config())
        return model, adamw(model, settings.peak)
    small, state = load_source(folder, seed, settings)
    if not arm.grows:
        return small, adamw(small, settings.peak)
    recipe = growth.Recipe.model_validate(arm.recipe)
    if not arm.grown_state:
        model = growth.grow_model(small, recipe, seed=seed)
        return model, adamw(model, settings.peak)
    plan = growth.plan(recipe, small, seed=seed)
    model = growth.grow_model(small, plan)
    return model, growth.grow_optimizer(state, small, model, plan, fresh="mean")


def run_arm(arm: Arm, folder: Path, seed: int, settings: Settings) -> dict[str, Any]:
    """Starts and trains one arm; every arm of a seed sees the same batches in the same order."""
    model, optimizer = start(arm, folder, seed, settings)
    return train(
        model, optimizer, load_text(folder / "text.pt"), settings,
        steps=round(arm.length * settings.steps), peak=arm.peak * settings.peak, warmup=arm.warmup, seed=1000 + seed,
    )  # fmt: skip


def store(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON so that it is there whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def job(folder: Path, name: str, arm: Arm | None, seed: int, settings: Settings) -> str:
    """One run in a worker process: trains, stores the result, returns a line for the log."""
    torch.set_num_threads(1)
    result = train_source(folder, seed, settings) if arm is None else run_arm(arm, folder, seed, settings)
    facts = {"arm": arm.name if arm else "source", "seed": seed, "settings": asdict(settings)}
    store(folder / f"{name}.json", {**facts, **result})
    rate = result["tokens"] / result["seconds"]
    first, last = result["curve"][0][1], result["curve"][-1][1]
    return f"{name}: {first:.3f} -> {last:.3f}, {result['seconds']:.0f} s, {rate:,.0f} tokens/s"
