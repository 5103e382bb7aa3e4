#!/usr/bin/env python3
"""Times transformers on random weights: eager, and compiled with a static cache. Called by bench/gpu_serve --peers.

    transformers_serve.py MODEL_FOLDER '[["key", INPUTS, OUTPUTS, STREAMS], …]'

Prints a line of JSON per case and mode: ttft and tpot in ms, medians of three. A batch starts at once and is as long for
all, which is the best that generate() can be given; there is no HTTP in between.
"""
import json
import statistics
import sys
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def seconds(model, ids, outputs, **kwargs):
    torch.cuda.synchronize()
    start = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=outputs, min_new_tokens=outputs, do_sample=False,
                   pad_token_id=0, eos_token_id=None, **kwargs)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def median(model, ids, outputs, **kwargs):
    # A static cache is as long as the request, and a new length is a new compilation: before the clock starts.
    for _ in range(2):
        seconds(model, ids, outputs, **kwargs)
    return statistics.median(seconds(model, ids, outputs, **kwargs) for _ in range(3))


def times(model, ids, outputs, **kwargs):
    first = median(model, ids, 1, **kwargs)
    if outputs <= 2:
        return {"ttft": first * 1e3}
    whole = median(model, ids, outputs, **kwargs)
    return {"ttft": first * 1e3, "tpot": (whole - first) / (outputs - 1) * 1e3}


def main():
    folder, cases = sys.argv[1], json.loads(sys.argv[2])
    config = AutoConfig.from_pretrained(folder)
    with torch.device("cuda"), torch.inference_mode():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        model.generation_config.eos_token_id = None
        for key, inputs, outputs, streams in cases:
            ids = torch.randint(256, config.vocab_size, (streams, inputs))
            for mode, kwargs in (("eager", {}), ("compiled", {"cache_implementation": "static"})):
                try:
                    print(json.dumps({"key": key, "mode": mode, **times(model, ids, outputs, **kwargs)}), flush=True)
                except Exception as e:  # one that does not fit or does not compile is no reason to lose the others
                    print(f"{key}, {mode}: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
