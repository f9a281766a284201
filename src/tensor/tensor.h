// TensorView: a value that points at row-major bytes; nothing is owned and nothing is assumed about
// alignment (safetensors files do not align their tensors).
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "base/check.h"
#include "tensor/dtype.h"

namespace nibble {

// Up to 8 dimensions, outermost first; rank 0 is a scalar.
class Shape {
 public:
  static constexpr int kMaxRank = 8;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) {
    for (int64_t dim : dims) Append(dim);
  }
  void Append(int64_t dim) {
    NIBBLE_CHECK(rank_ < kMaxRank, "rank above {}", kMaxRank);
    dims_[rank_++] = dim;
  }
  int rank() const { return rank_; }
  int64_t operator[](int axis) const { return dims_[axis]; }
  std::span<const int64_t> dims() const { return {dims_.data(), static_cast<size_t>(rank_)}; }
  int64_t elements() const {
    int64_t product = 1;
    for (int64_t dim : dims()) product *= dim;
    return product;
  }
  bool operator==(const Shape& other) const {
    return std::equal(dims().begin(), dims().end(), other.dims().begin(), other.dims().end());
  }
  std::string ToString() const;  // "[768, 288]"

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

struct TensorView {
  const std::byte* data = nullptr;
  DType dtype = DType::kU8;
  Shape shape;

  int64_t bytes() const { return shape.elements() * DTypeBits(dtype) / 8; }
};

}  // namespace nibble
