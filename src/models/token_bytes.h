// What one decoded token reads and writes at batch 1: the quantity that bounds single-stream
// decoding. Weights count once, experts with the share that a token uses, the embedding as one row;
// vectors as the 16 bits they are published in; attention layers with a window read that much of
// the context; recurrent states and convolution windows are read and written.
#pragma once

#include <cstdint>

#include "base/error.h"
#include "formats/checkpoint.h"
#include "kernels/ops.h"
#include "models/model.h"

namespace nibble::models {

struct TokenBytes {
  SectionBytes weights;
  int64_t kv = 0;     // read, at the context
  int64_t state = 0;  // read and written

  int64_t total() const { return weights.total() + kv + state; }
};

// FP8 where the config files say so, else BF16.
Result<kernels::KvFormat> ConfiguredKvFormat(const formats::Checkpoint& checkpoint);

TokenBytes CountTokenBytes(const ModelInfo& info, kernels::KvFormat format, int64_t context);

}  // namespace nibble::models
