#!/usr/bin/env bash
# Prints the path of the CUDA 13.0 runtime for aarch64 (libcudart_static.a), from NVIDIA's wheel on PyPI, unpacked into
# DIR: what a cross build links.
#   cuda-runtime-aarch64.sh DIR
set -euo pipefail
dir=$1

if [[ ! -f "$dir/ready" ]]; then
  echo "Fetching the CUDA 13.0 runtime for aarch64 from PyPI" >&2
  rm -rf "$dir"
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --platform manylinux2014_aarch64 \
    --target "$dir" nvidia-cuda-runtime==13.0.96 >&2
  touch "$dir/ready"
fi
echo "$(cd "$dir" && pwd)/nvidia/cu13/lib/libcudart_static.a"
