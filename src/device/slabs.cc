#include "device/slabs.h"

#include <algorithm>
#include <utility>

namespace nibble {

Result<std::byte*> Slabs::Allocate(size_t bytes) {
  if (bytes == 0) return nullptr;
  if (bytes > kLargestPiece) return source_.allocate(bytes);
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return Take(bytes);
}

Result<std::byte*> Slabs::Take(size_t bytes) {
  for (auto& [start, slab] : slabs_) {
    if (slab.size - slab.used < bytes) continue;
    std::byte* const memory = start + slab.used;
    slab.used += bytes;
    ++slab.pieces;
    return memory;
  }
  // As large as all before together: few slabs for much, and little for little.
  size_t size = kSmallestSlab;
  for (const auto& [_, slab] : slabs_) size += slab.size;
  size = std::clamp(size, bytes, kLargestSlab);
  auto start = source_.allocate(size);
  if (!start && size > bytes) {
    size = bytes;
    start = source_.allocate(size);
  }
  if (!start) return start;
  slabs_[*start] = {.size = size, .used = bytes, .pieces = 1};
  return *start;
}

void Slabs::Free(std::byte* memory) {
  if (memory == nullptr) return;
  auto found = slabs_.upper_bound(memory);
  if (found == slabs_.begin()) return source_.free(memory);
  --found;
  auto& [start, slab] = *found;
  if (memory >= start + slab.size) return source_.free(memory);
  if (--slab.pieces > 0) return;
  source_.wait();
  // The first and smallest is kept, so that who comes and goes alone need not ask the device again.
  if (slab.size > kSmallestSlab) {
    source_.free(start);
    slabs_.erase(found);
    return;
  }
  slab.used = 0;
}

}  // namespace nibble
