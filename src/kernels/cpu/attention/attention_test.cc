// A query row's bits do not depend on the rows that share its tile: kernels of few rows, which read
// keys and values as they lie, against those of many, which widen them first.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/ops.h"
#include "numerics/bf16.h"

namespace nibble::kernels {
namespace {

constexpr int32_t kPageSize = 16;
constexpr int32_t kLength = 16 * 19 + 5;  // two chunks and a part of a block
constexpr int32_t kPromptTokens = 33;     // more rows than any kernel of few takes

struct Shape {
  int32_t group;
  int32_t head_dim;
  KvFormat format;
};

std::vector<uint16_t> Numbers(int64_t n, uint32_t seed) {
  std::vector<uint16_t> values(n);
  for (uint16_t& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = Bf16FromFloat(static_cast<float>(seed >> 8) * 0x1p-22f - 2.0f);
  }
  return values;
}

std::vector<std::byte> Cache(const Shape& shape, int64_t elements, uint32_t seed) {
  std::vector<std::byte> bytes(elements * KvElementBytes(shape.format));
  const std::vector<uint16_t> numbers = Numbers(elements, seed);
  if (shape.format == KvFormat::kBf16) {
    std::memcpy(bytes.data(), numbers.data(), bytes.size());
  } else {  // all codes but the largest, subnormal ones often
    for (int64_t i = 0; i < elements; ++i)
      bytes[i] =
          static_cast<std::byte>(numbers[i] % 3 == 0 ? numbers[i] & 0x87 : numbers[i] & 0xBF);
  }
  return bytes;
}

// What the last token of a sequence gives when its last `tokens` tokens run at once.
std::vector<uint16_t> LastToken(const OpTable& ops, const Shape& shape, int32_t tokens) {
  const int64_t pages = (kLength + kPageSize - 1) / kPageSize;
  const int64_t elements = pages * kPageSize * shape.head_dim;
  const std::vector<uint16_t> all =
      Numbers(int64_t{kPromptTokens} * shape.group * shape.head_dim, 1);
  const int64_t width = int64_t{shape.group} * shape.head_dim;
  const std::vector<uint16_t> q(all.end() - tokens * width, all.end());
  std::vector<std::byte> k = Cache(shape, elements, 2), v = Cache(shape, elements, 3);
  std::vector<int32_t> table(pages);
  for (int64_t i = 0; i < pages; ++i) table[i] = static_cast<int32_t>(pages - 1 - i);
  std::vector<uint16_t> out(q.size());
  const size_t bytes = ops.attention_workspace(1, tokens, shape.group, shape.head_dim);
  std::vector<std::byte> workspace(bytes + 64);
  ThreadPool pool(1);
  const int32_t q_start[] = {0, tokens};
  const auto address = reinterpret_cast<uintptr_t>(workspace.data());
  ops.attention({.pool = &pool,
                 .workspace = workspace.data() + (64 - address % 64) % 64,
                 .workspace_bytes = bytes},
                {.q = q.data(),
                 .out = out.data(),
                 .t = tokens,
                 .sequences = 1,
                 .q_start = q_start,
                 .kv_len = &kLength,
                 .page_table = table.data(),
                 .max_pages = pages,
                 .q_heads = shape.group,
                 .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
                 .cache = {.k = k.data(),
                           .v = v.data(),
                           .format = shape.format,
                           .key_layout = KeyLayout::kPairs,
                           .page_size = kPageSize,
                           .kv_heads = 1,
                           .head_dim = shape.head_dim}});
  return {out.end() - width, out.end()};
}

TEST(CpuAttention, RowsAloneHaveTheBitsOfRowsTogether) {
  for (const char* name : {"avx512bf16", "avx512", "avx2", "neon", "generic"}) {
    const auto ops = CpuOpsVariant(name);
    if (!ops) continue;
    for (const KvFormat format : {KvFormat::kBf16, KvFormat::kFp8})
      for (const int32_t head_dim : {64, 96, 128})
        for (int32_t group = 1; group <= 9; ++group) {
          const Shape shape{.group = group, .head_dim = head_dim, .format = format};
          EXPECT_EQ(LastToken(**ops, shape, 1), LastToken(**ops, shape, kPromptTokens))
              << name << ", " << group << " heads of " << head_dim << ", " << KvElementBytes(format)
              << " bytes";
        }
  }
}

}  // namespace
}  // namespace nibble::kernels
