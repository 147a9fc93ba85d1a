#!/usr/bin/env bash
# Installs the Debian packages of debian-packages.txt whose program is missing. Without root, or without apt, it says
# what it would install and succeeds: the tests that need them are then skipped by name.
set -euo pipefail
list="$(dirname "$0")/debian-packages.txt"
missing=()
while read -r package program _; do
  case "$package" in '' | '#'*) continue ;; esac
  command -v "$program" >/dev/null || missing+=("$package")
done <"$list"
if [ "${#missing[@]}" -eq 0 ]; then
  echo "system-deps: nothing is missing"
elif [ "$(id -u)" -ne 0 ]; then
  echo "system-deps: not root; would install: ${missing[*]}"
elif ! command -v apt-get >/dev/null; then
  echo "system-deps: no apt-get here; these Debian packages (or their like) are missing: ${missing[*]}"
else
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
fi
