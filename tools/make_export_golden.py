#!/usr/bin/env python3
"""Makes what src/train/export_test.cpp compares with: in tests/train/adapters/<name> the logits of the tiny Llama with PEFT's
adapter beside its weights, not merged (`logits.safetensors`: ids, logits), and a third adapter, `tied`, on a model whose
head is its embedding. With --ggml <libggml-base.so>, tests/train/q4_k.json too: the errors of ggml's Q4_K on fixed values,
which ours must not exceed. Needs torch, transformers and peft, all on the CPU."""
import argparse
import ctypes
import json
import math
import pathlib
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parent.parent
ADAPTERS = ROOT / "tests" / "train" / "adapters"
BASES = {"plain": "llama", "patterns": "llama", "tied": "smollm2"}
Q4_K, BLOCK, BLOCK_BYTES = 12, 256, 144


def load(base: str):
    return AutoModelForCausalLM.from_pretrained(ROOT / "tests" / "golden" / base, dtype=torch.float32,
                                                attn_implementation="eager")


def make_tied() -> None:
    torch.manual_seed(4)
    model = get_peft_model(load(BASES["tied"]), LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "lm_head"],
                                                           task_type="CAUSAL_LM"))
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    folder = ADAPTERS / "tied"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "tiny-smollm2"
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def make_logits(name: str) -> None:
    model = PeftModel.from_pretrained(load(BASES[name]), ADAPTERS / name)
    model.eval()
    generator = torch.Generator().manual_seed(9)
    ids = torch.randint(3, model.config.vocab_size, (1, 24), generator=generator)
    with torch.no_grad():
        logits = model(ids).logits[0]
    save_file({"ids": ids[0].int(), "logits": logits.contiguous()}, ADAPTERS / name / "logits.safetensors")
    for file in (ADAPTERS / name).iterdir():
        file.chmod(0o644)


def fixed_values(kind: str) -> list:
    """Values that need no library to be made again: a linear congruential generator, shaped."""
    state, values = 12345, []
    for i in range(16 * BLOCK):
        total = 0
        for _ in range(4):
            state = (state * 1664525 + 1013904223) % 2**32
            total += state / 2**32 - 0.5
        x = total * 0.05
        values.append({"bell": x, "outliers": x * (20 if i % 97 == 0 else 1), "shifted": x + 0.04,
                       "cubed": (total * 2) ** 3}[kind])
    return values


def make_q4_k(library: str) -> None:
    ggml = ctypes.CDLL(library)
    golden = {}
    for kind in ("bell", "outliers", "shifted", "cubed"):
        values = fixed_values(kind)
        source = (ctypes.c_float * len(values))(*values)
        blocks = (ctypes.c_uint8 * (len(values) // BLOCK * BLOCK_BYTES))()
        result = (ctypes.c_float * len(values))()
        ggml.quantize_row_q4_K_ref(source, blocks, ctypes.c_int64(len(values)))
        ggml.dequantize_row_q4_K(blocks, result, ctypes.c_int64(len(values)))
        weighted = 0.0
        for begin in range(0, len(values), 32):
            group = source[begin:begin + 32]
            typical = math.sqrt(sum(x * x for x in group) / 32)
            weighted += sum((typical + abs(x)) * (x - y) ** 2 for x, y in zip(group, result[begin:begin + 32]))
        golden[kind] = {"weighted": weighted, "squared": sum((x - y) ** 2 for x, y in zip(source, result))}
    (ROOT / "tests" / "train" / "q4_k.json").write_text(json.dumps(golden, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ggml", help="path of libggml-base.so")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    make_tied()
    for name in BASES:
        make_logits(name)
    if arguments.ggml:
        make_q4_k(arguments.ggml)


if __name__ == "__main__":
    main()
