#!/usr/bin/env bash
# Seconds from starting `reft serve` with the default model to the first token over HTTP, five times; page cache warm.
set -euo pipefail
reft=${1:-build/cpu/reft}
for _ in 1 2 3 4 5; do
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  start=$(date +%s.%N)
  "$reft" serve --host 127.0.0.1 --port "$port" --log-level error >/dev/null 2>&1 &
  server=$!
  until curl -sf "http://127.0.0.1:$port/v1/completions" -H 'Content-Type: application/json' \
    -d '{"model":"SmolLM2-135M-Instruct","prompt":"Hello","max_tokens":1}' >/dev/null; do sleep 0.01; done
  python3 -c "import sys; print(f'{float(sys.argv[2]) - float(sys.argv[1]):.2f} s')" "$start" "$(date +%s.%N)"
  kill -TERM $server && wait $server
done
