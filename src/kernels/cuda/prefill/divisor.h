// Division by a number that is known before a launch, in a multiplication and a shift: a tenth of
// the cycles that a GPU's division takes.
#pragma once

#include <bit>
#include <cstdint>

#include "numerics/host_device.h"

namespace nibble::kernels::cuda {

class Divisor {
 public:
  Divisor() : Divisor(1) {}
  // divisor >= 1
  explicit Divisor(int divisor)
      : divisor_(divisor), shift_(31 + std::bit_width(static_cast<uint32_t>(divisor) - 1)) {
    inverse_ = static_cast<uint32_t>(((uint64_t{1} << shift_) + divisor - 1) / divisor);
  }

  NIBBLE_HD int divisor() const { return divisor_; }
  // ⌊n / divisor⌋ for n >= 0: inverse_ is too large by less than 1, which n < 2^31 times is less
  // than what 1 / divisor of a quotient makes.
  NIBBLE_HD int Of(int n) const {
    return static_cast<int>(static_cast<uint64_t>(n) * inverse_ >> shift_);
  }

 private:
  int divisor_;
  int shift_;
  uint32_t inverse_;
};

}  // namespace nibble::kernels::cuda
