#!/usr/bin/env bash
# Installs what a group of packages.txt names: install-packages.sh build [test] [ci]. Does nothing where all is there.
set -euo pipefail
cd "$(dirname "$0")"

groups=" $* "
packages=()
while read -r name group; do
  [[ -z "$name" || "$name" == \#* ]] && continue
  [[ "$groups" == *" $group "* ]] && packages+=("$name")
done < packages.txt

if grep -q '^ID=ubuntu' /etc/os-release; then
  packages=("${packages[@]//1.81/1.83}")
elif ! grep -q '^ID=debian' /etc/os-release; then
  echo "This script knows Debian 12 and Ubuntu 24.04. Install by hand: ${packages[*]}" >&2
  exit 1
fi

missing=()
for name in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$name")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

sudo=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo > /dev/null || { echo "Run as root, or install: ${missing[*]}" >&2; exit 1; }
  sudo=(sudo)
fi
echo "Installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
