// QuantView: one linear weight W (N, K) as it is stored, whatever its format. What y = x Wᵀ needs
// to know, and the input of every backend's repacking. Nothing is owned; bytes may be unaligned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tensor/dtype.h"

namespace nibble {

struct MadeUpWeight;  // tensor/made_up.h

// kInt4, kInt8: groups of columns with a scale and, if asymmetric, a zero point each: AWQ, GPTQ,
// compressed-tensors' pack-quantized and ModelOpt's INT4, all brought to one form by the reader.
enum class WeightFormat : uint8_t { kF32, kF16, kBf16, kFp8, kNvfp4, kMxfp4, kInt4, kInt8 };

std::string_view WeightFormatName(WeightFormat format);  // "nvfp4"

struct QuantView {
  WeightFormat format = WeightFormat::kBf16;
  int64_t n = 0;
  int64_t k = 0;

  // NVFP4, MXFP4: E2M1 pairs (N, K/2), low nibble first. FP8: E4M3 (N, K). INT4: unsigned pairs
  // (N, K/2), low nibble first. INT8: unsigned bytes (N, K). Others: (N, K).
  const std::byte* data = nullptr;

  // NVFP4: E4M3 (N, K/16). MXFP4: E8M0 (N, K/32). FP8: (⌈N/scale_block_n⌉, ⌈K/scale_block_k⌉) of
  // scale_dtype; MXFP8 is FP8 with E8M0 scales (N, K/32). INT4, INT8: (N, ⌈K/scale_block_k⌉) of
  // scale_dtype (BF16, F16 or F32).
  const std::byte* scales = nullptr;
  DType scale_dtype = DType::kF8E4M3;
  int64_t scale_block_n = 1;
  int64_t scale_block_k = 1;

  // INT4, INT8: W = (code - zero) * scale, with one unsigned zero point per scale, (N,
  // ⌈K/scale_block_k⌉) bytes; null: 8 or 128 everywhere.
  const uint8_t* zeros = nullptr;

  // What happens to the activations before the product: y[n] = Σ_j W[n, j] * x'[j], with
  // x'[j] = bf16(x[column_order[j]] * input_multiplier[j]). GPTQ's act-order stores its columns
  // sorted by group; AWQ-smoothed NVFP4 stores pre_quant_scale. (K) each, null: identity and 1.
  const int32_t* column_order = nullptr;
  const float* input_multiplier = nullptr;

  // NVFP4: the per-tensor multiplier (already inverted where the checkpoint stores a divisor). 1
  // elsewhere.
  float global_scale = 1.0f;

  // Activation multiplier of W4A4 and static FP8 checkpoints; 0 when absent. Weight-only kernels
  // ignore it.
  float input_scale = 0.0f;

  // Set: nothing is stored, whoever packs the weight makes its codes and scales up; data and scales
  // are null. For backends whose table says packs_made_up.
  const MadeUpWeight* made_up = nullptr;

  int64_t data_bytes() const;   // of `data`
  int64_t scale_bytes() const;  // of `scales`
  int64_t zero_bytes() const;   // of `zeros`
};

// Element (row, stored column) in FP32: the definition that every kernel is checked against.
float DequantizeElement(const QuantView& view, int64_t row, int64_t column);

// FP8, INT4 and INT8: the scale of element (row, stored column).
float BlockScale(const QuantView& view, int64_t row, int64_t column);

// Whether both views prepare their activations alike: equal column_order and input_multiplier.
bool SameActivations(const QuantView& a, const QuantView& b);

// A whole row, K floats.
void DequantizeRow(const QuantView& view, int64_t row, float* out);

}  // namespace nibble
