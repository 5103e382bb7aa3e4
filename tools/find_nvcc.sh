#!/usr/bin/env bash
# Prints the path of an nvcc that can build the CUDA backend; ends with 1, and says why, when there is none.
set -euo pipefail

nvcc=${CUDACXX:-}
for candidate in nvcc "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" /usr/local/cuda/bin/nvcc; do
  [ -n "$nvcc" ] || nvcc=$(command -v "$candidate" || true)
done
if [ -z "$nvcc" ]; then
  echo "no CUDA backend: no nvcc on PATH or in /usr/local/cuda" >&2
  exit 1
fi
version=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
if [ "$(printf '%s\n' 12.8 "$version" | sort -V | head -1)" != 12.8 ]; then
  echo "no CUDA backend: $nvcc is $version, 12.8 is needed" >&2
  exit 1
fi
echo "$nvcc"
