#!/usr/bin/env bash
# Installs what the tests need and runs them all: style and layer checks, unit tests, sanitizers, fuzzers, the HTTP
# suite with real clients against a live server, the web UI in a headless browser, and the Debian package.
#   ./test.sh            everything (what CI runs)
#   ./test.sh STEP...    only these steps: checks unit train clients speech web package cuda asan tsan fuzz tidy
# Closes with "N passed, N failed".
set -uo pipefail
cd "$(dirname "$0")" || exit

steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(checks unit train clients speech web package cuda asan tsan fuzz tidy)
passed=0
failed=0
failures=()
out=build/test-results
mkdir -p "$out"
export CTEST_PARALLEL_LEVEL=2 CTEST_OUTPUT_ON_FAILURE=1

say() { printf '\n==> %s (%(%H:%M:%S)T)\n' "$*" -1; }

# Counts one check: `check NAME COMMAND...`.
check() {
  local name=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    failures+=("$name")
    echo "FAILED: $name"
  fi
}

# Adds the tests of a JUnit file, or one failure when it is not there.
count_junit() {
  local name=$1 file=$2 numbers
  if ! numbers=$(python3 - "$file" <<'PY'
import sys
import xml.etree.ElementTree as tree
good = bad = 0
for case in tree.parse(sys.argv[1]).getroot().iter("testcase"):
    if case.find("failure") is not None or case.find("error") is not None:
        bad += 1
    elif case.find("skipped") is None and case.get("status") not in ("disabled", "notrun"):
        good += 1
print(good, bad)
PY
  ); then
    failed=$((failed + 1))
    failures+=("$name: no results")
    return
  fi
  read -r good bad <<<"$numbers"
  passed=$((passed + good))
  failed=$((failed + bad))
  if [ "$bad" -gt 0 ]; then failures+=("$name: $bad"); fi
}

build() { # PRESET "TARGETS" [cmake arguments]; no targets: all
  local preset=$1 targets=$2
  shift 2
  cmake --preset "$preset" "$@" >"$out/configure-$preset.log" 2>&1 || { tail -20 "$out/configure-$preset.log"; return 1; }
  # shellcheck disable=SC2086
  cmake --build "build/$preset" ${targets:+--target $targets} 2>&1 | grep -Ev '^\[[0-9]+/[0-9]+\]' | tail -40
  [ "${PIPESTATUS[0]}" -eq 0 ]
}

unit_tests() { # PRESET "TARGETS" [ctest arguments]
  local preset=$1 targets=$2
  shift 2
  check "build of $preset" build "$preset" "$targets" -DREFT_TESTS=ON
  rm -f "$out/$preset.xml"
  ctest --test-dir "build/$preset" --output-junit "$PWD/$out/$preset.xml" "$@" 2>&1 | tail -30
  count_junit "unit tests of $preset" "$out/$preset.xml"
}

test_venv() {
  if [ ! -f build/venv/.ready ] || ! cmp -s tests/requirements.txt build/venv/.ready; then
    python3 -m venv build/venv && build/venv/bin/pip install -q -r tests/requirements.txt &&
      cp tests/requirements.txt build/venv/.ready
  fi
}

# Path of an LLVM tool, in the order in which tools/install_deps.sh chooses among the versions.
llvm_tool() { # NAME
  local version
  for version in -14 -15 -16 -17 -18 -19 ""; do
    command -v "$1$version" && return
  done
  echo "$1"
}

step_checks() {
  check "layers" python3 tools/check_layers.py
  check "format" bash -c 'git ls-files "src/*.h" "src/*.cpp" "tests/*.cpp" "bench/*.cpp" | xargs "$0" --dry-run -Werror' "$(llvm_tool clang-format)"
  check "shell" bash -c 'for f in *.sh tools/*.sh tests/train/*.sh .ci/run; do bash -n "$f" || exit 1; done'
}

step_unit() {
  unit_tests cpu ""
  check "documentation" python3 tools/check_docs.py build/cpu/reft
}

# The run of the README.
step_train() { check "LoRA teaches the default model a name" tests/train/identity.sh build/cpu/reft; }

# Starts reft serve on a free port with the default model, or the one that the script REFT_GET_MODEL gets, and sets
# url; ends it on return.
with_server() { # COMMAND...
  local log=$out/serve.log model port status=0
  model=$("${REFT_GET_MODEL:-tools/get_default_model.sh}") || return 1
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  build/cpu/reft serve --model "$model" --host 127.0.0.1 --port "$port" --max-model-len 4096 >"$log" 2>&1 &
  local server=$!
  for _ in $(seq 100); do
    curl -sf "http://127.0.0.1:$port/health" >/dev/null && break
    sleep 0.1
  done
  REFT_URL=http://127.0.0.1:$port REFT_BINARY=$PWD/build/cpu/reft REFT_MODEL=$model "$@" || status=$?
  kill -TERM $server
  wait $server || { echo "the server did not end well"; tail -5 "$log"; status=1; }
  return $status
}

step_clients() {
  check "test environment" test_venv
  rm -f "$out/clients.xml"
  check "server ends well" with_server bash -c "build/venv/bin/python -m pytest -q -p no:cacheprovider tests/serve --junitxml $out/clients.xml; true"
  count_junit "client tests" "$out/clients.xml"
}

step_speech() {
  check "test environment" test_venv
  rm -f "$out/speech.xml"
  REFT_GET_MODEL=tools/get_whisper_model.sh check "speech server ends well" with_server bash -c \
    "build/venv/bin/python -m pytest -q -p no:cacheprovider tests/speech --junitxml $out/speech.xml; true"
  count_junit "speech tests" "$out/speech.xml"
}

# tests/web/run.py closes with "web: N passed, N failed"; once against the mock, once against a real server.
web_tests() { # [--url URL]
  build/venv/bin/python tests/web/run.py "$@" | tee "$out/web.log"
  grep -q '^web: [1-9][0-9]* passed, 0 failed' "$out/web.log"
}
export -f web_tests
export out

step_web() {
  check "test environment" test_venv
  [ -x /usr/bin/chromium ] || check "browser" build/venv/bin/playwright install --with-deps chromium
  check "web UI against the mock" web_tests
  # shellcheck disable=SC2016
  check "web UI against reft" with_server bash -c 'web_tests --url "$REFT_URL"'
}

needs_libc_only() { # EXECUTABLE
  ldd "$1" >/dev/null && ! ldd "$1" | grep -vE "linux-vdso|libc\.so|libm\.so|ld-linux"
}

# The package installs and runs without the build tools, and needs nothing but libc and libm.
step_package() {
  check "package" bash -c '
    set -e
    (cd build/cpu && cpack -G DEB -B package >/dev/null)
    rm -rf build/package && mkdir build/package
    dpkg-deb -x build/cpu/package/*.deb build/package
    build/package/usr/bin/reft --version'
  check "only libc and libm are needed" needs_libc_only build/package/usr/bin/reft
  check "completion in bash" bash -c '
    source build/package/usr/share/bash-completion/completions/reft
    COMP_WORDS=(reft bench la) COMP_CWORD=2 && _reft && [ "${COMPREPLY[*]}" = latency ]'
  check "completion in zsh" zsh -fc '
    autoload -U compinit && compinit -u -D && source build/package/usr/share/zsh/vendor-completions/_reft
    compadd() { shift; print -r -- "$@" }
    words=(reft bench la) CURRENT=3 && [[ "$(_reft)" == *latency* ]]'
  check "completion in fish" fish -c '
    source build/package/usr/share/fish/vendor_completions.d/reft.fish
    complete -C "reft bench la" | string match -q "latency*"'
}

# The CUDA code compiles, with what tests/gpu/run.sh runs on a card, and one executable still does for both: without a
# card it runs on the CPU. Objects that the step `unit` has made come from ccache.
step_cuda() {
  local reason
  if ! reason=$(tools/find_nvcc.sh 2>&1 >/dev/null); then
    echo "skipped: $reason"
    return
  fi
  check "build of cuda" build cuda "reft test_ops test_models test_engine" -DREFT_TESTS=ON
  check "the CUDA executable needs libc and libm only" needs_libc_only build/cuda/reft
  # shellcheck disable=SC2016
  check "the CUDA executable answers" bash -c '
    model=$(tools/get_default_model.sh) || exit 1
    answer=$(build/cuda/reft run --temperature 0 --model "$model" "What is the capital of France?") || exit 1
    echo "$answer"
    [[ $answer == *Paris* ]]'
}

step_asan() { unit_tests cpu-debug ""; }

step_tsan() {
  unit_tests cpu-tsan "test_base test_dist test_engine test_hub test_server" -R "^(base|dist|engine|hub|server)\."
}

step_fuzz() {
  check "build of the fuzzers" build fuzz fuzzers
  local target
  for target in build/fuzz/*_fuzz; do
    [ -x "$target" ] || continue
    local name=${target##*/}
    mkdir -p "$out/$name"
    check "$name for ${REFT_FUZZ_SECONDS:-60} s" bash -c "
      seeds=tests/fuzz/seeds/${name%_fuzz}; [ -d \$seeds ] || seeds=
      '$target' -max_total_time=${REFT_FUZZ_SECONDS:-60} -rss_limit_mb=4096 -timeout=20 -print_final_stats=1 \
        -artifact_prefix='$out/$name-' '$out/$name' \$seeds >'$out/$name.log' 2>&1 ||
        { tail -30 '$out/$name.log'; exit 1; }
      grep -E 'number_of_executed_units' '$out/$name.log'"
  done
}

step_tidy() { check "clang-tidy" env CLANG_TIDY="$(llvm_tool clang-tidy)" python3 tools/run_tidy.py build/cpu; }

say "Installing what the tests need"
check "packages" tools/install_deps.sh --tests
for step in "${steps[@]}"; do
  say "$step"
  "step_$step"
done

echo
for failure in "${failures[@]}"; do echo "FAILED: $failure"; done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
