#!/usr/bin/env bash
# Compiles GPU code for targets that no binary ships: those that must work (121a, 103a), and plain 120 and 121, which lack
# the FP4 instructions and must be refused by our own message.
set -euo pipefail
cd "$(dirname "$0")/.."

nvcc=$(packaging/cuda-toolkit.sh build/cuda-toolkit)/bin/nvcc
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile() {
  "$nvcc" -std=c++20 -O3 -fmad=false -Isrc --expt-relaxed-constexpr -DFMT_USE_CONSTEXPR=1 -DFMT_CONSTEVAL= \
    -diag-suppress=20012 -gencode="arch=compute_$1,code=sm_$1" -cubin -o "$work/probe.cubin" "src/kernels/cuda/$2"
}

for target in 121a 103a; do
  for file in ptx/block_scaled_probe.cu w4a4/tokens.cu w4a4/w4a4.cu w4a4/experts.cu linear/embed.cu; do
    compile "$target" "$file"
    echo "$target $file: compiles"
  done
done
for target in 120 121; do
  if compile "$target" ptx/block_scaled_probe.cu 2> "$work/errors"; then
    echo "target $target was not refused" >&2
    exit 1
  fi
  grep -q 'build 120f' "$work/errors" || { cat "$work/errors" >&2; exit 1; }
  echo "$target: refused"
done
