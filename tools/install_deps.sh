#!/usr/bin/env bash
# Installs the Debian/Ubuntu packages that building (and with --tests, testing) reft needs.
# Does nothing, quickly, when all are there. Uses sudo when not run as root.
set -euo pipefail

build_packages=(ca-certificates g++ cmake ninja-build ccache pkg-config python3 python3-venv
  libfmt-dev libspdlog-dev nlohmann-json3-dev libssl-dev libpcre2-dev libutf8proc-dev
  zlib1g-dev libzstd-dev liblz4-dev
  libflac-dev libogg-dev libvorbis-dev libopus-dev libopusfile-dev
  libedit-dev libncurses-dev libbsd-dev libmd-dev
  libjs-markdown-it libjs-highlight.js libjs-katex fonts-katex libjs-chart.js)
test_packages=(libgtest-dev libgmock-dev curl zstd file git zsh fish)

packages=("${build_packages[@]}")
[ "${1:-}" = --tests ] && packages+=("${test_packages[@]}")

missing() {
  local package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
  done
}

# Packages of which any will do: the first that is installed, else the first that the distribution has.
choices=("libboost1.81-dev libboost1.83-dev libboost-dev")  # Debian 12 has 1.74 and 1.81, Ubuntu 24.04 has 1.83
if [ "${1:-}" = --tests ]; then
  choices+=(chromium)  # Ubuntu has none; test.sh lets playwright fetch one then
  # 14 first: it is the one whose formatting is the repository's. cmake/clang.cmake and test.sh look in this order too.
  for package in clang libclang-rt clang-format clang-tidy; do
    choice=""
    for version in 14 15 16 17 18 19; do
      if [ "$package" = libclang-rt ]; then choice+="$package-$version-dev "; else choice+="$package-$version "; fi
    done
    choices+=("$choice")
  done
fi
open_choices=()
for choice in "${choices[@]}"; do
  # Word splitting is wanted: one package a word.
  # shellcheck disable=SC2086
  [ "$(missing $choice | wc -l)" -lt "$(wc -w <<<"$choice")" ] || open_choices+=("$choice")
done

needed=$(missing "${packages[@]}")
[ ${#open_choices[@]} -eq 0 ] && [ -z "$needed" ] && exit 0

if ! command -v apt-get >/dev/null; then
  # shellcheck disable=SC2086
  echo "Without apt-get, please install these or what they are called here:" $needed "${open_choices[@]}" >&2
  exit 1
fi
as_root=(env DEBIAN_FRONTEND=noninteractive)
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "Packages are missing: run this as root, or install sudo" >&2; exit 1; }
  as_root=(sudo "${as_root[@]}")
fi
"${as_root[@]}" apt-get update -qq
for choice in ${open_choices[@]+"${open_choices[@]}"}; do
  for candidate in $choice; do
    if [ -n "$(apt-cache madison "$candidate" 2>/dev/null)" ]; then needed+=" $candidate"; break; fi
  done
done
# shellcheck disable=SC2086
"${as_root[@]}" apt-get install -y -qq --no-install-recommends $needed
