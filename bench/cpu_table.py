#!/usr/bin/env python3
"""Prints the CPU speed table of the README: reft against llama.cpp on the same GGUF files and threads, alternating.

    bench/cpu_table.py [--reft build/cpu/reft] [--runs 3] [--threads 2] [--formats Q4_1,Q8_0,BF16]

Prompt: 512 tokens at once. Generation: 128 tokens after an (almost) empty context. Eight streams: 8 concurrent HTTP
requests of 128 in / 128 out against `reft serve` and `llama-server -np 8`, measured by `reft bench serve`.
"""
import argparse
import json
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent


def output(*command: object) -> str:
    run = subprocess.run([str(c) for c in command], text=True, capture_output=True)
    if run.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{run.stdout}{run.stderr}")
    return run.stdout


def peer_speed(peer: pathlib.Path, model: pathlib.Path, threads: int) -> tuple[float, float]:
    rows = json.loads(output(peer / "llama-bench", "-m", model, "-p", 512, "-n", 128, "-t", threads, "-r", 1, "-o", "json"))
    prompt = next(r["avg_ts"] for r in rows if r["n_prompt"])
    generation = next(r["avg_ts"] for r in rows if r["n_gen"])
    return prompt, generation


def reft_speed(reft: str, model: pathlib.Path, threads: int) -> tuple[float, float]:
    def latency(inputs: int, outputs: int) -> str:
        return output(reft, "bench", "latency", "--model", model, "--threads", threads, "--input-len", inputs,
                      "--output-len", outputs, "--batch-size", 1, "--num-iters", 1, "--max-model-len", 2048)

    prompt = float(re.search(r"prompt ([\d.]+) tokens/s", latency(512, 1))[1])
    generation = float(re.search(r"TPOT: [\d.]+ ms \(([\d.]+) tokens/s", latency(1, 128))[1])
    return prompt, generation


def eight_streams(reft: str, server: list[object], model: pathlib.Path) -> float:
    """Output tokens per second of a server that listens on the port that is appended to its command."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([*map(str, server), "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        with tempfile.NamedTemporaryFile(suffix=".json") as result:
            output(reft, "bench", "serve", "--port", port, "--model", model, "--num-prompts", 32, "--max-concurrency", 8,
                   "--input-len", 128, "--output-len", 128, "--num-warmups", 2, "--quiet", "--save-result", result.name)
            numbers = json.load(open(result.name))
        if numbers["failed"]:
            sys.exit(f"{numbers['failed']} requests failed against {server[0]}")
        return numbers["output_throughput"]
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reft", default=str(ROOT / "build/cpu/reft"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--formats", default="Q4_1,Q8_0,BF16")
    args = parser.parse_args()
    peer = pathlib.Path(output(ROOT / "bench/peers/build_llama_cpp.sh").strip())
    source = pathlib.Path(output(ROOT / "tools/get_default_model.sh").strip())
    print(f"| case | llama.cpp | reft | ratio |\n|---|---|---|---|")
    for name in args.formats.split(","):
        model = source.with_name(source.name.replace("Q4_1", name))
        if not model.exists():
            output(peer / "llama-quantize", "--allow-requantize", source, model, name)
        pairs = [(peer_speed(peer, model, args.threads), reft_speed(args.reft, model, args.threads))
                 for _ in range(args.runs)]
        for i, case in enumerate(("prompt 512", "generation 128")):
            theirs = statistics.median(p[0][i] for p in pairs)
            ours = statistics.median(p[1][i] for p in pairs)
            print(f"| {name}, {case} | {theirs:.0f} tok/s | {ours:.0f} tok/s | {ours / theirs:.2f} |", flush=True)
        if name != "Q4_1":
            continue
        streams = [(eight_streams(args.reft, [peer / "llama-server", "-m", model, "-t", args.threads, "-np", 8, "-c", 4096], model),
                    eight_streams(args.reft, [args.reft, "serve", "--model", model, "--threads", args.threads,
                                              "--max-model-len", 2048], model))
                   for _ in range(args.runs)]
        theirs, ours = (statistics.median(s[i] for s in streams) for i in (0, 1))
        print(f"| {name}, 8 streams over HTTP | {theirs:.0f} tok/s | {ours:.0f} tok/s | {ours / theirs:.2f} |", flush=True)


if __name__ == "__main__":
    main()
