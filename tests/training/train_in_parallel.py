"""One rank of tests/training/test_data_parallel.py: trains a model that grows on the way, and says what it saw."""

import json
import os
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import growth


def main(source, output, *resumed):
    draws = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 200, (12,), generator=draws) for _ in range(32)]
    model = AutoModelForCausalLM.from_pretrained(resumed[0] if resumed else source, dtype=torch.float32)
    args = TrainingArguments(
        output,
        max_steps=6,
        save_steps=4,
        logging_steps=1,
        per_device_train_batch_size=8 // int(os.environ.get("WORLD_SIZE", "1")),
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    callback = growth.GrowthCallback({3: "phi-mini"})
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(model, args, train_dataset=data, callbacks=[callback])
    trainer.train(resume_from_checkpoint=resumed[0] if resumed else None)
    parameters = torch.cat([p.detach().flatten() for p in model.parameters()])
    moments = [entry["exp_avg_sq"].flatten() for entry in trainer.optimizer.state.values()]
    seen = {
        "wrapped": type(trainer.model_wrapped).__name__,
        "logs": [log for log in trainer.state.log_history if "loss" in log or "growth" in log],
        "parameters": parameters.numel(),
        "values": [float(t.double().sum()) for t in (parameters, parameters.abs(), torch.cat(moments))],
    }
    (Path(output) / f"seen{args.process_index}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
