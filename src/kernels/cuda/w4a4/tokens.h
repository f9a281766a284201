// BF16 activations to NVFP4 in the order of order.h, by the rule of numerics/nvfp4.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble::kernels::cuda::w4a4 {

struct QuantizeParams {
  const uint16_t* x = nullptr;  // (M, K) BF16
  int64_t x_stride = 0;
  int64_t m = 0;
  int64_t k = 0;
  // What x goes through first (tensor/quant_view.h), (K) each, or null.
  const int32_t* column_order = nullptr;
  const float* input_multiplier = nullptr;
  float inverse_scale = 1.0f;  // 1 / input_scale
};

// out: TokenBytes(m, k), 16-byte aligned.
void QuantizeTokens(const QuantizeParams& params, std::byte* out, void* stream);

}  // namespace nibble::kernels::cuda::w4a4
