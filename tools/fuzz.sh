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
for target in "${targets[@]}"; do
  corpus=tests/fuzz/${target%_fuzz}
  work=build/fuzz-corpus/$target
  mkdir -p "$work"
  echo "--- $target"
  build/fuzz/"$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=3000 -print_final_stats=0 -verbosity=0 \
    -artifact_prefix=build/fuzz-findings/"$target"- "$work" $([[ -d $corpus ]] && echo "$corpus")
done
echo "fuzzing: ${#targets[@]} targets, no finding"
