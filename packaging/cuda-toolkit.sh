#!/usr/bin/env bash
# Prints the root of a CUDA 13.0 toolkit: the machine's own, or NVIDIA's wheels from PyPI unpacked into DIR.
#   cuda-toolkit.sh DIR
set -euo pipefail
dir=$1

for root in "${CUDA_HOME:-}" /usr/local/cuda /opt/cuda; do
  if [[ -n "$root" && -x "$root/bin/nvcc" ]] && "$root/bin/nvcc" --version | grep -q 'release 13\.'; then
    echo "$root"
    exit 0
  fi
done

if [[ ! -f "$dir/ready" ]]; then
  echo "Fetching the CUDA 13.0 compiler from PyPI" >&2
  rm -rf "$dir"
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$dir" \
    nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 \
    nvidia-cuda-cccl==13.0.85 >&2
  touch "$dir/ready"
fi
echo "$(cd "$dir" && pwd)/nvidia/cu13"
