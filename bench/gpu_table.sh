#!/usr/bin/env bash
# Prints reft's column of README's GPU table, on a machine with a card: random weights of real geometry in bf16, the
# engine without HTTP, medians over three batches.
#   bench/gpu_table.sh [REFT]     build/cuda/reft by default; MODELS="qwen3-0.6b" takes only some
set -euo pipefail
reft=${1:-build/cuda/reft}
configs=$(dirname "$0")/configs

measure() { # MODEL INPUT OUTPUT BATCH: sets ttft and tpot
  local out
  out=$("$reft" bench latency --model "$configs/$1" --load-format dummy --dtype bfloat16 --device "${DEVICE:-cuda}" \
    --input-len "$2" --output-len "$3" --batch-size "$4" --num-iters 3 --max-model-len 9216 --max-num-seqs 64 \
    --max-num-batched-tokens 16384)
  ttft=$(sed -n 's/^Median TTFT: \([0-9.]*\) ms.*/\1/p' <<<"$out")
  tpot=$(sed -n 's/^Median TPOT: \([0-9.]*\) ms.*/\1/p' <<<"$out")
}

echo "| case | reft |"
echo "|---|---|"
for model in ${MODELS:-qwen3-0.6b qwen3-4b qwen3-8b}; do
  measure "$model" 512 128 1
  echo "| $model, TTFT at 512 / TPOT, one stream | $ttft ms / $tpot ms |"
  if [ "$model" = qwen3-8b ]; then
    measure "$model" 512 128 4
    echo "| $model, 4 streams, TPOT | $tpot ms |"
    continue
  fi
  measure "$model" 512 128 32
  echo "| $model, 32 streams, TPOT | $tpot ms |"
  [ "$model" = qwen3-0.6b ] || continue
  measure "$model" 2048 16 1
  short=$ttft
  measure "$model" 8192 16 1
  echo "| $model, TTFT at 2048 / 8192 | $short ms / $ttft ms |"
done
