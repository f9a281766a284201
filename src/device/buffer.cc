#include "device/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "base/progress.h"

namespace nibble {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPage = 4096;

size_t RoundUp(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

size_t MappedSize(size_t bytes) { return RoundUp(bytes, bytes >= kHugePage ? kHugePage : kPage); }

// What FillNewBuffers asked for.
std::atomic<bool> fills_new_buffers = false;
std::atomic<std::byte> fill = std::byte{0};
constexpr size_t kMostFilled = size_t{256} << 20;

void Fill(std::byte* memory, size_t bytes, Device& device) {
  const std::vector<std::byte> piece(std::min(bytes, size_t{1} << 20), fill);
  for (size_t at = 0; at < bytes; at += piece.size())
    device.Upload(memory + at, piece.data(), std::min(piece.size(), bytes - at));
  device.Synchronize();
}

}  // namespace

void FillNewBuffers(std::byte value) {
  fill = value;
  fills_new_buffers = true;
}

Result<Buffer> Buffer::Allocate(size_t bytes, Device& device) {
  Buffer buffer;
  if (bytes == 0) return buffer;
  NIBBLE_ASSIGN(buffer.data_, device.Allocate(bytes));
  buffer.size_ = bytes;
  buffer.device_ = &device;
  if (fills_new_buffers && !device.host_memory() && bytes <= kMostFilled)
    Fill(buffer.data_, bytes, device);
  return buffer;
}

Result<Buffer> Buffer::AllocateShared(size_t bytes, Device& device) {
  Buffer buffer;
  if (bytes == 0) return buffer;
  NIBBLE_ASSIGN(buffer.data_, device.AllocateShared(bytes));
  buffer.size_ = bytes;
  buffer.device_ = &device;
  buffer.shared_ = true;
  return buffer;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (shared_) {
    device_->FreeShared(data_, size_);
  } else {
    device_->Free(data_, size_);
  }
}

Result<std::byte*> MapMemory(size_t bytes) {
  if (bytes == 0) return nullptr;
  const bool huge = bytes >= kHugePage;
  const size_t size = MappedSize(bytes);
  // For huge pages map one page more than needed and give the unaligned ends back.
  const size_t reserve = huge ? size + kHugePage : size;
  void* raw = ::mmap(nullptr, reserve, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) {
    return Fail(Code::kResourceExhausted, "cannot allocate {}: the system has not enough memory",
                FormatBytes(static_cast<double>(bytes)));
  }
  auto* begin = static_cast<std::byte*>(raw);
  if (huge) {
    const auto address = reinterpret_cast<uintptr_t>(begin);
    const size_t skip = RoundUp(address, kHugePage) - address;
    if (skip > 0) ::munmap(begin, skip);
    if (skip < kHugePage) ::munmap(begin + skip + size, kHugePage - skip);
    begin += skip;
    ::madvise(begin, size, MADV_HUGEPAGE);
  }
  return begin;
}

void UnmapMemory(std::byte* memory, size_t bytes) {
  if (memory != nullptr) ::munmap(memory, MappedSize(bytes));
}

}  // namespace nibble
