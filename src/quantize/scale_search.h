// The search for a block's best NVFP4 scale, with the results of numerics/nvfp4.h bit for bit and
// some 25 times its speed.
//
// For one tensor scale the borders between codes and the magnitudes of codes are the same in every
// block, so they are tabulated per candidate scale: a value's code is the number of borders that it
// reaches, without a division. A border is the smallest FP32 that Nvfp4Code maps to that code,
// found by bisection, hence exact. Eight candidates (an octave of scales) are tried at a time, each
// summing its errors in the order of the plain loop. Octaves that cannot win are left out:
//   - a sum of squares is at least its first part, and at least the square of the largest value's
//     error;
//   - once the largest value rounds to zero, so does everything under all larger scales.
// Thread-safety: const after construction.
#pragma once

#include <array>
#include <cstdint>

#include "numerics/nvfp4.h"

namespace nibble::quantize {

class ScaleSearch {
 public:
  // Costs a fraction of a millisecond: make one per tensor scale. tensor_scale: finite, above 0.
  explicit ScaleSearch(float tensor_scale);

  // Nvfp4BlockScaleMse(values, tensor_scale). values (16), finite.
  uint8_t BestScale(const float* values) const;

  // Nvfp4QuantizeBlockMse(values, tensor_scale, codes): writes 8 bytes, returns the scale.
  uint8_t Quantize(const float* values, uint8_t* codes) const;

 private:
  static constexpr int kLanes = 8;  // candidates tried together: scale codes 8 g ... 8 g + 7
  static constexpr int kOctaves = 16;
  static constexpr int kSteps = 7;  // borders between the 8 magnitudes

  // Bit patterns of non-negative floats, which compare like the floats.
  struct alignas(32) Octave {
    int32_t below[kSteps][kLanes];  // the largest float that does not reach the border
    int32_t rise[kSteps][kLanes];   // what reaching it adds to the magnitude's bit pattern
  };

  void FillCandidate(uint8_t scale);
  // Sums of squared errors of the octave's candidates; false if all exceed `limit` early.
  static bool Errors(const Octave& octave, const int32_t* magnitudes, float limit, float* sums);

  float tensor_scale_;
  bool exact_ = true;  // false: a scale product underflows or overflows, the plain search is used
  std::array<Octave, kOctaves> octaves_{};
};

}  // namespace nibble::quantize
