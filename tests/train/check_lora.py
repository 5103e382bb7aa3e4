#!/usr/bin/env python3
"""Holds adapters of reft train against PEFT: trains some on tests/golden/llama, opens each folder with PEFT on the same base,
and compares the log-probability of every token with what reft serve says under the adapter's name.
Usage: check_lora.py REFT, with a Python that has torch, transformers and peft."""
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import peft
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BASE = ROOT / "tests" / "golden" / "llama"
PROMPT = [5, 60, 77, 9, 121, 33, 180, 44, 7, 99, 15, 201]
CASES = {
    "plain": [],
    "dora": ["--use_dora", "--use_rslora", "--lora_rank", "3"],
    "some": ["--lora_target", "q_proj,down_proj", "--lora_layers", "0,2", "--lora_dropout", "0.1"],
}


def train(reft: str, work: pathlib.Path, name: str, flags: list) -> pathlib.Path:
    out = work / name
    subprocess.run([reft, "train", "--fine_tuning_type", "lora", "--model", BASE, "--tokenizer", work / "words",
                    "--datasets", f"rows@{work}/rows.jsonl", "--cutoff_len", "64", "--learning_rate", "1e-2",
                    "--max_steps", "10", "--batch_size", "2", "--checkpoint_dir", out, *flags],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return out


def of_peft(folder: pathlib.Path) -> list:
    base = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        logprobs = model(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    return [logprobs[i, token].item() for i, token in enumerate(PROMPT[1:])]


def of_reft(port: int, name: str) -> list:
    body = {"model": name, "prompt": PROMPT, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 0}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    choice = json.load(urllib.request.urlopen(request))["choices"][0]
    return [entry[str(token)]["logprob"] for entry, token in zip(choice["prompt_logprobs"][1:], PROMPT[1:])]


def main() -> None:
    reft = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        (work / "words").mkdir()
        vocab = {"</s>" if i == 2 else f"w{i}": i for i in range(211)}
        (work / "words" / "tokenizer.json").write_text(json.dumps({
            "version": "1.0", "added_tokens": [{"id": 2, "content": "</s>", "special": True}],
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}}))
        (work / "words" / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
        rows = json.loads((ROOT / "tests" / "train" / "curve.json").read_text())["rows"]
        (work / "rows.jsonl").write_text("".join(
            json.dumps({"text": " ".join(f"w{i}" for i in row)}) + "\n" for row in rows))
        folders = {name: train(reft, work, name, flags) for name, flags in CASES.items()}
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        server = subprocess.Popen([reft, "serve", "--model", BASE, "--tokenizer", work / "words", "--dtype", "float32", "--host", "127.0.0.1",
                                   "--port", str(port), "--lora", *[f"{n}={f}" for n, f in folders.items()]],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                    break
                except OSError:
                    time.sleep(0.1)
            for name, path in folders.items():
                worst = max(abs(a - b) for a, b in zip(of_reft(port, name), of_peft(path)))
                print(f"{name}: log-probabilities differ by at most {worst:.2e}")
                assert worst < 1e-4, name
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
