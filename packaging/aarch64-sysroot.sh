#!/usr/bin/env bash
# Unpacks the arm64 libraries that the cross build links: aarch64-sysroot.sh FOLDER. Nothing is installed on the machine.
set -euo pipefail

target=$(realpath -m "$1")
[[ -f "$target/ready" ]] && exit 0
packages=(libboost1.81-dev libboost-json1.81-dev libboost-url1.81-dev libboost-container1.81-dev
          libboost-system1.81-dev libfmt-dev libspdlog-dev libexpected-dev libcli11-dev libpcre2-dev libutf8proc-dev
          libssl-dev libxxhash-dev libgtest-dev)
sudo=()
[[ $(id -u) -eq 0 ]] || sudo=(sudo)
if ! dpkg --print-foreign-architectures | grep -q '^arm64$'; then
  "${sudo[@]}" dpkg --add-architecture arm64
  "${sudo[@]}" apt-get update -qq
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
chmod 755 "$work"
for name in "${packages[@]}"; do
  # Packages without an arm64 build of their own are for all architectures.
  apt-get download -qq "$name:arm64" 2> /dev/null || apt-get download -qq "$name"
done
rm -rf "$target"
mkdir -p "$target"
for package in *.deb; do dpkg -x "$package" "$target"; done
touch "$target/ready"
