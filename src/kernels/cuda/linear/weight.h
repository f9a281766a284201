// PackedWeight of the CUDA backend: tiles in the layout of weight_tiles.h, in one buffer on the
// device. Immutable after packing.
#pragma once

#include <memory>

#include "device/buffer.h"
#include "kernels/cuda/linear/weight_tiles.h"
#include "kernels/op_params.h"

namespace nibble::kernels::cuda {

class CudaWeight final : public PackedWeight {
 public:
  // Activations are BF16, whatever is asked for. Errors: those of CheckWeight and CheckBlockScales;
  // kResourceExhausted without memory.
  static Result<std::unique_ptr<CudaWeight>> Pack(const PackParams& params, Device& device);

  WeightFormat format() const override { return format_; }
  ActivationFormat activations() const override { return ActivationFormat::kBf16; }
  int64_t n() const override { return tiles_.n; }
  int64_t k() const override { return tiles_.k; }
  int64_t bytes() const override { return static_cast<int64_t>(buffer_.size()); }
  float input_scale() const override { return input_scale_; }
  Fp8Activations fp8() const override { return fp8_; }

  // Of device memory that lives as long as this.
  const WeightTiles& tiles() const { return tiles_; }
  // What x goes through before the product (tensor/quant_view.h), (K) on the device; null: nothing.
  const int32_t* column_order() const { return column_order_; }
  const float* input_multiplier() const { return input_multiplier_; }
  // Rows of gate and up are paired (weight_tiles.h): for linears with an activation alone.
  bool pairs_rows() const { return pairs_rows_; }
  bool transforms_x() const { return column_order_ != nullptr || input_multiplier_ != nullptr; }

 private:
  CudaWeight() = default;

  WeightFormat format_ = WeightFormat::kBf16;
  float input_scale_ = 0.0f;
  Fp8Activations fp8_;
  WeightTiles tiles_;
  bool pairs_rows_ = false;
  const int32_t* column_order_ = nullptr;
  const float* input_multiplier_ = nullptr;
  Buffer buffer_;  // tiles, row scales, column order, input multiplier
};

inline const CudaWeight& AsCuda(const PackedWeight& weight) {
  return static_cast<const CudaWeight&>(weight);
}

// Whether the activation is a launch of its own: where rows are not paired.
bool ComposesActivation(const LinearParams& params);
// For kernels, which take it by value.
inline Activation ActivationOf(const LinearParams& params) {
  return params.activation != nullptr ? *params.activation : Activation{};
}

}  // namespace nibble::kernels::cuda
