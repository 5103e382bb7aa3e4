#!/usr/bin/env bash
# Installs what the tests need and runs them all: style and layer checks, unit tests, sanitizers, fuzzers, the HTTP
# suite with real clients against a live server, the web UI in a headless browser, and the Debian package.
#   ./test.sh            everything (what CI runs)
#   ./test.sh STEP...    only these steps: checks unit clients web package asan tsan fuzz tidy
# Closes with "N passed, N failed".
set -uo pipefail
cd "$(dirname "$0")"

steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(checks unit clients web package asan tsan fuzz tidy)
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

step_checks() {
  check "layers" python3 tools/check_layers.py
  check "format" bash -c 'git ls-files "src/*.h" "src/*.cpp" "tests/*.cpp" "bench/*.cpp" | xargs clang-format --dry-run -Werror'
  check "shell" bash -c 'for f in *.sh tools/*.sh .ci/run; do bash -n "$f" || exit 1; done'
}

step_unit() {
  unit_tests cpu ""
  check "documentation" python3 tools/check_docs.py build/cpu/reft
}

# Starts reft serve on a free port with the default model and sets url; ends it on return.
with_server() { # COMMAND...
  local log=$out/serve.log model port status=0
  model=$(tools/get_default_model.sh) || return 1
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

# tests/web/run.py closes with "web: N passed, N failed"; once against the mock, once against a real server.
web_tests() { # [--url URL]
  build/venv/bin/python tests/web/run.py "$@" | tee "$out/web.log"
  grep -q '^web: [1-9][0-9]* passed, 0 failed' "$out/web.log"
}
export -f web_tests
export out

step_web() {
  check "test environment" test_venv
  check "web UI against the mock" web_tests
  # shellcheck disable=SC2016
  check "web UI against reft" with_server bash -c 'web_tests --url "$REFT_URL"'
}

# The package installs and runs without the build tools, and needs nothing but libc and libm.
step_package() {
  check "package" bash -c '
    set -e
    (cd build/cpu && cpack -G DEB -B package >/dev/null)
    rm -rf build/package && mkdir build/package
    dpkg-deb -x build/cpu/package/*.deb build/package
    build/package/usr/bin/reft --version
    test -s build/package/usr/share/bash-completion/completions/reft'
  check "only libc and libm are needed" bash -c '
    ldd build/package/usr/bin/reft >/dev/null || exit 1
    ! ldd build/package/usr/bin/reft | grep -vE "linux-vdso|libc\.so|libm\.so|ld-linux"'
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

step_tidy() { check "clang-tidy" python3 tools/run_tidy.py build/cpu; }

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
