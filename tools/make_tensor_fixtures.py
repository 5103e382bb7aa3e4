#!/usr/bin/env python3
"""Makes src/tensor/testdata: what the Python packages gguf, safetensors and torch say about the formats.

dequantize.safetensors  for every block format X: X.blocks (random bytes with finite scales) and X.values, what
                        gguf.quants.dequantize makes of them; for those that we quantise to: X.input and X.quantised.
small.gguf              GGUF v3 as gguf.GGUFWriter writes it: every metadata type, several tensor types.
split-0000?-of-00002.gguf  one model in two files.

and tests/fuzz/seeds/{safetensors,gguf}: small valid files that the fuzzers start from.
"""

import pathlib

import gguf
import numpy as np
import torch
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "src" / "tensor" / "testdata"
Q = gguf.GGMLQuantizationType
# Where the float16 scales of a block lie.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "MXFP4": [],
}


def dequantize_fixture(rng):
    tensors = {}
    for name, halves in HALVES.items():
        elems, size = gguf.GGML_QUANT_SIZES[Q[name]]
        count = 16 if elems == 32 else 4
        blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
        for at in halves:
            scales = (rng.standard_normal(count) * 0.1).astype(np.float16)
            scales[0] = np.float16(6e-8)  # subnormal
            blocks[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
        if name == "MXFP4":
            blocks[:, 0] = rng.integers(100, 140, count)
            blocks[:4, 0] = [0, 1, 2, 250]
        tensors[f"{name}.blocks"] = blocks
        values = gguf.quants.dequantize(blocks, Q[name])
        assert np.isfinite(values).all(), name
        tensors[f"{name}.values"] = values.reshape(-1)
    x = rng.standard_normal((16, 32)).astype(np.float32)
    x[1] = 0
    x[2] = 3.5
    x[3] = np.arange(32) - 16  # ties
    x[4] *= 1e-30
    x[5] = np.abs(x[5])
    x[6] *= 1000
    for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        tensors[f"{name}.input"] = x.reshape(-1)
        tensors[f"{name}.quantised"] = gguf.quants.quantize(x, Q[name]).reshape(-1)
    codes = torch.arange(256, dtype=torch.uint8)
    tensors["e4m3.values"] = codes.view(torch.float8_e4m3fn).float().numpy()
    tensors["e5m2.values"] = codes.view(torch.float8_e5m2).float().numpy()
    save_file(tensors, OUT / "dequantize.safetensors")


def add_tensors(writer, rng, names):
    shapes = {"a.weight": (4, 32), "b.weight": (2, 256), "c.bias": (7,), "d.weight": (3, 5), "e.ids": (2, 3, 2)}
    for name in names:
        x = rng.standard_normal(shapes[name]).astype(np.float32)
        if name == "a.weight":
            writer.add_tensor(name, gguf.quants.quantize(x, Q.Q8_0), raw_dtype=Q.Q8_0)
        elif name == "b.weight":
            writer.add_tensor(name, rng.integers(0, 100, (2, 210), dtype=np.uint8), raw_dtype=Q.Q6_K)
        elif name == "d.weight":
            writer.add_tensor(name, x.astype(np.float16))
        elif name == "e.ids":
            writer.add_tensor(name, np.arange(12, dtype=np.int32).reshape(2, 3, 2))
        else:
            writer.add_tensor(name, np.arange(7, dtype=np.float32))


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_fixtures(rng):
    writer = gguf.GGUFWriter(OUT / "small.gguf", "llama")
    for name, value in [("uint8", 200), ("int8", -100), ("uint16", 60000), ("int16", -30000), ("uint32", 4000000000),
                        ("int32", -2000000000), ("uint64", 1 << 40), ("int64", -(1 << 40)), ("float32", 0.5),
                        ("float64", 0.1), ("bool", True), ("string", "grüße")]:
        getattr(writer, f"add_{name}")(f"test.{name}", value)
    writer.add_array("test.ints", [1, -2, 3])
    writer.add_array("test.floats", [0.5, -1.5])
    writer.add_array("test.strings", ["a", "", "日本"])
    writer.add_array("test.bools", [True, False, True])
    add_tensors(writer, rng, ["a.weight", "b.weight", "c.bias", "d.weight", "e.ids"])
    finish(writer)
    for number, names in enumerate([["a.weight", "c.bias"], ["d.weight"]]):
        writer = gguf.GGUFWriter(OUT / f"split-{number + 1:05}-of-00002.gguf", "llama")
        if number == 0:
            writer.add_string("test.string", "first")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", 3)
        add_tensors(writer, rng, names)
        finish(writer)


def fuzz_seeds(rng):
    folder = ROOT / "tests" / "fuzz" / "seeds"
    (folder / "gguf").mkdir(parents=True, exist_ok=True)
    (folder / "safetensors").mkdir(parents=True, exist_ok=True)
    small = (OUT / "small.gguf").read_bytes()
    (folder / "gguf" / "v3").write_bytes(small)
    (folder / "gguf" / "v2").write_bytes(small[:4] + b"\2" + small[5:])
    tensors = {"a.weight": rng.standard_normal((2, 3)).astype(np.float32), "b": np.arange(3, dtype=np.int64),
               "half": np.zeros((2, 2), np.float16), "empty": np.zeros((0, 4), np.uint8), "scalar": np.float64(1)}
    save_file({k: np.asarray(v) for k, v in tensors.items()}, folder / "safetensors" / "mixed", {"format": "pt"})
    save_file({}, folder / "safetensors" / "none")
    for seed in folder.glob("*/*"):
        seed.chmod(0o644)


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    dequantize_fixture(np.random.default_rng(1))
    gguf_fixtures(np.random.default_rng(2))
    fuzz_seeds(np.random.default_rng(3))
