#!/usr/bin/env bash
# Builds llama.cpp (llama-bench, llama-server, llama-quantize) with native flags for comparisons on this machine, from the
# source archive of PyPI's llama-cpp-python, and prints the folder of its programs. About 20 CPU minutes, once.
set -euo pipefail
version=0.3.36
folder=${REFT_PEERS:-$HOME/.cache/reft/peers}/llama_cpp_python-$version/vendor/llama.cpp
if [ ! -x "$folder/build/bin/llama-server" ]; then
  mkdir -p "${folder%/llama_cpp_python-*}"
  cd "${folder%/llama_cpp_python-*}"
  python3 -m venv venv
  [ -f "llama_cpp_python-$version.tar.gz" ] ||
    venv/bin/pip download -q --no-deps --no-binary :all: --no-build-isolation "llama-cpp-python==$version" >&2 ||
    venv/bin/pip download -q --no-deps --no-binary :all: "llama-cpp-python==$version" >&2
  tar xzf "llama_cpp_python-$version.tar.gz"
  cmake -S "$folder" -B "$folder/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DBUILD_SHARED_LIBS=OFF >&2
  ninja -C "$folder/build" llama-bench llama-server llama-quantize >&2
fi
echo "$folder/build/bin"
