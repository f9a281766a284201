// Shared by the parity tests: the backends of this machine, seeded inputs, a context with a dirty
// workspace, and attention cases whose inputs depend on (sequence, position) alone, so that the
// same case can be run in any batch, chunk and page layout. Tests only.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "device/cpu.h"
#include "kernels/cpu/vector_ops.h"
#if NIBBLE_CUDA
#include "kernels/cuda/testing/synced_ops.h"
#endif
#include "kernels/nvfp4_cache.h"
#include "kernels/ops.h"
#include "kernels/tolerance.h"
#include "numerics/bf16.h"
#include "numerics/e4m3.h"

namespace nibble::kernels {

// Tables of the vector ops for every instruction set that this processor has: whatever variant the
// linear kernels have, these are tested.
inline const OpTable* VectorOpsTable(std::string_view variant) {
  const CpuFeatures& cpu = GetCpuInfo().features;
  if (variant == "avx2" && !cpu.avx2) return nullptr;
  if (variant == "avx512" && !cpu.avx512) return nullptr;
  if (variant == "avx512bf16" && !cpu.avx512_bf16) return nullptr;
  static std::map<std::string_view, OpTable> tables;
  OpTable& table = tables[variant];
  table.device = &HostDevice();
  table.backend = "cpu";
  table.variant = variant;
  return cpu::FillVectorOps(variant, &table) ? &table : nullptr;
}

// Every CPU variant, and the GPU's kernels where there is a GPU.
inline std::vector<const OpTable*> TestedTables() {
  std::vector<const OpTable*> tables;
  for (const char* name : {"generic", "avx2", "avx512", "avx512bf16", "neon"})
    if (const OpTable* table = VectorOpsTable(name)) tables.push_back(table);
#if NIBBLE_CUDA
  if (const OpTable* table = cuda::SyncedOps()) tables.push_back(table);
#endif
  return tables;
}

// A pure function of its arguments, uniform in [-1, 1).
inline float Noise(uint64_t seed, uint64_t index) {
  uint64_t z = seed * 0x9E3779B97F4A7C15u + index * 0xD1B54A32D192ED03u + 0x2545F4914F6CDD1Du;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return static_cast<float>(static_cast<int64_t>(z >> 40) - (1 << 23)) * 0x1p-23f;
}

inline std::vector<uint16_t> NoiseBf16(uint64_t seed, int64_t n, float scale = 1.0f) {
  std::vector<uint16_t> values(n);
  for (int64_t i = 0; i < n; ++i) values[i] = Bf16FromFloat(Noise(seed, i) * scale);
  return values;
}

inline std::vector<float> NoiseF32(uint64_t seed, int64_t n, float scale = 1.0f) {
  std::vector<float> values(n);
  for (int64_t i = 0; i < n; ++i) values[i] = Noise(seed, i) * scale;
  return values;
}

inline std::vector<float> Widen(const std::vector<uint16_t>& bits) {
  std::vector<float> values;
  for (uint16_t value : bits) values.push_back(Bf16ToFloat(value));
  return values;
}

// Rows of `width`, judged as tolerance.h says.
inline void ExpectNear(const std::vector<float>& got, const std::vector<float>& expected,
                       int64_t width, Tolerance tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t row = 0; row < got.size(); row += width) {
    float largest = 0;
    for (int64_t i = 0; i < width; ++i) largest = std::max(largest, std::abs(expected[row + i]));
    for (size_t i = row; i < row + width; ++i) {
      const float allowed =
          tolerance.relative * std::abs(expected[i]) + tolerance.absolute * largest;
      const bool near = got[i] == expected[i] || std::abs(got[i] - expected[i]) <= allowed;
      ASSERT_TRUE(near) << "element " << i % width << " of row " << row / width << ": " << got[i]
                        << " instead of " << expected[i] << " within " << allowed;
    }
  }
}

inline void ExpectNear(const std::vector<uint16_t>& got, const std::vector<uint16_t>& expected,
                       int64_t width, Tolerance tolerance) {
  ExpectNear(Widen(got), Widen(expected), width, tolerance);
}

// A pool and a workspace full of NaN.
class DirtyContext {
 public:
  DirtyContext(int threads, size_t bytes) : pool_(threads), memory_(bytes + 64, std::byte{0xFF}) {
    auto address = reinterpret_cast<uintptr_t>(memory_.data());
    context_ = {.pool = &pool_,
                .workspace = memory_.data() + (64 - address % 64) % 64,
                .workspace_bytes = bytes};
  }
  operator const OpContext&() const { return context_; }

 private:
  ThreadPool pool_;
  std::vector<std::byte> memory_;
  OpContext context_;
};

struct AttentionShape {
  int32_t q_heads = 4;
  int32_t kv_heads = 2;
  int32_t head_dim = 64;
  int32_t window = 0;
  int32_t chunk = 0;
  bool sinks = false;
  KvFormat format = KvFormat::kBf16;
  KeyLayout key_layout = KeyLayout::kRows;
  bool rounded_to_nvfp4 = false;  // what a BF16 cache holds
  bool keys_are_values = false;   // one cache, as in latent attention
};

inline Tolerance AttentionTolerance(const OpTable& ops) {
  return ops.backend == "cuda" ? kTensorCoreAttentionTolerance : kAttentionTolerance;
}

// The last q_len tokens of a sequence of kv_len. `id` names the sequence: it fixes its contents.
struct AttentionSequence {
  uint64_t id = 0;
  int32_t q_len = 1;
  int32_t kv_len = 1;
};

// Element d of head h at a position; kind 0 q, 1 k, 2 v. From a table, as it is asked for often.
inline float AttentionElement(uint64_t id, int kind, int64_t position, int64_t head, int64_t d) {
  static const std::vector<float> noise = NoiseF32(1, 1 << 16);
  const float scale = kind == 0 ? 3.0f : 1.5f;
  const uint64_t index = (id * 3 + kind) * 40503 + position * 7919 + head * 25013 + d;
  return noise[index % noise.size()] * scale;
}

// head (Dh) as an NVFP4 cache would give it back.
inline void RoundToNvfp4(uint16_t* head, int32_t head_dim) {
  const KvLayerView one_row = {.page_size = 1, .head_dim = head_dim};
  std::byte row[kMaxHeadDim];
  StoreNvfp4Row(one_row, row, 0, head);
  LoadNvfp4Row(one_row, row, 0, head);
}

// Key and value of a head at a position into their row of the cache.
inline void StoreCacheRow(const KvLayerView& cache, int64_t row, uint64_t id, int64_t position,
                          int64_t head, bool rounded_to_nvfp4 = false) {
  uint16_t key[kMaxHeadDim], value[kMaxHeadDim];
  for (int64_t d = 0; d < cache.head_dim; ++d) {
    key[d] = Bf16FromFloat(AttentionElement(id, 1, position, head, d));
    value[d] = Bf16FromFloat(AttentionElement(id, 2, position, head, d));
  }
  if (rounded_to_nvfp4) {
    RoundToNvfp4(key, cache.head_dim);
    RoundToNvfp4(value, cache.head_dim);
  }
  if (cache.format == KvFormat::kNvfp4) {
    StoreNvfp4Row(cache, cache.k, row, key);
    StoreNvfp4Row(cache, cache.v, row, value);
    return;
  }
  for (int64_t d = 0; d < cache.head_dim; ++d) {
    const int64_t at[2] = {KeyIndex(cache, row, d), row * cache.head_dim + d};
    if (cache.format == KvFormat::kBf16) {
      std::memcpy(cache.k + at[0] * 2, &key[d], 2);
      std::memcpy(cache.v + at[1] * 2, &value[d], 2);
    } else {
      cache.k[at[0]] = static_cast<std::byte>(E4M3FromFloat(Bf16ToFloat(key[d]) / cache.k_scale));
      cache.v[at[1]] = static_cast<std::byte>(E4M3FromFloat(Bf16ToFloat(value[d]) / cache.v_scale));
    }
  }
}

// What rows of a cache are read as, (Dh) each.
inline std::vector<float> Nvfp4CacheValues(const KvLayerView& cache,
                                           const std::vector<std::byte>& bytes) {
  const int64_t rows = static_cast<int64_t>(bytes.size()) * 16 / 9 / cache.head_dim;
  std::vector<uint16_t> values(rows * cache.head_dim);
  for (int64_t row = 0; row < rows; ++row)
    LoadNvfp4Row(cache, bytes.data(), row, &values[row * cache.head_dim]);
  return Widen(values);
}

// Runs the sequences as one batch; pages in a scrambled order, everything not written is NaN.
inline std::vector<uint16_t> RunAttention(const OpTable& ops, const AttentionShape& shape,
                                          const std::vector<AttentionSequence>& sequences,
                                          int32_t page_size = 16, int threads = 1) {
  const int64_t dh = shape.head_dim;
  int64_t tokens = 0;
  int64_t max_pages = 0;
  for (const AttentionSequence& s : sequences) {
    tokens += s.q_len;
    max_pages = std::max<int64_t>(max_pages, (s.kv_len + page_size - 1) / page_size);
  }
  const int64_t pages = max_pages * static_cast<int64_t>(sequences.size());
  std::vector<int32_t> order(pages);
  for (int64_t i = 0; i < pages; ++i) order[i] = static_cast<int32_t>(i);
  std::sort(order.begin(), order.end(), [&](int a, int b) { return Noise(7, a) < Noise(7, b); });

  const int64_t elements = pages * shape.kv_heads * page_size * dh;
  std::vector<std::byte> k(KvBytes(shape.format, elements), std::byte{0xFF}), v = k;
  KvLayerView cache = {.k = k.data(),
                       .v = shape.keys_are_values ? k.data() : v.data(),
                       .format = shape.format,
                       .key_layout = shape.key_layout,
                       .k_scale = shape.format == KvFormat::kFp8 ? 0.03f : 1.0f,
                       .v_scale = shape.format == KvFormat::kFp8 ? 0.02f : 1.0f,
                       .page_size = page_size,
                       .kv_heads = shape.kv_heads,
                       .head_dim = shape.head_dim};
  std::vector<uint16_t> q, out(tokens * shape.q_heads * dh);
  std::vector<int32_t> q_start = {0}, kv_len, table(pages);
  for (size_t b = 0; b < sequences.size(); ++b) {
    const AttentionSequence& s = sequences[b];
    for (int64_t i = 0; i < max_pages; ++i) table[b * max_pages + i] = order[b * max_pages + i];
    for (int64_t position = 0; position < s.kv_len; ++position) {
      const int64_t page = table[b * max_pages + position / page_size];
      for (int64_t h = 0; h < shape.kv_heads; ++h) {
        const int64_t row = (page * shape.kv_heads + h) * page_size + position % page_size;
        StoreCacheRow(cache, row, s.id, position, h, shape.rounded_to_nvfp4);
      }
    }
    for (int64_t position = s.kv_len - s.q_len; position < s.kv_len; ++position)
      for (int64_t h = 0; h < shape.q_heads; ++h)
        for (int64_t d = 0; d < dh; ++d)
          q.push_back(Bf16FromFloat(AttentionElement(s.id, 0, position, h, d)));
    q_start.push_back(q_start.back() + s.q_len);
    kv_len.push_back(s.kv_len);
  }
  const std::vector<float> sinks = NoiseF32(11, shape.q_heads, 2.0f);
  const DirtyContext context(
      threads, ops.attention_workspace(threads, tokens, shape.q_heads, shape.head_dim));
  ops.attention(context, {.q = q.data(),
                          .out = out.data(),
                          .t = tokens,
                          .sequences = static_cast<int64_t>(sequences.size()),
                          .q_start = q_start.data(),
                          .kv_len = kv_len.data(),
                          .page_table = table.data(),
                          .max_pages = max_pages,
                          .q_heads = shape.q_heads,
                          .scale = 1.0f / std::sqrt(static_cast<float>(dh)),
                          .window = shape.window,
                          .chunk = shape.chunk,
                          .sinks = shape.sinks ? sinks.data() : nullptr,
                          .cache = cache});
  return out;
}

}  // namespace nibble::kernels
