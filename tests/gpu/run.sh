#!/usr/bin/env bash
# The GPU suite, to be run on a machine with a card: op and gradient cases against fp64 oracles, goldens (logits and
# gradients), engine equivalences and training runs on the device, compute-sanitizer over the op cases. Takes the folder that holds the test programs of a build with -DREFT_CUDA=ON.
#   tests/gpu/run.sh build/cuda
#   HTTP=1 PYTHON=build/venv/bin/python tests/gpu/run.sh build/cuda   also the client suite (tests/serve, which needs
#                                      tests/requirements.txt) against `reft serve` on the card; MODEL: other than the default
set -uo pipefail
programs=${1:-build/cuda}
status=0
run() { echo "== $*"; "$@" 2>&1 | grep -vE '^\[ +(OK|RUN) |^\[-----|^$|^Note' | tail -n "${LINES_SHOWN:-25}"; [ "${PIPESTATUS[0]}" -eq 0 ] || status=1; }

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || exit 1
run "$programs/test_ops" --gtest_filter=-OpIsa.*
export REFT_TEST_DEVICE=cuda
run "$programs/test_models" --gtest_filter='*Golden*:TrainingModel.*'
run "$programs/test_train" --gtest_filter='TrainerTest.*:*Interrupted*'
run "$programs/test_engine" --gtest_filter='*EngineGolden*'
if [ "${SANITIZE:-1}" = 1 ]; then
  for tool in memcheck racecheck; do
    run compute-sanitizer --tool "$tool" "$programs/test_ops" \
      --gtest_filter='RopeAttention*:PagedAttention*:GatedLinear*:Quantize*:QkNorm*:*RmsNorm*:AddInto*:OpGraph*:GatedActivation*:SoftCap*:PackedAttention.Long*:CopyRows*:Score*:Sample.WildLogits:Sample.Logprobs*:Sample.CountsThePendingToken'
  done
fi
if [ "${HTTP:-0}" = 1 ]; then
  model=${MODEL:-$(tools/get_default_model.sh)} || exit 1
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  log=$(mktemp)
  "$programs/reft" serve --model "$model" --device cuda --host 127.0.0.1 --port "$port" --max-model-len 4096 >"$log" 2>&1 &
  server=$!
  for _ in $(seq 600); do
    curl -sf "http://127.0.0.1:$port/health" >/dev/null && break
    kill -0 $server 2>/dev/null || break
    sleep 0.1
  done
  REFT_URL=http://127.0.0.1:$port REFT_BINARY=$(realpath "$programs/reft") REFT_MODEL=$model \
    run "${PYTHON:-python3}" -m pytest -q -p no:cacheprovider tests/serve
  kill -TERM $server
  wait $server || { echo "the server did not end well"; tail -5 "$log"; status=1; }
  rm -f "$log"
fi
exit $status
