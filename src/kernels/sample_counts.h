// The counts of a row of sampling with the token that the host has not seen yet.
#pragma once

#include "kernels/ops.h"

namespace nibble::kernels {

// penalize(token, occurrences in the output) for every token that occurred.
template <typename Penalize>
void ForEachCount(const SampleRow& row, const int32_t* drawn, const Penalize& penalize) {
  const int32_t unseen = row.counts_drawn ? drawn[row.drawn_slot] : -1;
  bool listed = false;
  for (const TokenCount& seen : row.counts) {
    const bool again = seen.token == unseen;
    listed = listed || again;
    penalize(seen.token, seen.count + (again ? 1 : 0));
  }
  if (unseen >= 0 && !listed) penalize(unseen, 1);
}

}  // namespace nibble::kernels
