#!/usr/bin/env bash
# The GPU suite, to be run on a machine with a card: op cases against fp64 oracles, goldens and engine equivalences on the
# device, compute-sanitizer over the op cases. Takes the folder that holds the test programs of a build with -DREFT_CUDA=ON.
#   tests/gpu/run.sh build/cuda
set -uo pipefail
programs=${1:-build/cuda}
status=0
run() { echo "== $*"; "$@" 2>&1 | grep -vE '^\[ +(OK|RUN) |^\[-----|^$|^Note' | tail -n "${LINES_SHOWN:-25}"; [ "${PIPESTATUS[0]}" -eq 0 ] || status=1; }

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || exit 1
run "$programs/test_ops" --gtest_filter=-OpIsa.*
export REFT_TEST_DEVICE=cuda
run "$programs/test_models" --gtest_filter='*Golden*'
run "$programs/test_engine" --gtest_filter='*EngineGolden*'
if [ "${SANITIZE:-1}" = 1 ]; then
  for tool in memcheck racecheck; do
    run compute-sanitizer --tool "$tool" "$programs/test_ops" \
      --gtest_filter='RopeAttention*:PagedAttention*:GatedLinear*:Quantize*:QkNorm*:*RmsNorm*:AddInto*:OpGraph*:GatedActivation*:SoftCap*'
  done
fi
exit $status
