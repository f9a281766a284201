#!/usr/bin/env bash
# Builds every fuzz target and runs each for the given seconds over its committed corpus: fuzz.sh [SECONDS] [TARGET...].
# New inputs go to build/fuzz-corpus; a finding stops the script and stays in build/fuzz-findings.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-10}
shift || true
cmake --preset fuzz > /dev/null
mapfile -t targets < <(if [[ $# -gt 0 ]]; then printf '%s\n' "$@"; else
  git ls-files 'src/*_fuzz.cc' | xargs -n1 basename | sed 's/\.cc$//' | sort; fi)
cmake --build build/fuzz --target "${targets[@]}"
mkdir -p build/fuzz-findings

# A target's output at its end: as many run at a time as there are cores.
fuzz() {
  local target=$1 corpus=tests/fuzz/${1%_fuzz} work=build/fuzz-corpus/$1 output status=0
  mkdir -p "$work"
  output=$(build/fuzz/"$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=3000 -print_final_stats=0 -verbosity=0 \
    -artifact_prefix=build/fuzz-findings/"$target"- "$work" $([[ -d $corpus ]] && echo "$corpus") 2>&1) || status=$?
  printf -- '--- %s\n%s\n' "$target" "$output"
  [[ $status -eq 0 ]] || exit 255  # xargs starts no more
}
export -f fuzz
export seconds
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'fuzz {}'
echo "fuzzing: ${#targets[@]} targets, no finding"
