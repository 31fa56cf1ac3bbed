"""Runs of a real Trainer on a tiny Llama."""

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

VOCAB, LENGTH = 61, 8


def tiny(dropout=0.0, layers=2):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        attention_dropout=dropout,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def rows(count=64):
    ids = torch.randint(1, VOCAB, (count, LENGTH), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in ids]


def trainer(folder, model, *callbacks, steps=4, kind=Trainer, **changes):
    options = {
        "max_steps": steps,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "include_num_input_tokens_seen": "all",
        "dataloader_pin_memory": False,
        **changes,
    }
    given = {"model_init": model} if not isinstance(model, torch.nn.Module) else {"model": model}
    return kind(
        args=TrainingArguments(str(folder), **options),
        train_dataset=rows(),
        eval_dataset=rows(4),
        callbacks=list(callbacks),
        **given,
    )
