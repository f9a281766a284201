// Every scratch tensor of a step, declared once and carved from one arena that is made before the
// first step.
#pragma once

#include <cstdint>

#include "device/buffer.h"
#include "kernels/ops.h"

namespace nibble::models {

// Largest sizes of a model and a step; all that the arena depends on.
struct ActivationSizes {
  int64_t t = 0;          // tokens of a step
  int64_t rows = 0;       // logits rows of a step
  int64_t d = 0;          // hidden
  int64_t qkv = 0;        // (Hq + 2 Hk) * Dh
  int64_t attention = 0;  // Hq * Dh
  int64_t f = 0;          // ffn
  int64_t vocab = 0;
  int32_t q_heads = 0;
  int32_t head_dim = 0;
};

struct Activations {
  uint16_t* x = nullptr;          // (T, D) residual stream
  uint16_t* normed = nullptr;     // (T, D)
  uint16_t* delta = nullptr;      // (T, D) what a layer adds to the residual stream
  uint16_t* qkv = nullptr;        // (T, (Hq + 2 Hk) * Dh)
  uint16_t* q = nullptr;          // (T, Hq, Dh)
  uint16_t* attention = nullptr;  // (T, Hq, Dh)
  uint16_t* gate_up = nullptr;    // (T, 2F)
  uint16_t* ffn = nullptr;        // (T, F)
  uint16_t* row_x = nullptr;      // (R, D)
  uint16_t* row_delta = nullptr;  // (R, D)
  float* logits = nullptr;        // (R, V)
  kernels::OpContext context;     // with the workspace

  static int64_t Bytes(const kernels::OpTable& ops, int threads, const ActivationSizes& sizes);
  Status Make(const kernels::OpTable& ops, ThreadPool* pool, const ActivationSizes& sizes);

 private:
  // One walk for counting and for carving: base null counts only. Returns the bytes.
  int64_t Carve(std::byte* base, const kernels::OpTable& ops, int threads,
                const ActivationSizes& sizes);

  Buffer memory_;
};

}  // namespace nibble::models
