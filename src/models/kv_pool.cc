#include <cstring>

#include "models/model.h"

namespace nibble::models {

int64_t KvBytesPerToken(const ModelInfo& info, kernels::KvFormat format) {
  int64_t elements = 0;
  for (const KvSpec& spec : info.kv) elements += int64_t{2} * spec.kv_heads * spec.head_dim;
  return elements * kernels::KvElementBytes(format);
}

Result<KvPool> KvPool::Create(const ModelInfo& info, kernels::KvFormat format, int32_t page_size,
                              int64_t pages) {
  NIBBLE_CHECK(page_size >= 16 && page_size <= 256 && (page_size & (page_size - 1)) == 0,
               "page_size {}", page_size);
  KvPool pool;
  pool.pages_ = pages;
  pool.page_size_ = page_size;
  pool.page_bytes_ = KvBytesPerToken(info, format) * page_size;
  NIBBLE_ASSIGN(pool.memory_, Buffer::Allocate(static_cast<size_t>(pool.page_bytes_ * pages)));
  std::byte* next = pool.memory_.data();
  for (const KvSpec& spec : info.kv) {
    const int64_t half = int64_t{spec.kv_heads} * spec.head_dim * page_size * pages *
                         kernels::KvElementBytes(format);
    pool.layers_.push_back({.k = next,
                            .v = next + half,
                            .format = format,
                            .k_scale = spec.k_scale,
                            .v_scale = spec.v_scale,
                            .page_size = page_size,
                            .kv_heads = spec.kv_heads,
                            .head_dim = spec.head_dim});
    next += 2 * half;
  }
  return pool;
}

namespace {

// Bytes of k (or of v) of one page in one layer.
int64_t HalfPageBytes(const kernels::KvLayerView& layer) {
  return int64_t{layer.kv_heads} * layer.head_dim * layer.page_size *
         kernels::KvElementBytes(layer.format);
}

}  // namespace

void KvPool::SavePage(int64_t page, std::byte* out) const {
  for (const kernels::KvLayerView& layer : layers_) {
    const int64_t bytes = HalfPageBytes(layer);
    for (const std::byte* half : {layer.k, layer.v}) {
      std::memcpy(out, half + page * bytes, bytes);
      out += bytes;
    }
  }
}

void KvPool::LoadPage(int64_t page, const std::byte* in) {
  for (const kernels::KvLayerView& layer : layers_) {
    const int64_t bytes = HalfPageBytes(layer);
    for (std::byte* half : {layer.k, layer.v}) {
      std::memcpy(half + page * bytes, in, bytes);
      in += bytes;
    }
  }
}

}  // namespace nibble::models
