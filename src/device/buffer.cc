#include "device/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "base/progress.h"
#include "device/slabs.h"

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

Result<std::byte*> MapPages(size_t bytes) {
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

// Buffers of less than a huge page, out of slabs that consist of them.
class SmallBuffers {
 public:
  Result<std::byte*> Allocate(size_t bytes) {
    const std::lock_guard lock(mutex_);
    return slabs_.Allocate(RoundUp(bytes, kPage));
  }
  void Free(std::byte* memory, size_t bytes) {
    // Gives the pages back: whoever gets them next finds zeros.
    ::madvise(memory, RoundUp(bytes, kPage), MADV_DONTNEED);
    const std::lock_guard lock(mutex_);
    slabs_.Free(memory);
  }

 private:
  Result<std::byte*> AllocateSlab(size_t bytes) {
    NIBBLE_ASSIGN(std::byte* const memory, MapPages(bytes));
    slab_bytes_[memory] = bytes;
    return memory;
  }
  void FreeSlab(std::byte* memory) {
    const auto found = slab_bytes_.find(memory);
    ::munmap(memory, MappedSize(found->second));
    slab_bytes_.erase(found);
  }

  std::mutex mutex_;
  std::map<std::byte*, size_t> slab_bytes_;
  Slabs slabs_{{.allocate = [this](size_t bytes) { return AllocateSlab(bytes); },
                .free = [this](std::byte* memory) { FreeSlab(memory); },
                .wait = [] {}}};
};

// Never destroyed, as static buffers may outlive anything static here.
SmallBuffers& Small() {
  static auto* const small = new SmallBuffers;
  return *small;
}

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
  return bytes < kHugePage ? Small().Allocate(bytes) : MapPages(bytes);
}

void UnmapMemory(std::byte* memory, size_t bytes) {
  if (memory == nullptr) return;
  if (bytes < kHugePage) return Small().Free(memory, bytes);
  ::munmap(memory, MappedSize(bytes));
}

}  // namespace nibble
