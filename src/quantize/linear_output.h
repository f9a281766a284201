// The tensors that make up one quantised linear of the output, and their writing.
//
//                       ModelOpt                       compressed-tensors
//   NVFP4   weight U8 (N, K/2)                         weight_packed U8 (N, K/2)
//           weight_scale F8_E4M3 (N, K/16)             weight_scale F8_E4M3 (N, K/16)
//           weight_scale_2, input_scale F32 []         weight_global_scale, input_global_scale F32
//           pre_quant_scale F32 (K)                    [1]: divisors
//   MXFP4   weight U8, weight_scale U8 (N, K/32)       weight_packed U8, weight_scale U8 (N, K/32)
//   INT4                                               weight_packed I32 (N, K/8), weight_scale
//   BF16
//                                                      (N, K/group), weight_shape I64 [2]
//   FP8                                                weight F8_E4M3 (N, K), weight_scale BF16
//                                                      (N, 1)
#pragma once

#include <span>
#include <string>
#include <vector>

#include "formats/safetensors_writer.h"
#include "quantize/output_config.h"

namespace nibble::quantize {

struct EncodedLinear {
  std::span<const uint8_t> codes;
  std::span<const uint8_t> scales;
  float tensor_scale = 1.0f;               // NVFP4
  float input_scale = 0.0f;                // with Scheme::activations
  std::span<const float> pre_quant_scale;  // (K), with Scheme::smoothed
};

// Shapes and names, for a linear (N, K).
std::vector<formats::TensorSpec> LinearSpecs(const std::string& module, int64_t n, int64_t k,
                                             const Scheme& scheme, Layout layout);

Status WriteLinear(formats::ShardedWriter& writer, const std::string& module, int64_t n, int64_t k,
                   const Scheme& scheme, Layout layout, const EncodedLinear& linear);

}  // namespace nibble::quantize
