#include <atomic>
#include <numeric>
#include <span>

#include "models/model.h"
#include "numerics/nvfp4.h"

namespace nibble::models {
namespace {

int64_t RoundUpToLine(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Host memory is read by the CPU's kernels and ref alone.
kernels::KeyLayout KeysIn(const KvSpec& spec, kernels::KvFormat format, const Device& device) {
  const bool pairs = device.host_memory() && !spec.shared_kv && spec.head_dim % 2 == 0 &&
                     format != kernels::KvFormat::kNvfp4;
  return pairs ? kernels::KeyLayout::kPairs : kernels::KeyLayout::kRows;
}

}  // namespace

int64_t KvBytesPerToken(const ModelInfo& info, kernels::KvFormat format) {
  int64_t elements = 0;
  for (const KvSpec& spec : info.kv) elements += spec.elements();
  return kernels::KvBytes(format, elements);
}

int64_t StateBytes(const ModelInfo& info) {
  int64_t bytes = 0;
  for (const StateSpec& spec : info.state)
    bytes += RoundUpToLine(spec.conv) + RoundUpToLine(spec.recurrent);
  return bytes;
}

int64_t PromptChunk(const ModelInfo& info, const kernels::OpTable& ops) {
  const bool chunks = std::ranges::any_of(info.state, &StateSpec::chunks);
  return chunks ? ops.delta_chunk : 1;
}

int64_t SectionBytes::total() const {
  return std::accumulate(bytes, bytes + kSections, int64_t{0}) -
         bytes[static_cast<int>(Section::kDraft)];
}

Result<KvPool> KvPool::Create(const ModelInfo& info, kernels::KvFormat format, int32_t page_size,
                              int64_t pages, int64_t state_slots, Device& device) {
  NIBBLE_CHECK(page_size >= 16 && page_size <= 256 && (page_size & (page_size - 1)) == 0,
               "page_size {}", page_size);
  for (const KvSpec& spec : info.kv) {
    if (format != kernels::KvFormat::kNvfp4 || spec.head_dim % kNvfp4Block == 0) continue;
    return Fail(Code::kUnsupported,
                "a KV cache in NVFP4 with heads of {} dimensions: must be a multiple of {}; use "
                "--kv-cache-dtype fp8",
                spec.head_dim, kNvfp4Block);
  }
  static std::atomic<uint64_t> pools = 0;
  KvPool pool;
  pool.id_ = ++pools;
  pool.device_ = &device;
  pool.pages_ = pages;
  pool.page_size_ = page_size;
  pool.page_bytes_ = KvBytesPerToken(info, format) * page_size;
  pool.state_slots_ = state_slots;
  pool.state_bytes_ = StateBytes(info);
  const int64_t page_memory = RoundUpToLine(pool.page_bytes_ * pages);
  const int64_t bytes = page_memory + pool.state_bytes_ * state_slots;
  NIBBLE_ASSIGN(pool.memory_, Buffer::Allocate(static_cast<size_t>(bytes), device));
  // What nobody has written is read by benchmarks alone; it shall be finite numbers.
  if (!device.host_memory()) device.Clear(pool.memory_.data(), pool.memory_.size());
  std::byte* next = pool.memory_.data();
  for (const KvSpec& spec : info.kv) {
    const int64_t page_bytes =
        kernels::KvBytes(format, int64_t{spec.kv_heads} * spec.head_dim * page_size);
    std::byte* const keys = next;
    next += page_bytes * pages;
    pool.parts_.push_back({keys, page_bytes});
    std::byte* const values = spec.shared_kv ? keys : next;
    if (!spec.shared_kv) {
      pool.parts_.push_back({values, page_bytes});
      next += page_bytes * pages;
    }
    pool.layers_.push_back({.k = keys,
                            .v = values,
                            .format = format,
                            .key_layout = KeysIn(spec, format, device),
                            .k_scale = spec.k_scale,
                            .v_scale = spec.v_scale,
                            .page_size = page_size,
                            .kv_heads = spec.kv_heads,
                            .head_dim = spec.head_dim});
  }
  pool.state_base_ = pool.memory_.data() + page_memory;
  next = pool.state_base_;
  for (const StateSpec& spec : info.state) {
    std::byte* recurrent = next + RoundUpToLine(spec.conv);
    pool.states_.push_back(
        {.conv = {next, pool.state_bytes_}, .recurrent = {recurrent, pool.state_bytes_}});
    next = recurrent + RoundUpToLine(spec.recurrent);
  }
  return pool;
}

void KvPool::SavePage(int64_t page, std::byte* out) const {
  for (const Part& part : parts_) {
    device_->Download(out, part.begin + page * part.page_bytes, part.page_bytes);
    out += part.page_bytes;
  }
}

void KvPool::LoadPage(int64_t page, const std::byte* in) {
  for (const Part& part : parts_) {
    device_->Upload(part.begin + page * part.page_bytes, in, part.page_bytes);
    in += part.page_bytes;
  }
}

void KvPool::CopyState(int64_t from, int64_t to) {
  device_->Copy(StateSlot(to), StateSlot(from), state_bytes_);
}

void KvPool::SaveState(int64_t slot, std::byte* out) const {
  device_->Download(out, StateSlot(slot), state_bytes_);
}

void KvPool::LoadState(int64_t slot, const std::byte* in) {
  device_->Upload(StateSlot(slot), in, state_bytes_);
}

}  // namespace nibble::models
