// Shared by the tests of linear: stored weights with random content, a runner of one table's ops
// and the comparison that tolerance.h asks for. Tests only.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "device/buffer.h"
#include "kernels/ops.h"
#include "kernels/tolerance.h"
#include "kernels/weight_check.h"
#include "numerics/bf16.h"
#include "numerics/e4m3.h"
#include "numerics/f16.h"

namespace nibble::kernels {

// A stored weight with random content.
struct Stored {
  std::vector<std::byte> data;
  std::vector<std::byte> scales;
  std::vector<uint8_t> zeros;
  std::vector<int32_t> column_order;
  std::vector<float> input_multiplier;
  QuantView view;
};

template <typename T>
void Append(std::vector<std::byte>& bytes, T value) {
  const auto* begin = reinterpret_cast<const std::byte*>(&value);
  bytes.insert(bytes.end(), begin, begin + sizeof(T));
}

// How the block scales of FP8, INT4 and INT8 are stored.
struct BlockScales {
  DType dtype = DType::kF32;
  int64_t block_n = 1;
  int64_t block_k = int64_t{1} << 40;
  bool zeros = false;  // INT4, INT8
};

inline void AppendFloat(std::vector<std::byte>& bytes, DType dtype, float value) {
  if (dtype == DType::kF32) {
    Append(bytes, value);
  } else if (dtype == DType::kF16) {
    Append(bytes, F16FromFloat(value));
  } else {
    Append(bytes, Bf16FromFloat(value));
  }
}

inline void AppendElements(WeightFormat format, int64_t count, std::mt19937& random,
                           std::vector<std::byte>& data) {
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < count; ++i) {
    const float value = normal(random) * 0.05f;
    switch (format) {
      case WeightFormat::kNvfp4:
      case WeightFormat::kMxfp4:
      case WeightFormat::kInt4:
        if (i % 2 == 0) Append(data, static_cast<uint8_t>(random()));
        break;
      case WeightFormat::kInt8:
        Append(data, static_cast<uint8_t>(random()));
        break;
      case WeightFormat::kFp8:
        Append(data, E4M3FromFloat(value * 100.0f));  // subnormals included
        break;
      case WeightFormat::kF32:
        AppendFloat(data, DType::kF32, value);
        break;
      case WeightFormat::kF16:
        AppendFloat(data, DType::kF16, value);
        break;
      case WeightFormat::kBf16:
        AppendFloat(data, DType::kBF16, value);
        break;
    }
  }
}

inline Stored MakeWeight(WeightFormat format, int64_t n, int64_t k, uint32_t seed,
                         float global_scale = 1, BlockScales blocks = {}) {
  std::mt19937 random(seed);
  Stored stored;
  QuantView& view = stored.view;
  view = {.format = format, .n = n, .k = k, .global_scale = global_scale};
  AppendElements(format, n * k, random, stored.data);
  view.data = stored.data.data();
  const bool integer = format == WeightFormat::kInt4 || format == WeightFormat::kInt8;
  if (format == WeightFormat::kFp8 || integer) {
    view.scale_dtype = blocks.dtype;
    view.scale_block_n = integer ? 1 : blocks.block_n;
    view.scale_block_k = std::min(blocks.block_k, k);
  }
  for (int64_t i = 0; i < view.scale_bytes() * 8 / DTypeBits(view.scale_dtype); ++i) {
    if (format == WeightFormat::kNvfp4) {
      stored.scales.push_back(std::byte(random() % 0x7F));
    } else if (format == WeightFormat::kMxfp4 || view.scale_dtype == DType::kF8E8M0) {
      stored.scales.push_back(std::byte(115 + random() % 12));
    } else {
      AppendFloat(stored.scales, view.scale_dtype,
                  0.01f + 0.02f * static_cast<float>(random() % 100));
    }
  }
  view.scales = stored.scales.data();
  if (integer && blocks.zeros) {
    const int64_t count = n * ((k + view.scale_block_k - 1) / view.scale_block_k);
    const int zero_values = format == WeightFormat::kInt4 ? 17 : 256;
    for (int64_t i = 0; i < count; ++i) {
      stored.zeros.push_back(static_cast<uint8_t>(random() % zero_values));
    }
    view.zeros = stored.zeros.data();
  }
  return stored;
}

// Gives the weight a column order, input multipliers or both.
inline void TransformInputs(Stored& stored, bool order, bool multiplier, uint32_t seed) {
  std::mt19937 random(seed);
  const int64_t k = stored.view.k;
  if (order) {
    stored.column_order.resize(k);
    std::iota(stored.column_order.begin(), stored.column_order.end(), 0);
    std::shuffle(stored.column_order.begin(), stored.column_order.end(), random);
    stored.view.column_order = stored.column_order.data();
  }
  if (multiplier) {
    for (int64_t i = 0; i < k; ++i) {
      stored.input_multiplier.push_back(0.1f + 0.003f * static_cast<float>(random() % 1000));
    }
    stored.view.input_multiplier = stored.input_multiplier.data();
  }
}

// x as the weight's columns meet it, token by token.
inline std::vector<uint16_t> Transformed(const QuantView& view, const std::vector<uint16_t>& x) {
  std::vector<uint16_t> out(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const int64_t token = static_cast<int64_t>(i) / view.k;
    const int64_t column = static_cast<int64_t>(i) % view.k;
    const int64_t from = view.column_order == nullptr ? column : view.column_order[column];
    const float factor = view.input_multiplier == nullptr ? 1.0f : view.input_multiplier[column];
    out[i] = Bf16FromFloat(Bf16ToFloat(x[token * view.k + from]) * factor);
  }
  return out;
}

inline std::vector<uint16_t> MakeActivations(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> x(count);
  for (uint16_t& value : x) value = Bf16FromFloat(normal(random));
  return x;
}

// A linear with its scratch: runs one table's ops.
class Runner {
 public:
  Runner(const OpTable& ops, int threads = 1) : ops_(ops), pool_(threads) {}

  std::unique_ptr<PackedWeight> Pack(std::span<const QuantView> parts,
                                     ActivationFormat activations) {
    auto packed = ops_.pack_weight({.parts = parts, .activations = activations, .pool = &pool_});
    EXPECT_TRUE(packed.has_value()) << packed.error().message();
    return std::move(*packed);
  }

  std::vector<float> Linear(const PackedWeight& weight, const std::vector<uint16_t>& x,
                            const std::vector<float>& bias = {}) {
    const int64_t m = static_cast<int64_t>(x.size()) / weight.k();
    std::vector<float> y(m * weight.n());
    Call(weight, x, bias, nullptr, y.data());
    return y;
  }

  std::vector<uint16_t> LinearBf16(const PackedWeight& weight, const std::vector<uint16_t>& x,
                                   const std::vector<float>& bias = {}) {
    const int64_t m = static_cast<int64_t>(x.size()) / weight.k();
    std::vector<uint16_t> y(m * weight.n());
    Call(weight, x, bias, y.data(), nullptr);
    return y;
  }

  std::vector<uint16_t> Embed(const PackedWeight& table, const std::vector<int32_t>& ids) {
    std::vector<uint16_t> out(ids.size() * table.k());
    ops_.embed({.pool = &pool_}, {.ids = ids.data(),
                                  .table = &table,
                                  .out = out.data(),
                                  .t = static_cast<int64_t>(ids.size())});
    return out;
  }

 private:
  void Call(const PackedWeight& weight, const std::vector<uint16_t>& x,
            const std::vector<float>& bias, uint16_t* y, float* y_f32) {
    const int64_t m = static_cast<int64_t>(x.size()) / weight.k();
    const size_t bytes = ops_.linear_workspace(m, weight.k());
    Buffer workspace = std::move(*Buffer::Allocate(bytes, *ops_.device));
    ops_.linear({.pool = &pool_, .workspace = workspace.data(), .workspace_bytes = bytes},
                {.x = x.data(),
                 .x_stride = weight.k(),
                 .weight = &weight,
                 .bias = bias.empty() ? nullptr : bias.data(),
                 .y = y,
                 .y_f32 = y_f32,
                 .y_stride = weight.n(),
                 .m = m});
  }

  const OpTable& ops_;
  ThreadPool pool_;
};

// Sum over K of |x * w|, per (token, row).
inline std::vector<float> Magnitudes(std::span<const QuantView> parts,
                                     const std::vector<uint16_t>& x) {
  const int64_t k = parts[0].k;
  const int64_t m = static_cast<int64_t>(x.size()) / k;
  int64_t n = 0;
  for (const QuantView& part : parts) n += part.n;
  std::vector<float> sums(m * n);
  std::vector<float> w(k);
  int64_t row = 0;
  for (const QuantView& part : parts) {
    for (int64_t r = 0; r < part.n; ++r, ++row) {
      DequantizeRow(part, r, w.data());
      for (int64_t token = 0; token < m; ++token) {
        float sum = 0;
        for (int64_t i = 0; i < k; ++i) sum += std::fabs(Bf16ToFloat(x[token * k + i]) * w[i]);
        sums[token * n + row] = sum;
      }
    }
  }
  return sums;
}

inline void ExpectClose(const std::vector<float>& y, const std::vector<float>& ref,
                        const std::vector<float>& magnitudes) {
  ASSERT_EQ(y.size(), ref.size());
  for (size_t i = 0; i < y.size(); ++i) {
    // Two percent more: int8 activations may be larger than what they stand for.
    ASSERT_LE(std::fabs(y[i] - ref[i]), 1.02f * kLinearTolerance * magnitudes[i])
        << "at " << i << ": " << y[i] << " instead of " << ref[i];
  }
}

inline std::vector<std::string> Variants() {
  std::vector<std::string> names;
  for (const OpTable* table : CpuOpsVariants()) names.emplace_back(table->variant);
  return names;
}

}  // namespace nibble::kernels
