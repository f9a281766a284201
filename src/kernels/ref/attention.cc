#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/nvfp4_cache.h"
#include "kernels/ref/ref.h"
#include "numerics/bf16.h"
#include "numerics/e4m3.h"

namespace nibble::kernels::ref {
namespace {

// The row of a key and a value at `position` of a sequence.
int64_t CacheRow(const KvLayerView& cache, const int32_t* pages, int32_t position,
                 int32_t kv_head) {
  const int64_t page = pages[position / cache.page_size];
  return (page * cache.kv_heads + kv_head) * cache.page_size + position % cache.page_size;
}

float CacheElement(const KvLayerView& cache, const std::byte* base, float scale, int64_t at) {
  if (cache.format == KvFormat::kFp8) return E4M3ToFloat(static_cast<uint8_t>(base[at])) * scale;
  uint16_t bits;
  std::memcpy(&bits, base + at * 2, 2);
  return Bf16ToFloat(bits);
}

// As they are read.
float Key(const KvLayerView& cache, int64_t row, int32_t d) {
  return cache.format == KvFormat::kNvfp4
             ? Nvfp4CacheElement(cache, cache.k, row, d)
             : CacheElement(cache, cache.k, cache.k_scale, KeyIndex(cache, row, d));
}
float Value(const KvLayerView& cache, int64_t row, int32_t d) {
  return cache.format == KvFormat::kNvfp4
             ? Nvfp4CacheElement(cache, cache.v, row, d)
             : CacheElement(cache, cache.v, cache.v_scale, row * cache.head_dim + d);
}

// One head of one query token: softmax over the visible positions, then the weighted sum of values.
void AttendHead(const AttentionParams& p, const int32_t* pages, int32_t position, int32_t head,
                const uint16_t* q, uint16_t* out) {
  const KvLayerView& cache = p.cache;
  const int32_t kv_head = head / (p.q_heads / cache.kv_heads);
  int32_t first = p.window > 0 ? std::max(0, position - p.window + 1) : 0;
  if (p.chunk > 0) first = std::max(first, position / p.chunk * p.chunk);
  std::vector<double> weights;
  double largest = p.sinks != nullptr ? p.sinks[head] : -INFINITY;
  for (int32_t j = first; j <= position; ++j) {
    double score = 0;
    const int64_t row = CacheRow(cache, pages, j, kv_head);
    for (int32_t d = 0; d < cache.head_dim; ++d)
      score += double{Bf16ToFloat(q[d])} * Key(cache, row, d);
    weights.push_back(score * p.scale);
    largest = std::max(largest, weights.back());
  }
  double sum = p.sinks != nullptr ? std::exp(p.sinks[head] - largest) : 0.0;
  for (double& weight : weights) {
    weight = std::exp(weight - largest);
    sum += weight;
  }
  for (int32_t d = 0; d < cache.head_dim; ++d) {
    double value = 0;
    for (int32_t j = first; j <= position; ++j) {
      const int64_t row = CacheRow(cache, pages, j, kv_head);
      value += weights[j - first] * Value(cache, row, d);
    }
    out[d] = Bf16FromFloat(static_cast<float>(value / sum));
  }
}

}  // namespace

void Attention(const OpContext& context, const AttentionParams& params) {
  AttentionParams p = params;
  if (p.rope != nullptr) {
    RopeAndCache(context, *p.rope);
    p.q = p.rope->q_out;
  }
  if (p.mla_rope != nullptr) MlaRopeAndCache(context, *p.mla_rope);
  const int64_t width = int64_t{p.q_heads} * p.cache.head_dim;
  for (int64_t b = 0; b < p.sequences; ++b) {
    for (int32_t i = p.q_start[b]; i < p.q_start[b + 1]; ++i) {
      const int32_t position = p.kv_len[b] - (p.q_start[b + 1] - i);
      for (int32_t h = 0; h < p.q_heads; ++h) {
        const int64_t at = i * width + h * p.cache.head_dim;
        AttendHead(p, p.page_table + b * p.max_pages, position, h, p.q + at, p.out + at);
      }
    }
  }
  if (p.gate != nullptr)
    SigmoidGate(context,
                {.x = p.out, .gate = p.gate, .gate_stride = p.gate_stride, .t = p.t, .n = width});
}

}  // namespace nibble::kernels::ref
