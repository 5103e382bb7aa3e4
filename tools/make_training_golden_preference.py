#!/usr/bin/env python3
"""Makes tests/train/preference.json, which src/train/preference_test.cpp compares with:
- `losses`: each loss of preference tuning on fixed log-probabilities and its gradients, by autograd in double; where TRL
  has the loss as a function of its own, that one's result must be the same,
- `curves`: stages dpo (sigmoid), kto and rm of torch and transformers on tests/golden/llama in float32.
Needs torch, transformers and trl."""
import json
import pathlib
import random
import types

import torch
import torch.nn.functional as F
import transformers
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "tests" / "golden" / "llama"
EOS, VOCAB = 2, 211
LENGTHS = [4, 7, 1, 3, 9, 2]
CASES = {
    "sigmoid": {"loss": "sigmoid", "beta": 0.3},
    "smooth": {"loss": "sigmoid", "beta": 0.3, "label_smoothing": 0.1, "ftx": 0.5},
    "ipo": {"loss": "ipo", "beta": 0.2, "ftx": 0.25},
    "hinge": {"loss": "hinge", "beta": 0.3},
    "orpo": {"loss": "orpo", "beta": 0.1},
    "simpo": {"loss": "simpo", "beta": 2.0, "simpo_gamma": 0.7},
    "kto": {"loss": "kto", "beta": 0.1, "kto_chosen_weight": 1.5, "kto_rejected_weight": 0.5},
    "kto_ftx": {"loss": "kto", "beta": 0.2, "ftx": 0.3},
}
TRAINING = {"learning_rate": 2e-3, "weight_decay": 0.1, "warmup_steps": 3, "max_grad_norm": 1.0, "steps": 24,
            "grad_accumulation_steps": 2}
BATCH_SIZE = {"dpo": 2, "kto": 3, "rm": 2}
ROWS = 24


def pair_losses(case: dict, policy, reference, lengths):
    """Losses and rewards of pairs from sums of log-probabilities."""
    beta, gamma = case["beta"], case.get("simpo_gamma", 0.5)
    mean = policy / lengths
    chosen, rejected = mean[0::2], mean[1::2]
    ratio = policy - reference
    if case["loss"] in ("orpo", "simpo"):
        fake = types.SimpleNamespace(beta=beta, simpo_gamma=gamma, loss_type="simpo", label_smoothing=0,
                                     accelerator=types.SimpleNamespace(device="cpu"))
        if case["loss"] == "orpo":
            odds = (chosen - torch.log1p(-torch.exp(chosen))) - (rejected - torch.log1p(-torch.exp(rejected)))
            losses = -chosen - beta * F.logsigmoid(odds)
            theirs = -chosen - ORPOTrainer.odds_ratio_loss(fake, chosen, rejected)[0]
        else:
            losses = -F.logsigmoid(beta * (chosen - rejected) - gamma)
            fake.alpha = 0.0
            theirs = CPOTrainer.cpo_loss(fake, chosen, rejected)[0]
        assert torch.allclose(losses, theirs.double(), rtol=0, atol=1e-6), case  # ORPO's is in float
        rewards = beta * mean
    else:
        if case["loss"] == "ipo":
            ratio = ratio / lengths
        h = ratio[0::2] - ratio[1::2]
        smoothing = case.get("label_smoothing", 0.0)
        losses = {"sigmoid": -F.logsigmoid(beta * h) * (1 - smoothing) - F.logsigmoid(-beta * h) * smoothing,
                  "hinge": torch.relu(1 - beta * h),
                  "ipo": (h - 1 / (2 * beta)) ** 2}[case["loss"]]
        rewards = beta * ratio
    return losses - case.get("ftx", 0.0) * chosen, rewards


def kto_losses(case: dict, policy, reference, lengths, desirable, kl):
    """The losses of rows, with the term of sft on the good ones as LLaMA-Factory adds it to their mean."""
    ratio = policy - reference
    beta = case["beta"]
    losses = torch.where(desirable, case.get("kto_chosen_weight", 1.0) * (1 - torch.sigmoid(beta * (ratio - kl))),
                         case.get("kto_rejected_weight", 1.0) * (1 - torch.sigmoid(beta * (kl - ratio))))
    if "ftx" in case:
        sft = -(policy / lengths)[desirable]
        losses = losses + case["ftx"] * sft.mean() / len(sft) * len(losses)
    return losses, beta * ratio


def make_losses() -> dict:
    torch.manual_seed(3)
    count = sum(LENGTHS)
    tokens = -torch.rand(count, dtype=torch.double) * 3
    reference_tokens = tokens + torch.randn(count, dtype=torch.double) * 0.7
    tokens.requires_grad = True
    lengths = torch.tensor(LENGTHS, dtype=torch.double)
    sums = torch.stack([part.sum() for part in tokens.split(LENGTHS)])
    reference = torch.stack([part.sum() for part in reference_tokens.split(LENGTHS)])
    desirable = torch.tensor([True, False, True, True, False, False])
    kl = (sums - reference).mean().clamp(min=0).detach()
    result = {"lengths": LENGTHS, "policy": tokens.tolist(), "reference": reference_tokens.tolist(),
              "desirable": desirable.tolist(), "kl": kl.item(), "cases": {}}
    for name, case in CASES.items():
        if case["loss"] == "kto":
            losses, rewards = kto_losses(case, sums, reference, lengths, desirable, kl)
        else:
            losses, rewards = pair_losses(case, sums, reference, lengths)
        gradient, = torch.autograd.grad(losses.sum(), tokens, retain_graph=True)
        result["cases"][name] = {"options": case, "loss": losses.sum().item(), "units": len(losses),
                                 "gradient": gradient.tolist(), "rewards": rewards.tolist()}
    scores = torch.randn(6, dtype=torch.double, requires_grad=True)
    losses = -F.logsigmoid(scores[0::2] - scores[1::2])
    gradient, = torch.autograd.grad(losses.sum(), scores)
    result["reward"] = {"scores": scores.tolist(), "loss": losses.sum().item(), "gradient": gradient.tolist()}
    return result


def make_rows() -> list:
    rng = random.Random(11)

    def words(low, high):
        return [rng.randrange(3, VOCAB) for _ in range(rng.randrange(low, high))]

    return [{"prompt": words(2, 12), "chosen": words(1, 15), "rejected": words(1, 15), "desirable": rng.random() < 0.5}
            for _ in range(ROWS)]


def log_probs(model, prompt: list, answer: list):
    """Sum of log p over the answer and its end-of-turn token, and their number."""
    ids = torch.tensor([prompt + answer + [EOS]])
    logits = model(ids).logits[0, :-1].log_softmax(-1)
    picked = logits.gather(1, ids[0, 1:, None])[len(prompt) - 1:, 0]
    return picked.sum(), len(picked)


class Head(torch.nn.Module):
    """TRL's value head without its dropout."""

    def __init__(self, hidden: int):
        super().__init__()
        self.summary = torch.nn.Linear(hidden, 1)


def batch_loss(stage: str, rows: list, model, reference, head):
    """The sum of the losses of a micro-batch, and what is logged of it."""
    if stage == "rm":
        scores = torch.stack([
            head.summary(model(torch.tensor([row["prompt"] + row[side] + [EOS]]), output_hidden_states=True)
                         .hidden_states[-1][0, -1])[0] for row in rows for side in ("chosen", "rejected")])
        return -F.logsigmoid(scores[0::2] - scores[1::2]).sum(), scores.detach()

    def both(prompt, answer):
        with torch.no_grad():
            other, _ = log_probs(reference, prompt, answer)
        own, length = log_probs(model, prompt, answer)
        return own, other, length

    if stage == "dpo":
        parts = [both(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    else:
        parts = [both(row["prompt"], row["chosen"]) for row in rows]
    policy, other = (torch.stack([part[i] for part in parts]) for i in range(2))
    lengths = torch.tensor([part[2] for part in parts], dtype=torch.float32)
    if stage == "dpo":
        losses, rewards = pair_losses({"loss": "sigmoid", "beta": 0.1}, policy, other, lengths)
        return losses.sum(), rewards.detach()
    with torch.no_grad():
        apart = [both(row["prompt"], rows[(i + 1) % len(rows)]["chosen"]) for i, row in enumerate(rows)]
        kl = torch.stack([own - theirs for own, theirs, _ in apart]).mean().clamp(min=0)
    desirable = torch.tensor([row["desirable"] for row in rows])
    losses, rewards = kto_losses({"beta": 0.1}, policy, other, lengths, desirable, kl)
    return losses.sum(), rewards.detach()


def make_curve(stage: str, rows: list) -> dict:
    torch.manual_seed(7)

    def load():
        return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager")

    model, reference = load(), load()
    head = Head(model.config.hidden_size)
    parameters = [p for name, p in model.named_parameters() if not (stage == "rm" and name == "lm_head.weight")]
    if stage == "rm":
        parameters += list(head.parameters())
    curve = {"weight": head.summary.weight[0].tolist(), "bias": head.summary.bias.item(), "batch_size": BATCH_SIZE[stage],
             "loss": [], "grad_norm": [], "rewards": []}
    groups = [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": TRAINING["weight_decay"]},
              {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=TRAINING["learning_rate"])
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, TRAINING["warmup_steps"], TRAINING["steps"])
    size, accumulation = BATCH_SIZE[stage], TRAINING["grad_accumulation_steps"]
    for step in range(TRAINING["steps"]):
        begin = step * size * accumulation % ROWS
        total, rewards = 0.0, []
        for micro in range(accumulation):
            batch = rows[begin + micro * size:begin + (micro + 1) * size]
            loss, reward = batch_loss(stage, batch, model, reference, head)
            loss = loss / (size * accumulation)
            loss.backward()
            total += loss.item()
            rewards += reward.tolist()
        norm = torch.nn.utils.clip_grad_norm_(parameters, TRAINING["max_grad_norm"])
        curve["loss"].append(total)
        curve["grad_norm"].append(norm.item())
        curve["rewards"].append(rewards)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return curve


def main() -> None:
    torch.set_num_threads(1)
    rows = make_rows()
    golden = {"losses": make_losses(), "eos": EOS, "options": TRAINING, "rows": rows,
              "curves": {stage: make_curve(stage, rows) for stage in BATCH_SIZE}}
    (ROOT / "tests" / "train" / "preference.json").write_text(json.dumps(golden) + "\n")
    for stage, curve in golden["curves"].items():
        print(stage, curve["loss"][0], curve["loss"][-1])


if __name__ == "__main__":
    main()
