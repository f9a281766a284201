#!/usr/bin/env bash
# Prints the path of cuobjdump: the machine's own, or NVIDIA's wheel from PyPI unpacked into DIR.
#   cuda-binary-tools.sh DIR
set -euo pipefail
dir=$1

if command -v cuobjdump; then exit 0; fi
for root in "${CUDA_HOME:-}" /usr/local/cuda /opt/cuda; do
  if [[ -n "$root" && -x "$root/bin/cuobjdump" ]]; then
    echo "$root/bin/cuobjdump"
    exit 0
  fi
done

if [[ ! -f "$dir/ready" ]]; then
  echo "Fetching cuobjdump from PyPI" >&2
  rm -rf "$dir"
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$dir" nvidia-cuda-cuobjdump==13.2.86 >&2
  touch "$dir/ready"
fi
echo "$(cd "$dir" && pwd)/nvidia/cu13/bin/cuobjdump"
