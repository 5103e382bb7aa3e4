#!/usr/bin/env python3
"""Trains a model of random weights with PyTorch and prints how fast, as a line of JSON: what bench/train compares with.

transformers' model, scaled dot product attention, torch.compile, fused AdamW. --master: float32 parameters under autocast
(masters and states in float32); else parameters and states have --dtype.
"""
import argparse
import contextlib
import json
import statistics
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

H100_FLOPS = 989.4e12


def flops_of_step(model: torch.nn.Module, config: object, sequences: int, length: int) -> float:
    embedding = config.vocab_size * config.hidden_size
    matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    matrices += 0 if config.tie_word_embeddings else -embedding
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * head_dim
    return 6 * matrices * sequences * length + attention * sequences * length**2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--master", action="store_true")
    args = parser.parse_args()
    cuda = args.device == "cuda"
    torch.manual_seed(1)
    if not cuda:
        torch.set_num_threads(args.threads)
    config = AutoConfig.from_pretrained(args.model)
    dtype = getattr(torch, args.dtype)
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if args.master else dtype,
                                                 attn_implementation="sdpa")
    model.config.use_cache = False
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    compiled = torch.compile(model)
    ids = torch.randint(0, 1000, (args.batch, args.length), device=args.device)
    seconds = []
    for _ in range(args.steps):
        begin = time.perf_counter()
        for _ in range(args.accumulation):
            autocast = torch.autocast(args.device, dtype=dtype) if args.master else contextlib.nullcontext()
            with autocast:
                loss = compiled(input_ids=ids, labels=ids).loss / args.accumulation
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.perf_counter() - begin)
    step = statistics.median(seconds[args.steps // 3:])
    sequences = args.batch * args.accumulation
    known = cuda and "H100" in torch.cuda.get_device_name() and args.dtype == "bfloat16"
    memory = torch.cuda.max_memory_allocated() if cuda else 0
    if not cuda:
        import resource
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tokens_per_second": sequences * args.length / step,
                      "mfu": flops_of_step(model, config, sequences, args.length) / step / H100_FLOPS if known else 0,
                      "memory": memory, "loss": loss.item() * args.accumulation}))


if __name__ == "__main__":
    main()
