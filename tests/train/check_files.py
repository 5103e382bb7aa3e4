#!/usr/bin/env python3
"""Opens what the test Python.ReadsWhatIsWritten has put into a folder with the programs that users open it with:
check_files.py FOLDER. Needs torch, transformers, peft, safetensors and tensorboard; what is not installed is left out and
said."""
import importlib.util
import json
import pathlib
import sys

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden" / "llama"
ADAPTERS = pathlib.Path(__file__).resolve().parent / "adapters"


def logits(model):
    import torch
    with torch.no_grad():
        return model(torch.arange(1, 20)[None]).logits


def check_safetensors(folder: pathlib.Path) -> None:
    from safetensors import safe_open
    index = json.loads((folder / "model" / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 1
    names = set()
    for shard in shards:
        with safe_open(folder / "model" / shard, "np") as file:
            assert file.metadata() == {"format": "pt"}
            names |= set(file.keys())
            for name in file.keys():
                file.get_tensor(name)
    assert names == set(index["weight_map"])


def check_transformers(folder: pathlib.Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    ours = AutoModelForCausalLM.from_pretrained(folder / "model")
    theirs = AutoModelForCausalLM.from_pretrained(GOLDEN, dtype=torch.float32)
    assert ours.dtype == torch.float32
    assert torch.equal(logits(ours), logits(theirs))


def check_peft(folder: pathlib.Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def load(adapter):
        base = AutoModelForCausalLM.from_pretrained(GOLDEN, dtype=torch.float32)
        return logits(base), logits(PeftModel.from_pretrained(base, adapter))
    for name in ("plain", "patterns"):
        base, ours = load(folder / name)
        assert torch.equal(ours, load(ADAPTERS / name)[1])
        assert not torch.allclose(ours, base)


def check_tensorboard(folder: pathlib.Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder / "log" / "runs"))
    events.Reload()
    loss = events.Scalars("train/loss")
    # Steps 1 to 4, then a run that went on from step 2.
    assert [(e.step, e.value) for e in loss] == [(1, 1.0), (2, 0.5), (3, 8.0), (4, 8.0)], loss
    assert [(e.step, e.value) for e in events.Scalars("eval/loss")] == [(4, 0.75)]


def main() -> int:
    folder = pathlib.Path(sys.argv[1])
    checks = {"safetensors": check_safetensors, "transformers": check_transformers, "peft": check_peft,
              "tensorboard": check_tensorboard}
    for package, check in checks.items():
        if importlib.util.find_spec(package) is None:
            print(f"{package}: not installed")
            continue
        check(folder)
        print(f"{package}: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
