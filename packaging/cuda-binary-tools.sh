#!/usr/bin/env bash
# Prints the path of cuobjdump or nvdisasm: the machine's own, or that of NVIDIA's wheel from PyPI unpacked into DIR.
#   cuda-binary-tools.sh DIR cuobjdump|nvdisasm
set -euo pipefail
dir=$1
tool=$2
case $tool in
  cuobjdump) wheel=nvidia-cuda-cuobjdump==13.2.86 ;;
  nvdisasm) wheel=nvidia-cuda-nvdisasm==13.5.37 ;;
  *) echo "no tool named $tool" >&2; exit 1 ;;
esac

if command -v "$tool"; then exit 0; fi
for root in "${CUDA_HOME:-}" /usr/local/cuda /opt/cuda; do
  if [[ -n "$root" && -x "$root/bin/$tool" ]]; then
    echo "$root/bin/$tool"
    exit 0
  fi
done

if [[ ! -f "$dir/$tool.ready" ]]; then
  echo "Fetching $tool from PyPI" >&2
  mkdir -p "$dir"
  rm -rf "${dir:?}/$tool"
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$dir/$tool" "$wheel" >&2
  touch "$dir/$tool.ready"
fi
echo "$(cd "$dir" && pwd)/$tool/nvidia/cu13/bin/$tool"
