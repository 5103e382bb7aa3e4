#!/usr/bin/env python3
"""Makes the adapters in tests/train/adapters with PEFT on the tiny Llama of tests/golden: `plain`, and `patterns`, where
ranks, scales, DoRA and fully trained modules differ. golden.json of each holds the scale of every adapted module, as PEFT
computes it. Needs torch, transformers and peft."""
import json
import pathlib
import shutil

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "train" / "adapters"
CASES = {
    "plain": LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    "patterns": LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, use_dora=True, target_modules="all-linear",
        rank_pattern={"q_proj": 2, "layers.1.mlp.up_proj": 3}, alpha_pattern={"down_proj": 10},
        modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
}


def main() -> None:
    for name, config in CASES.items():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(ROOT / "tests" / "golden" / "llama", dtype=torch.float32)
        model = get_peft_model(model, config)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter)
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        config_file = folder / "adapter_config.json"
        config_json = json.loads(config_file.read_text())
        config_json["base_model_name_or_path"] = "tiny-llama"
        config_file.write_text(json.dumps(config_json, indent=2, sort_keys=True) + "\n")
        scales = {path.removeprefix("base_model.model."): module.scaling["default"]
                  for path, module in model.named_modules() if hasattr(module, "lora_A")}
        (folder / "golden.json").write_text(json.dumps(scales, indent=1) + "\n")
        for file in folder.iterdir():
            file.chmod(0o644)


if __name__ == "__main__":
    main()
