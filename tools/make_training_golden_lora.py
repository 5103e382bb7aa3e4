#!/usr/bin/env python3
"""Makes tests/train/lora.json and lora_gradients.safetensors with PEFT, from the adapters of make_training_golden_peft.py
on tests/golden/llama: the losses and gradient norms of 30 steps in float32 and every gradient of the first one, which
src/train/lora_test.cpp compares with its own. Dropout is off. Needs torch, transformers and peft."""
import json
import pathlib

import peft
import safetensors.torch
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRAIN = ROOT / "tests" / "train"
STEPS, BATCH_SIZE, ACCUMULATION = 30, 2, 2
OPTIONS = {"learning_rate": 1e-3, "weight_decay": 0.1, "warmup_steps": 5, "max_grad_norm": 1.0}


def key_of(name: str) -> str:
    name = name.replace(".default", "").replace(".modules_to_save", "").removeprefix("base_model.model.")
    return name.replace("magnitude_vector.weight", "magnitude_vector")


def run(name: str, rows: list, eos: int) -> tuple:
    base = transformers.AutoModelForCausalLM.from_pretrained(
        ROOT / "tests" / "golden" / "llama", dtype=torch.float32, attn_implementation="eager")
    config = peft.PeftConfig.from_pretrained(TRAIN / "adapters" / name)
    config.lora_dropout = 0.0
    model = peft.PeftModel.from_pretrained(base, TRAIN / "adapters" / name, is_trainable=True, config=config)
    model.train()
    trained = {key_of(key): p for key, p in model.named_parameters() if p.requires_grad}
    groups = [{"params": [p for p in trained.values() if p.dim() > 1], "weight_decay": OPTIONS["weight_decay"]},
              {"params": [p for p in trained.values() if p.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=OPTIONS["learning_rate"])
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, OPTIONS["warmup_steps"], STEPS)
    curve, gradients = {"loss": [], "grad_norm": []}, {}
    per_step = BATCH_SIZE * ACCUMULATION
    for step in range(STEPS):
        begin = step * per_step % len(rows)
        batch = [row + [eos] for row in rows[begin:begin + per_step]]
        count = sum(len(ids) - 1 for ids in batch)
        total = 0.0
        for ids in batch:  # one at a time: no padding to be masked
            logits = model(torch.tensor([ids])).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum") / count
            loss.backward()
            total += loss.item()
        if step == 0:
            gradients = {f"{name}.{key}": p.grad.clone() for key, p in trained.items()}
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), OPTIONS["max_grad_norm"])
        curve["loss"].append(total)
        curve["grad_norm"].append(norm.item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return curve, gradients


def main() -> None:
    data = json.loads((TRAIN / "curve.json").read_text())
    golden = {"options": {**OPTIONS, "batch_size": BATCH_SIZE, "grad_accumulation_steps": ACCUMULATION, "steps": STEPS}}
    gradients = {}
    for name in ("plain", "patterns"):
        golden[name], of_case = run(name, data["rows"], data["eos"])
        gradients.update(of_case)
    (TRAIN / "lora.json").write_text(json.dumps(golden) + "\n")
    safetensors.torch.save_file(gradients, TRAIN / "lora_gradients.safetensors")


if __name__ == "__main__":
    main()
