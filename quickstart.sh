#!/usr/bin/env bash
# From a fresh Debian 12 or Ubuntu 24.04 machine to a chat in the browser: installs what the build needs, builds a
# release binary, gets the default model and serves it. Arguments go to `reft serve`: ./quickstart.sh --port 9000
# With nvcc 12.8 or newer (on PATH or in /usr/local/cuda) the binary gets the CUDA backend for the GPUs that are there;
# REFT_PRESET=cpu leaves it out.
set -euo pipefail
cd "$(dirname "$0")"

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }

tools/install_deps.sh
if no_cuda=$(tools/find_nvcc.sh 2>&1 >/dev/null); then preset=cuda; else preset=cpu; fi
preset=${REFT_PRESET:-$preset}
if [ ! -f "build/$preset/build.ninja" ]; then
  say "Configuring the preset $preset${no_cuda:+ ($no_cuda)}"
  cuda=()
  if [ "$preset" = cuda ]; then cuda=(-DREFT_CUDA_ARCHITECTURES=native); fi
  cmake --preset "$preset" -DREFT_TESTS=OFF "${cuda[@]}" >/dev/null
fi
say "Building (some minutes the first time)"
cmake --build "build/$preset" --target reft

has_model=false
for argument in "$@"; do
  case $argument in --model | --model=* | --model[-_]path | --model[-_]path=* | -m) has_model=true ;; esac
done
case ${1:-} in "" | -*) ;; *) has_model=true ;; esac
if ! $has_model; then
  say "Default model: $(tools/get_default_model.sh)"
fi
port=8888
previous=""
for argument in "$@"; do
  case $argument in --port=*) port=${argument#*=} ;; esac
  case $previous in --port | -p) port=$argument ;; esac
  previous=$argument
done
say "Starting reft serve; the chat page will be at http://127.0.0.1:$port/ui.html"
exec "build/$preset/reft" serve "$@"
