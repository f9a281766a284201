// operator new of kernels_tests: memory that the GPU can read and write in place, so that parity
// tests hand the same vectors to every backend. Blocks of powers of two out of one pinned region;
// malloc where there is no GPU, or when the region is used up.
//
// A block is full of NaN, and so is what lies before and behind it: what a kernel reads beside its
// arrays shows in its results. What it writes there stops the tests when the block is freed.
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

namespace {

constexpr size_t kRegion = size_t{6} << 30;
constexpr size_t kHeader = 256;        // keeps blocks aligned; begins with a Header
constexpr size_t kGuard = 256;         // at least so much NaN behind a block
constexpr size_t kMostChecked = 4096;  // of what is behind it

struct Header {
  int size_class;
  size_t bytes;  // asked for
};

class PinnedRegion {
 public:
  void* Take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    if (!tried_) {
      tried_ = true;
      void* memory = nullptr;
      if (cudaHostAlloc(&memory, kRegion, cudaHostAllocMapped) == cudaSuccess)
        base_ = static_cast<std::byte*>(memory);
      cudaGetLastError();
    }
    int size_class = 8;
    while ((size_t{1} << size_class) < bytes + kGuard) ++size_class;
    if (base_ == nullptr) return nullptr;
    const size_t size = size_t{1} << size_class;
    std::byte* block = free_[size_class];
    if (block != nullptr) {
      std::memcpy(&free_[size_class], block, sizeof(block));
    } else {
      if (used_ + size + kHeader > kRegion) return nullptr;
      block = base_ + used_ + kHeader;
      used_ += size + kHeader;
    }
    std::memset(block - kHeader, 0xFF, kHeader + size);
    const Header header = {size_class, bytes};
    std::memcpy(block - kHeader, &header, sizeof(header));
    return block;
  }

  // Whether the block was one of this region.
  bool Give(void* block) {
    auto* bytes = static_cast<std::byte*>(block);
    if (base_ == nullptr || bytes < base_ || bytes >= base_ + kRegion) return false;
    const std::lock_guard lock(mutex_);
    Header header;
    std::memcpy(&header, bytes - kHeader, sizeof(header));
    CheckGuards(bytes, header);
    std::memcpy(bytes, &free_[header.size_class], sizeof(bytes));
    free_[header.size_class] = bytes;
    return true;
  }

 private:
  static void CheckGuards(const std::byte* block, const Header& header) {
    const auto check = [&](const std::byte* begin, const std::byte* end) {
      for (const std::byte* at = begin; at < end; ++at) {
        if (*at == std::byte{0xFF}) continue;
        std::fprintf(stderr, "byte %td of an array of %zu bytes was written\n", at - block,
                     header.bytes);
        std::abort();
      }
    };
    check(block - kHeader + sizeof(Header), block);
    const size_t behind = (size_t{1} << header.size_class) - header.bytes;
    check(block + header.bytes,
          block + header.bytes + (behind < kMostChecked ? behind : kMostChecked));
  }

  std::mutex mutex_;
  bool tried_ = false;
  std::byte* base_ = nullptr;
  size_t used_ = 0;
  std::byte* free_[64] = {};
};

PinnedRegion& Region() {
  alignas(PinnedRegion) static std::byte memory[sizeof(PinnedRegion)];
  static PinnedRegion* const region = new (memory) PinnedRegion;
  return *region;
}

void* Allocate(size_t bytes) {
  static thread_local bool inside = false;  // the driver allocates, too
  if (!inside) {
    inside = true;
    void* block = Region().Take(bytes);
    inside = false;
    if (block != nullptr) return block;
  }
  void* block = std::malloc(bytes > 0 ? bytes : 1);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}

void Free(void* block) {
  if (block != nullptr && !Region().Give(block)) std::free(block);
}

}  // namespace

void* operator new(size_t bytes) { return Allocate(bytes); }
void* operator new[](size_t bytes) { return Allocate(bytes); }
void operator delete(void* block) noexcept { Free(block); }
void operator delete[](void* block) noexcept { Free(block); }
void operator delete(void* block, size_t) noexcept { Free(block); }
void operator delete[](void* block, size_t) noexcept { Free(block); }
