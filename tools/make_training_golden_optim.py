#!/usr/bin/env python3
"""Makes the goldens of optimizers and learning rate schedules in tests/train: what torch and transformers compute.

optimizer.safetensors: per case `NAME.start` and `NAME.grads` [10, ...], and the parameter after one and after ten steps,
`NAME.after1`, `NAME.after10`; the options stand in the metadata as JSON. schedules.json: options and the learning rate
at every step. Needs torch and transformers."""
import json
import math
import pathlib

import torch
import transformers
from safetensors.torch import save_file
from torch.optim.lr_scheduler import LambdaLR, StepLR

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "train"
STEPS = 10


def newton_schulz_in_float32(grad, ns_coefficients, ns_steps, eps):
    """torch's own function with its rounding to bfloat16 left out."""
    a, b, c = ns_coefficients
    x = grad.T.clone() if grad.size(0) > grad.size(1) else grad.clone()
    x /= x.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if grad.size(0) > grad.size(1) else x


def optimizers() -> None:
    torch.optim._muon._zeropower_via_newtonschulz = newton_schulz_in_float32
    muon = {"momentum": 0.95, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    cases = {
        "adamw_matrix": (torch.optim.AdamW, [9, 23], {"lr": 3e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}),
        "adamw_vector": (torch.optim.AdamW, [131], {"lr": 1e-2, "weight_decay": 0.0, "betas": (0.9, 0.999), "eps": 1e-6}),
        "sgd": (torch.optim.SGD, [200], {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
        "sgd_plain": (torch.optim.SGD, [200], {"lr": 0.05, "momentum": 0.0, "weight_decay": 0.0}),
        "muon_wide": (torch.optim.Muon, [12, 40], {"lr": 2e-3, **muon}),
        "muon_tall": (torch.optim.Muon, [33, 7], {"lr": 2e-3, **muon}),
    }
    tensors, options = {}, {}
    for number, (name, (optimizer, shape, settings)) in enumerate(cases.items()):
        generator = torch.Generator().manual_seed(number)
        start = torch.randn(shape, generator=generator)
        # From large to tiny, as gradients within one tensor are.
        scale = 10.0 ** torch.empty(shape).uniform_(-4, 0, generator=generator)
        grads = torch.randn([STEPS, *shape], generator=generator) * scale
        parameter = torch.nn.Parameter(start.clone())
        run = optimizer([parameter], **settings)
        tensors[f"{name}.start"], tensors[f"{name}.grads"] = start, grads
        for step in range(STEPS):
            parameter.grad = grads[step].clone()
            run.step()
            if step in (0, STEPS - 1):
                tensors[f"{name}.after{step + 1}"] = parameter.detach().clone()
        options[name] = {"optimizer": optimizer.__name__, **settings}
    save_file(tensors, OUT / "optimizer.safetensors", {"cases": json.dumps(options)})


def schedules() -> None:
    peak, warmup, total = 4e-5, 10, 60
    t = transformers

    def step_with_warmup(optimizer):
        """StepLR that begins after a linear warm-up."""
        after = StepLR(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), step_size=20, gamma=0.5)
        factors = []
        for _ in range(total):
            factors.append(after.get_last_lr()[0])
            after.optimizer.step()
            after.step()
        return LambdaLR(optimizer, lambda s: s / warmup if s < warmup else factors[s - warmup])

    def wsd(optimizer, decay_type, warmup=warmup, floor=0.0):
        return t.get_wsd_schedule(optimizer, num_warmup_steps=warmup, num_decay_steps=15, num_training_steps=total,
                                  decay_type=decay_type, min_lr_ratio=floor)

    def constant(optimizer):
        return t.get_constant_schedule_with_warmup(optimizer, warmup)

    def linear(optimizer):
        return t.get_linear_schedule_with_warmup(optimizer, warmup, total)

    def cosine(optimizer):
        return t.get_cosine_schedule_with_warmup(optimizer, warmup, total)

    def cosine_floor(optimizer):
        return t.get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, total, min_lr_rate=0.1)

    step = {"type": "step", "step_size": 20, "gamma": 0.5}
    cases = [
        ({"type": "constant"}, constant),
        ({"type": "linear"}, linear),
        ({"type": "linear", "warmup": 0}, lambda o: t.get_linear_schedule_with_warmup(o, 0, total)),
        ({"type": "cosine"}, cosine),
        ({"type": "cosine", "frac": 0.1}, cosine_floor),
        (step, step_with_warmup),
        ({**step, "warmup": 0}, lambda o: StepLR(o, step_size=20, gamma=0.5)),
        ({"type": "wsd", "decay_steps": 15, "decay_shape": "linear"}, lambda o: wsd(o, "linear")),
        ({"type": "wsd", "decay_steps": 15, "decay_shape": "cosine"}, lambda o: wsd(o, "cosine")),
        ({"type": "wsd", "decay_steps": 15, "decay_shape": "1-sqrt"}, lambda o: wsd(o, "1-sqrt")),
        ({"type": "wsd", "decay_steps": 15, "decay_shape": "1-sqrt", "warmup": 0, "frac": 0.2},
         lambda o: wsd(o, "1-sqrt", 0, 0.2)),
        ({"type": "inverse_sqrt"}, lambda o: t.get_inverse_sqrt_schedule(o, warmup)),
        ({"type": "inverse_sqrt", "warmup": 0}, lambda o: t.get_inverse_sqrt_schedule(o, 0)),
    ]
    out = []
    for options, make in cases:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
        schedule = make(optimizer)
        rates = []
        for _ in range(total):
            rates.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        assert all(math.isfinite(r) for r in rates)
        out.append({"peak": peak, "warmup": warmup, "total": total, **options, "rates": rates})
    lines = ",\n".join(json.dumps(case) for case in out)
    (OUT / "schedules.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    optimizers()
    schedules()
