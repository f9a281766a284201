// A model's share when several ranks hold it together: heads, ffn rows, experts and vocabulary are
// divided; norms, routers and the residual stream are on every rank.
#pragma once

#include <cstdint>

#include "base/error.h"
#include "comm/communicator.h"
#include "tensor/quant_slice.h"

namespace nibble::models {

struct TensorParallel {
  Communicator* comm = nullptr;  // null: one rank; outlives the model
  int rank = 0;
  int size = 1;

  bool active() const { return size > 1; }

  // This rank's neighbours among `total`, which size divides.
  RowRange Share(int64_t total) const {
    const int64_t count = total / size;
    return {.begin = rank * count, .count = count};
  }
  // The same of KV heads: with fewer heads than ranks, several ranks hold the same one.
  RowRange KvShare(int64_t heads) const {
    if (heads >= size) return Share(heads);
    return {.begin = rank * heads / size, .count = 1};
  }

  // `what`: "num_attention_heads 6".
  static Status CheckDivides(int size, int64_t total, const char* what) {
    if (total % size == 0) return {};
    return Fail(Code::kInvalidArgument, "{} {} cannot be divided among {} ranks", what, total,
                size);
  }
};

}  // namespace nibble::models
