#!/usr/bin/env python3
"""Makes the quantised cases of tests/golden: checkpoints in the layouts that vLLM, AutoAWQ, GPTQModel, compressed-tensors
and ModelOpt write, with what transformers computes in float32 from the weights that they stand for.

The quantised tensors are written here, in numpy, by the documented layouts: no quantisation library is involved. The
files and golden.safetensors are those of make_golden.py. Weights are rounded to the nearest code; what matters is that
every code, scale, zero point and order is used.

Usage: make_quantized_golden.py [case ...]     (torch, transformers, safetensors)
"""

import json
import shutil
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

import make_golden
from make_golden import ROOT

LINEAR = dict(num_hidden_layers=2)
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # the column of each nibble of a word


def pack_words(codes, bits, axis):
    """Unsigned codes, 32 / bits of them along `axis` to a little-endian int32."""
    per = 32 // bits
    codes = np.moveaxis(codes.astype(np.uint32), axis, -1)
    rest = -codes.shape[-1] % per
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, rest)])
    codes = codes.reshape(*codes.shape[:-1], -1, per)
    words = np.zeros(codes.shape[:-1], np.uint32)
    for i in range(per):
        words |= codes[..., i] << np.uint32(bits * i)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(words.view(np.int32), -1, axis)))


def group_codes(w, bits, group, symmetric, order=None):
    """w [N, K] to codes [N, K], zero points and float16 scales [N, G], and the numbers they stand for."""
    n, k = w.shape
    groups = -(-k // group)
    of = np.arange(k) // group if order is None else order
    most = 2 ** bits - 1
    codes, zeros = np.zeros((n, k), np.int64), np.zeros((n, groups), np.int64)
    scales = np.zeros((n, groups), np.float16)
    for g in range(groups):
        part = w[:, of == g]
        if symmetric:
            scale = 2 * np.abs(part).max(1) / most
            zero = np.full(n, 2 ** (bits - 1))
        else:
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scale = (high - low) / most
            zero = None
        scales[:, g] = np.maximum(scale, 1e-4).astype(np.float16)
        s = scales[:, g].astype(np.float64)
        zeros[:, g] = np.clip(np.round(-low / s), 1, most) if zero is None else zero
        codes[:, of == g] = np.clip(np.round(part / s[:, None]) + zeros[:, g, None], 0, most)
    values = (codes - zeros[:, of]) * scales.astype(np.float64)[:, of]
    return codes, zeros, scales, values


def awq(name, w, _):
    codes, zeros, scales, values = group_codes(w, 4, 32, False)

    def pack(matrix):  # [rows, N]
        rows, n = matrix.shape
        return pack_words(matrix.reshape(rows, n // 8, 8)[:, :, AWQ_ORDER].reshape(rows, n), 4, 1)

    return {"qweight": pack(codes.T), "qzeros": pack(zeros.T), "scales": torch.from_numpy(scales.T.copy())}, values


def gptq(bits, group, symmetric, act_order):
    def write(name, w, rng):
        k = w.shape[1]
        size = k if group < 0 else group
        order = rng.permutation(np.arange(k) // size) if act_order else np.arange(k) // size
        codes, zeros, scales, values = group_codes(w, bits, size, symmetric, order)
        return {"qweight": pack_words(codes.T, bits, 0), "qzeros": pack_words(zeros.T - 1, bits, 1),
                "scales": torch.from_numpy(scales.T.copy()),
                "g_idx": torch.from_numpy(order.astype(np.int32))}, values
    return write


def packed(group, symmetric):
    def write(name, w, _):
        n, k = w.shape
        codes, zeros, scales, values = group_codes(w, 4, k if group < 0 else group, symmetric)
        tensors = {"weight_packed": pack_words(codes, 4, 1), "weight_scale": torch.from_numpy(scales),
                   "weight_shape": torch.tensor([n, k])}
        if not symmetric:
            tensors["weight_zero_point"] = pack_words(zeros, 4, 0)
        return tensors, values
    return write


def to_fp8(x):
    return torch.from_numpy(x).float().clamp(-448, 448).to(torch.float8_e4m3fn)


def fp8_block(name, w, _):
    n, k = w.shape
    scales = np.zeros((-(-n // 128), -(-k // 128)), np.float32)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            scales[i, j] = np.abs(w[i * 128:(i + 1) * 128, j * 128:(j + 1) * 128]).max() / 448
    full = np.repeat(np.repeat(scales, 128, 0)[:n], 128, 1)[:, :k].astype(np.float64)
    codes = to_fp8(w / full)
    return {"weight": codes, "weight_scale_inv": torch.from_numpy(scales)}, codes.double().numpy() * full


def fp8_channel(name, w, _):
    scales = torch.from_numpy(np.abs(w).max(1, keepdims=True) / 448).to(torch.bfloat16)
    codes = to_fp8(w / scales.double().numpy())
    return {"weight": codes, "weight_scale": scales}, codes.double().numpy() * scales.double().numpy()


def fp8_tensor(name, w, _):
    scale = np.float32(np.abs(w).max() / 448)
    codes = to_fp8(w / np.float64(scale))
    return {"weight": codes, "weight_scale": torch.tensor(scale), "input_scale": torch.tensor(0.03)}, \
        codes.double().numpy() * np.float64(scale)


def int8_channel(name, w, _):
    scales = (np.abs(w).max(1, keepdims=True) / 127).astype(np.float32)
    codes = np.round(w / scales).astype(np.int8)
    return {"weight": torch.from_numpy(codes), "weight_scale": torch.from_numpy(scales)}, \
        codes.astype(np.float64) * scales.astype(np.float64)


def compressed(fmt, **weights):
    return dict(quant_method="compressed-tensors", format=fmt, quantization_status="compressed", ignore=["lm_head"],
                config_groups=dict(group_0=dict(targets=["Linear"], weights=dict(dict(
                    num_bits=4, type="int", symmetric=True, strategy="group", group_size=None), **weights))))


# name: (config class, overrides, writer, quantization_config)
CASES = {
    "quant_fp8_block": ("Qwen3Config", dict(hidden_size=160, intermediate_size=192, head_dim=32), fp8_block,
                        dict(quant_method="fp8", activation_scheme="dynamic", fmt="e4m3", weight_block_size=[128, 128],
                             modules_to_not_convert=["lm_head"])),
    "quant_fp8_channel": ("LlamaConfig", dict(hidden_size=64, intermediate_size=96, head_dim=16), fp8_channel,
                          compressed("float-quantized", num_bits=8, type="float", strategy="channel")),
    "quant_fp8_tensor": ("Qwen2Config", dict(hidden_size=64, intermediate_size=80, head_dim=None), fp8_tensor,
                         dict(quant_method="modelopt", quant_algo="FP8", exclude_modules=["lm_head"])),
    "quant_int8": ("LlamaConfig", dict(hidden_size=64, intermediate_size=96, head_dim=16), int8_channel,
                   compressed("int-quantized", num_bits=8, strategy="channel")),
    "quant_awq": ("LlamaConfig", dict(hidden_size=64, intermediate_size=128, head_dim=16), awq,
                  dict(quant_method="awq", bits=4, group_size=32, zero_point=True, version="gemm")),
    "quant_gptq": ("Qwen3Config", dict(hidden_size=64, intermediate_size=128, head_dim=16), gptq(4, 64, True, False),
                   dict(quant_method="gptq", bits=4, group_size=64, sym=True, desc_act=False)),
    "quant_gptq_act": ("LlamaConfig", dict(hidden_size=64, intermediate_size=96, head_dim=16),
                       gptq(4, 32, False, True),
                       dict(quant_method="gptq", bits=4, group_size=32, sym=False, desc_act=True)),
    "quant_gptq_8bit": ("LlamaConfig", dict(hidden_size=64, intermediate_size=96, head_dim=16),
                        gptq(8, -1, True, False),
                        dict(quant_method="gptq", bits=8, group_size=-1, sym=True, desc_act=False)),
    "quant_packed": ("Qwen2Config", dict(hidden_size=64, intermediate_size=96, head_dim=None), packed(32, False),
                     compressed("pack-quantized", symmetric=False, group_size=32)),
}


def make_case(name):
    kind, overrides, write, quantization = CASES[name]
    folder = ROOT / name
    config = make_golden.make_config(kind, LINEAR | overrides)
    config._attn_implementation = "eager"
    for seed in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rng = np.random.default_rng(seed)
        model = getattr(transformers, make_golden.ARCHITECTURES[kind])(config)
        make_golden.redraw(model, seed)
        # What is not quantised is stored as it is loaded.
        model.to(torch.bfloat16).save_pretrained(folder)
        stored = load_file(folder / "model.safetensors")
        model = make_golden.load(folder)
        state = model.state_dict()
        for key in [k for k in stored if k.endswith("_proj.weight")]:
            tensors, values = write(key, stored.pop(key).double().numpy(), rng)
            prefix = key.removesuffix("weight")
            stored |= {prefix + part: tensor.contiguous() for part, tensor in tensors.items()}
            state[key] = torch.from_numpy(values).float()
        model.load_state_dict(state)
        generator = torch.Generator().manual_seed(1000 + seed)
        input_ids = torch.randint(3, 190, (make_golden.PROMPT_LEN,), generator=generator)
        golden = make_golden.serve_goldens(model, input_ids)
        if make_golden.is_telling(golden):
            break
    else:
        raise SystemExit(f"{name}: no seed gives clear greedy choices")
    golden["input_ids"] = input_ids.to(torch.int32)
    for key, low in (("bf16_error", torch.bfloat16), ("fp16_error", torch.float16)):
        golden[key] = make_golden.rounding_error(model, input_ids, golden["logits"], low).reshape(1)
    save_file({k: v.contiguous() for k, v in golden.items()}, folder / "golden.safetensors")
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config_json = json.loads((folder / "config.json").read_text()) | {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config_json, indent=2) + "\n")
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": [2, 5], "temperature": 0.7}, indent=2) + "\n")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: seed {seed}, margin {make_golden.margin(golden):.3f}, "
          f"bf16 error {golden['bf16_error'].item():.4f}, {size // 1024} KiB", flush=True)


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for name in sys.argv[1:] or CASES:
        make_case(name)


if __name__ == "__main__":
    main()
