// operator new of kernels_tests: memory that the GPU can read and write in place, so that parity
// tests hand the same vectors to every backend. Blocks of powers of two out of one pinned region;
// malloc where there is no GPU, or when the region is used up.
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>

namespace {

constexpr size_t kRegion = size_t{6} << 30;
constexpr size_t kHeader = 256;  // keeps blocks aligned; holds the size class

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
    while ((size_t{1} << size_class) < bytes) ++size_class;
    if (base_ == nullptr) return nullptr;
    if (void* block = free_[size_class]) {
      free_[size_class] = *static_cast<void**>(block);
      return block;
    }
    const size_t size = (size_t{1} << size_class) + kHeader;
    if (used_ + size > kRegion) return nullptr;
    std::byte* block = base_ + used_ + kHeader;
    used_ += size;
    *reinterpret_cast<int*>(block - kHeader) = size_class;
    return block;
  }

  // Whether the block was one of this region.
  bool Give(void* block) {
    auto* bytes = static_cast<std::byte*>(block);
    if (base_ == nullptr || bytes < base_ || bytes >= base_ + kRegion) return false;
    const std::lock_guard lock(mutex_);
    const int size_class = *reinterpret_cast<int*>(bytes - kHeader);
    *static_cast<void**>(block) = free_[size_class];
    free_[size_class] = block;
    return true;
  }

 private:
  std::mutex mutex_;
  bool tried_ = false;
  std::byte* base_ = nullptr;
  size_t used_ = 0;
  void* free_[64] = {};
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
