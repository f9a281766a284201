// Which tensors make up a linear, in which format: what is stored decides. Names, shapes and dtypes
// are checked here, values are not.
//
// Conventions told apart by dtypes and companions:
//   ModelOpt            weight, weight_scale, weight_scale_2, input_scale, pre_quant_scale
//                       (multipliers); INT4 packed along N, INT8 as I8
//   compressed-tensors  weight_packed, weight_scale, weight_global_scale, input_global_scale
//                       (divisors); integers in I32 words with weight_shape, weight_zero_point,
//                       weight_g_idx
//   AutoAWQ             qweight (K, N/8), qzeros (G, N/8), scales (G, N)
//   GPTQ                qweight (K·b/32, N), qzeros (G, N·b/32), scales (G, N), g_idx (K)
//   DeepSeek, Qwen FP8  weight, weight_scale_inv (multiplied, despite its name)
//   transformers FP8    ... with activation_scale
#pragma once

#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "formats/checkpoint.h"

namespace nibble::formats {

// How integer codes lie in `weight`; kAsViewed: the formats that QuantView describes as stored.
enum class CodeLayout : uint8_t {
  kAsViewed,
  kSignedBytes,
  kWordsAlongK,
  kPairsAlongN,
  kAwq,
  kGptq
};

struct LinearParts {
  WeightFormat format = WeightFormat::kBf16;
  CodeLayout layout = CodeLayout::kAsViewed;
  int64_t n = 0;
  int64_t k = 0;
  int64_t scale_block_n = 1;
  int64_t scale_block_k = 1;
  const TensorEntry* weight = nullptr;
  const TensorEntry* scale = nullptr;
  const TensorEntry* zeros = nullptr;
  const TensorEntry* group_index = nullptr;  // group of each column
  const TensorEntry* shape = nullptr;        // compressed-tensors' weight_shape
  const TensorEntry* global_scale = nullptr;
  const TensorEntry* input_scale = nullptr;
  const TensorEntry* input_multiplier = nullptr;  // pre_quant_scale
  const TensorEntry* unused = nullptr;            // belongs to it, and nothing is made of it
  bool scalars_are_divisors = false;              // global and input scale

  int64_t groups() const { return (k + scale_block_k - 1) / scale_block_k; }
};

// The linear whose tensors start with `prefix`.
Result<LinearParts> ClassifyLinear(const Checkpoint& checkpoint, std::string_view prefix);

}  // namespace nibble::formats
