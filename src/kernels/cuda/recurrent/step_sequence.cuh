// A sequence's tokens in a step, as kernels see it: read from the device arrays of StateSequences.
#pragma once

#include <cstdint>

#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

struct StepSequence {
  int64_t first = 0;    // row of its first token
  int64_t count = 0;    // tokens in the step
  int64_t slot = 0;     // of its state
  bool starts = false;  // its first token sits at position 0: the old state does not count

  __device__ static StepSequence At(const StateSequences& sequences, int64_t b) {
    StepSequence s;
    s.first = sequences.q_start[b];
    s.count = sequences.q_start[b + 1] - s.first;
    s.slot = sequences.slots[b];
    s.starts = sequences.kv_len[b] == s.count;
    return s;
  }

  // Without the tokens that have been taken in chunks.
  __device__ static StepSequence AfterChunks(const StateSequences& sequences,
                                             const DeltaChunks& chunks, int64_t b) {
    StepSequence s = At(sequences, b);
    const int64_t taken = chunks.tokens != nullptr ? chunks.tokens[b] : 0;
    s.first += taken;
    s.count -= taken;
    s.starts = s.starts && taken == 0;
    return s;
  }
};

template <typename T>
__device__ T* StateAt(const StateView& view, const StepSequence& s) {
  return reinterpret_cast<T*>(view.base + s.slot * view.stride);
}

// The sequence that row `token` belongs to; sequences.count beyond the last.
__device__ inline int64_t SequenceOfRow(const StateSequences& sequences, int64_t token) {
  int64_t low = 0, high = sequences.count;  // q_start[low] <= token < q_start[high + 1]
  if (token >= sequences.q_start[high]) return high;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (sequences.q_start[middle] <= token) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

}  // namespace nibble::kernels::cuda
