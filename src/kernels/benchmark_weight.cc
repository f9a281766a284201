#include "kernels/benchmark_weight.h"

#include "base/thread_pool.h"

namespace nibble::kernels {

QuantView BenchWeight::ViewOf(WeightFormat format, int64_t n, int64_t k) {
  QuantView view = {.format = format, .n = n, .k = k, .global_scale = 0.01f};
  if (format == WeightFormat::kInt4 || format == WeightFormat::kInt8) {
    view.scale_dtype = DType::kF16;
    view.scale_block_k = kBenchIntGroup;
  } else if (format == WeightFormat::kFp8) {
    view.scale_dtype = DType::kBF16;
    view.scale_block_n = kBenchFp8Block;
    view.scale_block_k = kBenchFp8Block;
  }
  return view;
}

Result<BenchWeight> BenchWeight::Make(WeightFormat format, int64_t n, int64_t k) {
  BenchWeight weight;
  QuantView& view = weight.view_;
  view = ViewOf(format, n, k);
  NIBBLE_ASSIGN(weight.data_, Buffer::Allocate(view.data_bytes()));
  NIBBLE_ASSIGN(weight.scales_, Buffer::Allocate(view.scale_bytes()));
  BenchBits bits;
  if (format == WeightFormat::kBf16) {
    auto* values = weight.data_.as<uint16_t>();
    for (int64_t i = 0; i < n * k; ++i)
      values[i] = static_cast<uint16_t>(0x3C00 + (bits.Next() & 0x81FFu));
  } else {
    // FP8: no NaN.
    const uint32_t mask = format == WeightFormat::kFp8 ? 0xBFBFBFBFu : 0xFFFFFFFFu;
    auto* codes = weight.data_.as<uint32_t>();
    for (int64_t i = 0; i < view.data_bytes() / 4; ++i) codes[i] = bits.Next() * 2 & mask;
    // F16 scales, likewise: two bytes of 0x30..0x37 are 0.13 to 0.45; a BF16 of them is small.
    auto* scale = weight.scales_.as<uint8_t>();
    for (int64_t i = 0; i < view.scale_bytes(); ++i)
      scale[i] =
          static_cast<uint8_t>((format == WeightFormat::kMxfp4 ? 0x78 : 0x30) + (bits.Next() & 7u));
  }
  view.data = weight.data_.data();
  view.scales = weight.scales_.data();
  return weight;
}

Result<std::unique_ptr<PackedWeight>> MakeBenchWeight(const OpTable& ops, ThreadPool& pool,
                                                      WeightFormat format,
                                                      ActivationFormat activations, int64_t n,
                                                      int64_t k) {
  const int64_t made = n % kBenchRows == 0 ? kBenchRows : n;
  NIBBLE_ASSIGN(const BenchWeight weight, BenchWeight::Make(format, made, k));
  const std::vector<QuantView> parts(n / made, weight.view());
  return ops.pack_weight({.parts = parts, .activations = activations, .pool = &pool});
}

}  // namespace nibble::kernels
