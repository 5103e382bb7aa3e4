#!/usr/bin/env python3
"""Checks that every #include in src/ respects the order of the layers (ARCHITECTURE.md)."""
import pathlib
import re
import sys

# Layer -> the layers whose headers it may include besides its own.
ALLOWED = {
    "base": set(),
    "tensor": {"base"},
    "dist": {"base", "tensor"},
    "ops": {"base", "tensor"},
    "backends": {"base", "tensor", "ops"},
    "nn": {"base", "tensor", "ops"},
    "models": {"base", "tensor", "ops", "nn"},
    "text": {"base", "tensor"},
    "hub": {"base"},
    "media": {"base"},
    "engine": {"base", "tensor", "ops", "nn", "models", "text"},
    "speech": {"base", "tensor", "ops", "nn", "models", "text", "media", "engine"},
    "train": {"base", "tensor", "ops", "nn", "models", "text", "engine"},
    "server": {"base", "tensor", "ops", "nn", "models", "text", "media", "engine", "speech"},
    "cli": {"base", "tensor", "ops", "nn", "models", "text", "media", "hub", "engine", "speech", "train", "server"},
}
# Tests may look further: an engine test loads a model file it has written.
TEST_EXTRA = {"server": {"hub"}}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)


def main() -> int:
    root = pathlib.Path(__file__).resolve().parent.parent / "src"
    bad = 0
    seen = 0
    for path in sorted(root.rglob("*")):
        if path.suffix not in {".h", ".cpp", ".cu", ".cuh"}:
            continue
        relative = path.relative_to(root)
        layer = relative.parts[0]
        if layer not in ALLOWED:
            print(f"{relative}: unknown layer '{layer}'")
            bad += 1
            continue
        seen += 1
        allowed = ALLOWED[layer] | {layer}
        if path.stem.endswith("_test"):
            allowed |= TEST_EXTRA.get(layer, set())
        for target in INCLUDE.findall(path.read_text()):
            target_layer = target.split("/")[0]
            if not (root / target).exists():
                print(f"{relative}: includes '{target}', which is not a path below src/")
                bad += 1
            elif target_layer not in allowed:
                print(f"{relative}: layer '{layer}' may not include '{target}'")
                bad += 1
    print(f"check_layers: {seen} files, {bad} violations")
    return 1 if bad or not seen else 0


if __name__ == "__main__":
    sys.exit(main())
