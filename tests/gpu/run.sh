#!/usr/bin/env bash
# The GPU suite, to be run on a machine with a card: op and gradient cases against fp64 oracles, goldens (logits and
# gradients), engine equivalences and training runs on the device, compute-sanitizer over the op cases. Takes the folder that holds the test programs of a build with -DREFT_CUDA=ON.
#   tests/gpu/run.sh build/cuda
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
      --gtest_filter='RopeAttention*:PagedAttention*:GatedLinear*:QkNorm*:*RmsNorm*:AddInto*:OpGraph*:GatedActivation*:SoftCap*:PackedAttention.Long*'
  done
fi
exit $status
