#include "quantize/scale_search.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace nibble::quantize {
namespace {

constexpr uint8_t kFirstScale = 0x01;
constexpr uint8_t kLastScale = 0x7E;
constexpr int32_t kInfinity = 0x7F800000;
// Values between looks at the limit.
constexpr int kPart = 4;

// The largest float whose code under `step` is below `code`. Rounding is monotone, so bisection
// finds it.
int32_t LargestBelow(int code, float step) {
  int32_t low = 0, high = kInfinity;  // low stays below, high reaches the code
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    const bool reaches = E2M1FromFloat(std::bit_cast<float>(middle) / step) >= code;
    (reaches ? high : low) = middle;
  }
  return low;
}

}  // namespace

ScaleSearch::ScaleSearch(float tensor_scale) : tensor_scale_(tensor_scale) {
  const float smallest = E4M3ToFloat(kFirstScale) * tensor_scale;
  const float largest = kE4M3Max * tensor_scale * kE2M1Max;
  exact_ = std::isnormal(smallest) && std::isfinite(largest);
  if (!exact_) return;
  for (uint8_t scale = kFirstScale; scale <= kLastScale; ++scale) FillCandidate(scale);
}

void ScaleSearch::FillCandidate(uint8_t scale) {
  Octave& octave = octaves_[scale / kLanes];
  const int lane = scale % kLanes;
  int32_t previous = 0;
  for (int code = 1; code <= kSteps; ++code) {
    const float magnitude = Nvfp4Dequantize(static_cast<uint8_t>(code), scale, tensor_scale_);
    octave.below[code - 1][lane] = LargestBelow(code, E4M3ToFloat(scale) * tensor_scale_);
    octave.rise[code - 1][lane] = std::bit_cast<int32_t>(magnitude) - previous;
    previous = std::bit_cast<int32_t>(magnitude);
  }
}

bool ScaleSearch::Errors(const Octave& octave, const int32_t* magnitudes, float limit,
                         float* sums) {
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = 0.0f;
  for (int i = 0; i < kNvfp4Block; i += kPart) {
    for (int j = i; j < i + kPart; ++j) {
      int32_t rounded[kLanes] = {};
      for (int step = 0; step < kSteps; ++step) {
        for (int lane = 0; lane < kLanes; ++lane) {
          const int32_t reached = -static_cast<int32_t>(magnitudes[j] > octave.below[step][lane]);
          rounded[lane] += octave.rise[step][lane] & reached;
        }
      }
      const auto value = std::bit_cast<float>(magnitudes[j]);
      for (int lane = 0; lane < kLanes; ++lane) {
        const float error = value - std::bit_cast<float>(rounded[lane]);
        sums[lane] += error * error;
      }
    }
    float least = sums[0];
    for (int lane = 1; lane < kLanes; ++lane) least = std::min(least, sums[lane]);
    if (least > limit) return false;
  }
  return true;
}

uint8_t ScaleSearch::BestScale(const float* values) const {
  const float amax = MaxMagnitude(values, kNvfp4Block);
  if (amax == 0.0f) return Nvfp4BlockScale(amax, tensor_scale_);
  if (!exact_) return Nvfp4BlockScaleMse(values, tensor_scale_);
  int32_t magnitudes[kNvfp4Block];
  for (int i = 0; i < kNvfp4Block; ++i)
    magnitudes[i] = std::bit_cast<int32_t>(values[i]) & 0x7FFFFFFF;

  uint8_t best = 0;
  float best_error = std::bit_cast<float>(kInfinity);
  const auto try_octave = [&](int index) {
    float sums[kLanes];
    if (!Errors(octaves_[index], magnitudes, best_error, sums)) return;
    for (int lane = 0; lane < kLanes; ++lane) {
      const int scale = index * kLanes + lane;
      if (scale < kFirstScale || scale > kLastScale) continue;
      const bool ties_below = sums[lane] == best_error && scale < best;
      if (best != 0 && !(sums[lane] < best_error) && !ties_below) continue;
      best_error = sums[lane];
      best = static_cast<uint8_t>(scale);
    }
  };
  // The scale that maps the largest value to 6, then larger ones until everything rounds to zero.
  const int start = Nvfp4BlockScale(amax, tensor_scale_) / kLanes;
  const auto amax_bits = std::bit_cast<int32_t>(amax);
  for (int index = start; index < kOctaves; ++index) {
    try_octave(index);
    const bool all_zero = index > 0 && amax_bits <= octaves_[index].below[0][0];
    if (all_zero) break;
  }
  // Smaller ones, until the error of the largest value alone, which saturates, is too much.
  for (int index = start - 1; index >= 0; --index) {
    const uint8_t largest = static_cast<uint8_t>(index * kLanes + kLanes - 1);
    const float error = amax - Nvfp4Dequantize(kSteps, largest, tensor_scale_);
    if (error > 0 && error * error > best_error) break;
    try_octave(index);
  }
  return best;
}

uint8_t ScaleSearch::Quantize(const float* values, uint8_t* codes) const {
  if (!exact_) return Nvfp4QuantizeBlockMse(values, tensor_scale_, codes);
  const uint8_t scale = BestScale(values);
  const Octave& octave = octaves_[scale / kLanes];
  int32_t unpacked[kNvfp4Block] = {};
  for (int step = 0; step < kSteps; ++step) {
    const int32_t below = octave.below[step][scale % kLanes];
    for (int i = 0; i < kNvfp4Block; ++i) {
      const int32_t magnitude = std::bit_cast<int32_t>(values[i]) & 0x7FFFFFFF;
      unpacked[i] += magnitude > below;
    }
  }
  for (int i = 0; i < kNvfp4Block; ++i) unpacked[i] |= values[i] < 0.0f ? 8 : 0;
  for (int i = 0; i < kNvfp4Block; i += 2)
    codes[i / 2] =
        PackE2M1(static_cast<uint8_t>(unpacked[i]), static_cast<uint8_t>(unpacked[i + 1]));
  return scale;
}

}  // namespace nibble::quantize
