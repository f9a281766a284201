// Slabs: many small allocations out of few large ones, for devices whose own allocations are whole
// pages of 2 MiB and for the host's huge pages.
//
// A slab is filled from its start to its end and begins anew when everything in it has been freed:
// right for weights, which come and go together, and for tables that live as long. What is large
// gets an allocation of its own. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>

#include "base/error.h"

namespace nibble {

class Slabs {
 public:
  static constexpr size_t kAlignment = 256;
  static constexpr size_t kSmallestSlab = size_t{4} << 20;
  static constexpr size_t kLargestSlab = size_t{256} << 20;
  static constexpr size_t kLargestPiece = kLargestSlab / 8;  // larger ones stand alone

  struct Source {
    std::function<Result<std::byte*>(size_t bytes)> allocate;  // kAlignment-aligned
    std::function<void(std::byte*)> free;
    // Waits until nothing on the device uses what has been freed: before memory is used again.
    std::function<void()> wait;
  };
  explicit Slabs(Source source) : source_(std::move(source)) {}

  Result<std::byte*> Allocate(size_t bytes);
  void Free(std::byte* memory);

 private:
  struct Slab {
    size_t size = 0;
    size_t used = 0;
    int64_t pieces = 0;
  };

  Result<std::byte*> Take(size_t bytes);

  Source source_;
  std::map<std::byte*, Slab> slabs_;  // by address
};

}  // namespace nibble
