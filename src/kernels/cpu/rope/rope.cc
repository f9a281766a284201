#include "kernels/cpu/rope/rope.h"

#include <cstring>

#include "kernels/cpu/parallel.h"
#include "kernels/nvfp4_cache.h"

namespace nibble::kernels::cpu {
namespace {

// The row of the cache that a slot = page * page_size + offset has in a head.
int64_t CacheRow(const KvLayerView& cache, int64_t slot, int32_t kv_head) {
  const int64_t page = slot / cache.page_size;
  return (page * cache.kv_heads + kv_head) * cache.page_size + slot % cache.page_size;
}

// head (Dh) in the cache's format to `out`.
void EncodeHead(const VectorKernels& kernels, const KvLayerView& cache, float scale,
                const uint16_t* head, std::byte* out) {
  if (cache.format == KvFormat::kBf16)
    std::memcpy(out, head, static_cast<size_t>(cache.head_dim) * sizeof(uint16_t));
  else
    kernels.encode_e4m3(head, scale, cache.head_dim, reinterpret_cast<uint8_t*>(out));
}

void StoreValue(const VectorKernels& kernels, const KvLayerView& cache, int64_t row,
                const uint16_t* head) {
  if (cache.format == KvFormat::kNvfp4) return StoreNvfp4Row(cache, cache.v, row, head);
  const int64_t bytes = cache.head_dim * KvElementBytes(cache.format);
  EncodeHead(kernels, cache, cache.v_scale, head, cache.v + row * bytes);
}

// Pair: an integer as wide as two elements.
template <typename Pair>
void ScatterPairs(const std::byte* head, int64_t pairs, std::byte* out) {
  constexpr int64_t kStride = 16 * sizeof(Pair);
  for (int64_t i = 0; i < pairs; ++i)
    std::memcpy(out + i * kStride, head + i * static_cast<int64_t>(sizeof(Pair)), sizeof(Pair));
}

void StoreKey(const VectorKernels& kernels, const KvLayerView& cache, int64_t row,
              const uint16_t* head) {
  if (cache.format == KvFormat::kNvfp4) return StoreNvfp4Row(cache, cache.k, row, head);
  const int64_t element_bytes = KvElementBytes(cache.format);
  std::byte* out = cache.k + KeyIndex(cache, row, 0) * element_bytes;
  if (cache.key_layout == KeyLayout::kRows)
    return EncodeHead(kernels, cache, cache.k_scale, head, out);
  std::byte encoded[kMaxHeadDim * sizeof(uint16_t)];
  EncodeHead(kernels, cache, cache.k_scale, head, encoded);
  if (element_bytes == 2)
    ScatterPairs<uint32_t>(encoded, cache.head_dim / 2, out);
  else
    ScatterPairs<uint16_t>(encoded, cache.head_dim / 2, out);
}

class RopeWriter {
 public:
  RopeWriter(const VectorKernels& kernels, const RopeAndCacheParams& params)
      : kernels_(kernels), p_(params), head_dim_(params.cache.head_dim) {}

  void WriteToken(int64_t t) const {
    const int64_t q_width = p_.q_heads * head_dim_;
    const int64_t kv_width = p_.cache.kv_heads * head_dim_;
    const uint16_t* q = p_.qkv + t * (p_.qkv_stride > 0 ? p_.qkv_stride : q_width + 2 * kv_width);
    for (int64_t at = 0; at < q_width; at += head_dim_)
      Transform(t, q + at, p_.q_norm, p_.q_out + t * q_width + at);
    if (p_.q_scale != nullptr)
      kernels_.scale_row(p_.q_out + t * q_width, p_.q_scale[p_.positions[t]], q_width);
    const uint16_t* k = q + q_width;
    const uint16_t* v = k + kv_width;
    uint16_t head[kMaxHeadDim];
    for (int32_t h = 0; h < p_.cache.kv_heads; ++h) {
      Transform(t, k + h * head_dim_, p_.k_norm, head);
      const int64_t row = CacheRow(p_.cache, p_.slots[t], h);
      StoreKey(kernels_, p_.cache, row, head);
      StoreValue(kernels_, p_.cache, row, v + h * head_dim_);
    }
  }

 private:
  void Transform(int64_t t, const uint16_t* in, const float* norm, uint16_t* out) const {
    const bool norm_first = norm != nullptr && !p_.norm_after_rotation;
    if (norm_first) {
      kernels_.rms_norm(in, norm, head_dim_, p_.eps, p_.norm_style, out);
      in = out;
    }
    const int64_t turned = p_.cos != nullptr ? p_.rotary_dim : 0;
    if (turned > 0) Turn(p_.positions[t], in, out);
    if (in != out)
      std::memcpy(out + turned, in + turned,
                  static_cast<size_t>(head_dim_ - turned) * sizeof(uint16_t));
    if (norm != nullptr && !norm_first)
      kernels_.rms_norm(out, norm, head_dim_, p_.eps, p_.norm_style, out);
  }

  void Turn(int64_t position, const uint16_t* in, uint16_t* out) const {
    const int64_t half = p_.rotary_dim / 2;
    const int64_t angle = position * half;
    const auto turn = p_.pairs == RopePairs::kHalves ? kernels_.rotate : kernels_.rotate_neighbours;
    turn(in, p_.cos + angle, p_.sin + angle, half, out);
  }

  const VectorKernels& kernels_;
  const RopeAndCacheParams& p_;
  const int64_t head_dim_;
};

class MlaRopeWriter {
 public:
  MlaRopeWriter(const VectorKernels& kernels, const MlaRopeAndCacheParams& params)
      : kernels_(kernels), p_(params) {}

  void WriteToken(int64_t t) const {
    const uint16_t* kv_a = p_.kv_a + t * p_.kv_a_stride;
    uint16_t row[kMaxHeadDim];
    kernels_.rms_norm(kv_a, p_.kv_norm, p_.latent_dim, p_.eps, NormStyle::kRoundThenScale, row);
    Turn(t, kv_a + p_.latent_dim, row + p_.latent_dim);
    StoreKey(kernels_, p_.cache, CacheRow(p_.cache, p_.slots[t], 0), row);
    const int64_t width = p_.latent_dim + p_.rope_dim;
    uint16_t* q_out = p_.q_out + t * p_.q_heads * width + p_.latent_dim;
    for (int32_t h = 0; h < p_.q_heads; ++h)
      Turn(t, p_.q + t * p_.q_stride + h * p_.q_head_stride, q_out + h * width);
  }

 private:
  void Turn(int64_t t, const uint16_t* in, uint16_t* out) const {
    const int64_t half = p_.rope_dim / 2;
    const int64_t angle = p_.positions[t] * half;
    uint16_t halves[kMaxHeadDim];
    if (p_.pairs == RopePairs::kNeighbours) {
      for (int64_t i = 0; i < half; ++i) {
        halves[i] = in[2 * i];
        halves[half + i] = in[2 * i + 1];
      }
      in = halves;
    }
    kernels_.rotate(in, p_.cos + angle, p_.sin + angle, half, out);
  }

  const VectorKernels& kernels_;
  const MlaRopeAndCacheParams& p_;
};

// Elements of a token that pay for waking a thread.
constexpr int64_t kGrainElements = 8192;

}  // namespace

void RopeAndCache(const VectorKernels& kernels, const OpContext& context,
                  const RopeAndCacheParams& params) {
  const int64_t width = int64_t{params.q_heads + 2 * params.cache.kv_heads} * params.cache.head_dim;
  const RopeWriter writer(kernels, params);
  ForEachRange(context, params.t, kGrainElements / width + 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) writer.WriteToken(t);
  });
}

void MlaRopeAndCache(const VectorKernels& kernels, const OpContext& context,
                     const MlaRopeAndCacheParams& params) {
  const int64_t width = params.latent_dim + int64_t{params.q_heads + 1} * params.rope_dim;
  const MlaRopeWriter writer(kernels, params);
  ForEachRange(context, params.t, kGrainElements / width + 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) writer.WriteToken(t);
  });
}

}  // namespace nibble::kernels::cpu
