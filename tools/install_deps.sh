#!/usr/bin/env bash
# Installs the Debian/Ubuntu packages that building (and with --tests, testing) reft needs.
# Does nothing, quickly, when all are there. Uses sudo when not run as root.
set -euo pipefail

build_packages=(g++ cmake ninja-build ccache pkg-config python3 python3-venv
  libfmt-dev libspdlog-dev nlohmann-json3-dev libssl-dev libpcre2-dev libutf8proc-dev
  libedit-dev libncurses-dev libbsd-dev libmd-dev
  libjs-markdown-it libjs-highlight.js libjs-katex fonts-katex libjs-chart.js)
test_packages=(libgtest-dev libgmock-dev libzstd-dev clang-14 libclang-rt-14-dev clang-format clang-tidy chromium curl zstd file)

packages=("${build_packages[@]}")
[ "${1:-}" = --tests ] && packages+=("${test_packages[@]}")

missing() {
  local package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
  done
}

# Boost: Debian 12 has 1.74 and 1.81 side by side, Ubuntu 24.04 has 1.83.
boost=""
for candidate in libboost1.81-dev libboost1.83-dev libboost-dev; do
  if [ -z "$(missing "$candidate")" ]; then boost=$candidate; break; fi
done

needed=$(missing "${packages[@]}")
[ -n "$boost" ] && [ -z "$needed" ] && exit 0

run_as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
export DEBIAN_FRONTEND=noninteractive
run_as_root apt-get update -qq
if [ -z "$boost" ]; then
  for candidate in libboost1.81-dev libboost1.83-dev libboost-dev; do
    if apt-cache show "$candidate" >/dev/null 2>&1; then boost=$candidate; break; fi
  done
fi
# Word splitting is wanted: one package a word.
# shellcheck disable=SC2086
run_as_root apt-get install -y -qq --no-install-recommends $needed $boost
