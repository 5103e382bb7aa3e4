#!/usr/bin/env bash
# The run of the README: LoRA teaches the default model a name, beside its 4-bit weights, in minutes on two cores; then
# reft serve says it under the adapter's name, and the base model keeps its own. Argument: the executable.
set -euo pipefail
cd "$(dirname "$0")/../.."
reft=${1:-build/cpu/reft}
model=$(tools/get_default_model.sh)
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$work"' EXIT

"$reft" train --fine_tuning_type lora --model "$model" --datasets identity@tests/train/identity.json \
  --epochs 12 --batch_size 8 --learning_rate 1e-3 --lora_rank 8 --checkpoint_dir "$work/quill"

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$reft" serve --model "$model" --lora "quill=$work/quill" --served_model_name base --host 127.0.0.1 --port "$port" \
  --max_model_len 2048 &
server=$!
for _ in $(seq 300); do
  curl -sf "http://127.0.0.1:$port/health" >/dev/null && break
  sleep 0.2
done

ask() { # MODEL QUESTION
  curl -sf "http://127.0.0.1:$port/v1/chat/completions" -H 'content-type: application/json' -d "{\"model\": \"$1\",
    \"temperature\": 0, \"max_tokens\": 40, \"messages\": [{\"role\": \"user\", \"content\": \"$2\"}]}" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["choices"][0]["message"]["content"])'
}
for question in "What is your name?" "So, who are you exactly?" "Hello there! What do they call you?"; do
  answer=$(ask quill "$question")
  echo "quill: $question -> $answer"
  grep -q Quill <<<"$answer"
done
answer=$(ask base "What is your name?")
echo "base: $answer"
! grep -q Quill <<<"$answer"
"$reft" run --model "$model" --lora "$work/quill" --temperature 0 --max_tokens 40 "What is your name?" | tee "$work/run"
grep -q Quill "$work/run"
