#!/usr/bin/env python3
"""Makes tests/train/curve.json: the losses, gradient norms and learning rates of 30 steps of torch and transformers on
tests/golden/llama in float32, whole and with frozen layers, which src/train/trainer_test.cpp compares with a run of its
own. Rows are of different lengths; a step is two micro-batches of two rows. Needs torch and transformers."""
import json
import pathlib
import random

import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent
EOS = 2
ROWS, STEPS, BATCH_SIZE, ACCUMULATION = 24, 30, 2, 2
OPTIONS = {"learning_rate": 2e-3, "weight_decay": 0.1, "warmup_steps": 5, "max_grad_norm": 1.0}


def make_rows() -> list:
    rng = random.Random(5)
    return [[rng.randrange(3, 211) for _ in range(rng.randrange(3, 40))] for _ in range(ROWS)]


def run(rows: list, trainable) -> dict:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        ROOT / "tests" / "golden" / "llama", dtype=torch.float32, attn_implementation="eager")
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = trainable(name)
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": OPTIONS["weight_decay"]},
              {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=OPTIONS["learning_rate"])
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, OPTIONS["warmup_steps"], STEPS)
    curve = {"loss": [], "grad_norm": [], "lr": []}
    per_step = BATCH_SIZE * ACCUMULATION
    for step in range(STEPS):
        begin = step * per_step % ROWS
        batch = [row + [EOS] for row in rows[begin:begin + per_step]]
        count = sum(len(ids) - 1 for ids in batch)
        total = 0.0
        for ids in batch:  # one at a time: no padding to be masked
            logits = model(torch.tensor([ids])).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum") / count
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, OPTIONS["max_grad_norm"])
        curve["loss"].append(total)
        curve["grad_norm"].append(norm.item())
        curve["lr"].append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return curve


def main() -> None:
    rows = make_rows()
    golden = {"options": {**OPTIONS, "batch_size": BATCH_SIZE, "grad_accumulation_steps": ACCUMULATION, "steps": STEPS},
              "eos": EOS, "rows": rows,
              "full": run(rows, lambda name: True),
              "freeze": run(rows, lambda name: name.startswith("model.layers.2."))}
    (ROOT / "tests" / "train" / "curve.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
