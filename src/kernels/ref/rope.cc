#include <cstring>
#include <vector>

#include "kernels/nvfp4_cache.h"
#include "kernels/ref/ref.h"
#include "numerics/bf16.h"
#include "numerics/e4m3.h"

namespace nibble::kernels::ref {
namespace {

// One head (Dh): pairs turn by the angle of the token's position; the rest stays.
void RotateHead(const float* cos, const float* sin, int32_t rotary_dim, RopePairs pairs,
                uint16_t* head) {
  const int32_t half = rotary_dim / 2;
  for (int32_t i = 0; i < half; ++i) {
    uint16_t& first = pairs == RopePairs::kHalves ? head[i] : head[2 * i];
    uint16_t& second = pairs == RopePairs::kHalves ? head[i + half] : head[2 * i + 1];
    const float a = Bf16ToFloat(first);
    const float b = Bf16ToFloat(second);
    first = Bf16FromFloat(RoundToBf16(a * cos[i]) + RoundToBf16(-b * sin[i]));
    second = Bf16FromFloat(RoundToBf16(b * cos[i]) + RoundToBf16(a * sin[i]));
  }
}

// The row of the cache that a slot = page * page_size + offset has in a head.
int64_t CacheRow(const KvLayerView& cache, int64_t slot, int32_t kv_head) {
  const int64_t page = slot / cache.page_size;
  return (page * cache.kv_heads + kv_head) * cache.page_size + slot % cache.page_size;
}

void StoreElement(const KvLayerView& cache, std::byte* base, float scale, int64_t at,
                  uint16_t value) {
  if (cache.format == KvFormat::kBf16)
    std::memcpy(base + at * 2, &value, sizeof(value));
  else
    base[at] = static_cast<std::byte>(E4M3FromFloat(Bf16ToFloat(value) / scale));
}

void StoreKey(const KvLayerView& cache, int64_t row, const uint16_t* head) {
  if (cache.format == KvFormat::kNvfp4) return StoreNvfp4Row(cache, cache.k, row, head);
  for (int32_t d = 0; d < cache.head_dim; ++d)
    StoreElement(cache, cache.k, cache.k_scale, KeyIndex(cache, row, d), head[d]);
}

void StoreValue(const KvLayerView& cache, int64_t row, const uint16_t* head) {
  if (cache.format == KvFormat::kNvfp4) return StoreNvfp4Row(cache, cache.v, row, head);
  for (int32_t d = 0; d < cache.head_dim; ++d)
    StoreElement(cache, cache.v, cache.v_scale, row * cache.head_dim + d, head[d]);
}

}  // namespace

void RopeAndCache(const OpContext&, const RopeAndCacheParams& p) {
  const int32_t head_dim = p.cache.head_dim;
  const int32_t kv_heads = p.cache.kv_heads;
  std::vector<uint16_t> head(head_dim);
  for (int64_t t = 0; t < p.t; ++t) {
    const int64_t dense = int64_t{p.q_heads + 2 * kv_heads} * head_dim;
    const uint16_t* q = p.qkv + t * (p.qkv_stride > 0 ? p.qkv_stride : dense);
    const uint16_t* k = q + p.q_heads * head_dim;
    const uint16_t* v = k + kv_heads * head_dim;
    const int64_t angle = int64_t{p.positions[t]} * (p.rotary_dim / 2);
    const auto transform = [&](const uint16_t* in, const float* norm) {
      std::copy(in, in + head_dim, head.begin());
      const auto normalize = [&] {
        if (norm == nullptr) return;
        NormalizeRow(head.data(), norm, head_dim, p.eps, p.norm_style, head.data());
      };
      if (!p.norm_after_rotation) normalize();
      if (p.cos != nullptr)
        RotateHead(p.cos + angle, p.sin + angle, p.rotary_dim, p.pairs, head.data());
      if (p.norm_after_rotation) normalize();
    };
    for (int32_t h = 0; h < p.q_heads; ++h) {
      transform(q + h * head_dim, p.q_norm);
      if (p.q_scale != nullptr) {
        for (uint16_t& x : head) x = Bf16FromFloat(Bf16ToFloat(x) * p.q_scale[p.positions[t]]);
      }
      std::copy(head.begin(), head.end(), p.q_out + (t * p.q_heads + h) * head_dim);
    }
    for (int32_t h = 0; h < kv_heads; ++h) {
      transform(k + h * head_dim, p.k_norm);
      const int64_t row = CacheRow(p.cache, p.slots[t], h);
      StoreKey(p.cache, row, head.data());
      StoreValue(p.cache, row, v + h * head_dim);
    }
  }
}

void MlaRopeAndCache(const OpContext&, const MlaRopeAndCacheParams& p) {
  const int32_t half = p.rope_dim / 2;
  const int32_t width = p.latent_dim + p.rope_dim;
  // out (P): the rope part turned, first members of the pairs, then second ones.
  const auto turn = [&](const uint16_t* in, int64_t t, uint16_t* out) {
    for (int32_t i = 0; i < half; ++i) {
      out[i] = p.pairs == RopePairs::kHalves ? in[i] : in[2 * i];
      out[half + i] = p.pairs == RopePairs::kHalves ? in[half + i] : in[2 * i + 1];
    }
    const int64_t angle = int64_t{p.positions[t]} * half;
    RotateHead(p.cos + angle, p.sin + angle, p.rope_dim, RopePairs::kHalves, out);
  };
  std::vector<uint16_t> row(width);
  for (int64_t t = 0; t < p.t; ++t) {
    const uint16_t* kv_a = p.kv_a + t * p.kv_a_stride;
    NormalizeRow(kv_a, p.kv_norm, p.latent_dim, p.eps, NormStyle::kRoundThenScale, row.data());
    turn(kv_a + p.latent_dim, t, row.data() + p.latent_dim);
    StoreKey(p.cache, CacheRow(p.cache, p.slots[t], 0), row.data());
    for (int32_t h = 0; h < p.q_heads; ++h) {
      turn(p.q + t * p.q_stride + h * p.q_head_stride, t,
           p.q_out + (t * p.q_heads + h) * width + p.latent_dim);
    }
  }
}

}  // namespace nibble::kernels::ref
