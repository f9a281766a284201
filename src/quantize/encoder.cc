#include "quantize/encoder.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "numerics/bf16.h"
#include "numerics/mxfp4.h"
#include "numerics/nvfp4.h"
#include "quantize/scale_search.h"

namespace nibble::quantize {
namespace {

float SquaredError(const float* row, const float* back, int64_t count) {
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) sum += (row[i] - back[i]) * (row[i] - back[i]);
  return sum;
}

// ---- NVFP4 ----

// One block under one scale: Nvfp4Code of every value, without branches, so that the compiler makes
// vectors of it. codes (16), back (16).
void RoundBlock(const float* values, float step, uint8_t* codes, float* back) {
  for (int i = 0; i < kNvfp4Block; ++i) {
    const float x = std::abs(values[i]) / step;
    const int half = (x > 0.25f) + (x >= 0.75f) + (x > 1.25f) + (x >= 1.75f);
    const int one = (x > 2.5f) + (x >= 3.5f);
    const int two = x > 5.0f;
    const bool negative = values[i] < 0.0f;
    codes[i] = static_cast<uint8_t>(half + one + two + (negative ? 8 : 0));
    const float magnitude = 0.5f * static_cast<float>(half + 2 * one + 4 * two) * step;
    back[i] = negative ? -magnitude : magnitude;
  }
}

void Pack(const uint8_t* codes, uint8_t* packed) {
  for (int i = 0; i < kNvfp4Block; i += 2) packed[i / 2] = PackE2M1(codes[i], codes[i + 1]);
}

class Nvfp4Encoder : public Encoder {
 public:
  explicit Nvfp4Encoder(const EncoderSpec& spec) : k_(spec.k), tensor_scale_(spec.tensor_scale) {}

  int64_t code_bytes() const override { return k_ / 2; }
  int64_t scale_bytes() const override { return k_ / kNvfp4Block; }

  void EncodeRow(const float* row, uint8_t* codes, uint8_t* scales, float* back) const override {
    for (int64_t block = 0; block < k_ / kNvfp4Block; ++block) {
      const int64_t at = block * kNvfp4Block;
      scales[block] = EncodeBlock(row + at, codes + at / 2, back + at);
    }
  }

 protected:
  // values (16). Writes 8 bytes of codes and 16 values, returns the scale.
  virtual uint8_t EncodeBlock(const float* values, uint8_t* codes, float* back) const {
    const uint8_t scale = Nvfp4BlockScale(MaxMagnitude(values, kNvfp4Block), tensor_scale_);
    uint8_t unpacked[kNvfp4Block];
    RoundBlock(values, Step(scale), unpacked, back);
    Pack(unpacked, codes);
    return scale;
  }

  float Step(uint8_t scale) const { return E4M3ToFloat(scale) * tensor_scale_; }

  const int64_t k_;
  const float tensor_scale_;
};

class Nvfp4SearchEncoder : public Nvfp4Encoder {
 public:
  explicit Nvfp4SearchEncoder(const EncoderSpec& spec)
      : Nvfp4Encoder(spec), search_(spec.tensor_scale) {}

 private:
  uint8_t EncodeBlock(const float* values, uint8_t* codes, float* back) const override {
    const uint8_t scale = search_.Quantize(values, codes);
    const float step = Step(scale);
    for (int i = 0; i < kNvfp4Block; ++i) back[i] = E2M1ToFloat(UnpackE2M1(codes, i)) * step;
    return scale;
  }

  const ScaleSearch search_;
};

class FourOverSixEncoder : public Nvfp4Encoder {
 public:
  using Nvfp4Encoder::Nvfp4Encoder;

 private:
  uint8_t EncodeBlock(const float* values, uint8_t* codes, float* back) const override {
    const float amax = MaxMagnitude(values, kNvfp4Block);
    const uint8_t six = Nvfp4BlockScale(amax, tensor_scale_);
    const uint8_t four = Nvfp4BlockScale(1.5f * amax, tensor_scale_);
    uint8_t six_codes[kNvfp4Block], four_codes[kNvfp4Block];
    float four_back[kNvfp4Block];
    RoundBlock(values, Step(six), six_codes, back);
    RoundBlock(values, Step(four), four_codes, four_back);
    const bool four_is_better =
        SquaredError(values, four_back, kNvfp4Block) < SquaredError(values, back, kNvfp4Block);
    if (four_is_better) std::ranges::copy(four_back, back);
    Pack(four_is_better ? four_codes : six_codes, codes);
    return four_is_better ? four : six;
  }
};

// ---- MXFP4 ----

// Where ModelOpt's encoder differs: borders between codes belong to the lower one, and zero is
// code 8.
uint8_t ModelOptE2M1(float value) {
  constexpr float kBorders[] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
  const float magnitude = std::abs(value);
  uint8_t code = value > 0.0f ? 0 : 8;
  for (const float border : kBorders) code = static_cast<uint8_t>(code + (magnitude > border));
  return code;
}

// ModelOpt: the least power of two under which nothing saturates. compressed-tensors: OCP's rule
// after largest magnitudes with a mantissa of 1.75 and more have been rounded up.
uint8_t MxScale(float amax, Layout layout) {
  const auto bits = std::bit_cast<uint32_t>(amax);
  const uint32_t mantissa = bits & 0x7FFFFFu;
  const bool up = layout == Layout::kModelOpt ? mantissa > 0x400000u : mantissa >= 0x600000u;
  const int power = static_cast<int>(bits >> 23) + (up ? 1 : 0) - 2;
  return static_cast<uint8_t>(std::clamp(power, 0, 0xFE));
}

class Mxfp4Encoder : public Encoder {
 public:
  explicit Mxfp4Encoder(const EncoderSpec& spec)
      : k_(spec.k), layout_(spec.layout), search_(spec.method != Method::kMax) {}

  int64_t code_bytes() const override { return k_ / 2; }
  int64_t scale_bytes() const override { return k_ / kMxfp4Block; }

  void EncodeRow(const float* row, uint8_t* codes, uint8_t* scales, float* back) const override {
    for (int64_t block = 0; block < k_ / kMxfp4Block; ++block) {
      const int64_t at = block * kMxfp4Block;
      const uint8_t usual = MxScale(MaxMagnitude(row + at, kMxfp4Block), layout_);
      EncodeBlock(row + at, usual, codes + at / 2, back + at);
      scales[block] = usual;
      if (search_) Search(row + at, codes + at / 2, &scales[block], back + at);
    }
  }

 private:
  void EncodeBlock(const float* values, uint8_t scale, uint8_t* codes, float* back) const {
    const float step = E8M0ToFloat(scale);
    for (int i = 0; i < kMxfp4Block; i += 2) {
      const auto code = [&](float value) {
        return layout_ == Layout::kModelOpt ? ModelOptE2M1(value / step)
                                            : E2M1FromFloat(value / step);
      };
      codes[i / 2] = PackE2M1(code(values[i]), code(values[i + 1]));
      back[i] = Mxfp4Dequantize(codes[i / 2] & 0xF, scale);
      back[i + 1] = Mxfp4Dequantize(codes[i / 2] >> 4, scale);
    }
  }

  void Search(const float* values, uint8_t* codes, uint8_t* scale, float* back) const {
    const uint8_t usual = *scale;
    float best = SquaredError(values, back, kMxfp4Block);
    uint8_t tried_codes[kMxfp4Block / 2];
    float tried_back[kMxfp4Block];
    for (const int offset : {-1, 1}) {
      const int tried = usual + offset;
      if (tried < 0 || tried > 0xFE) continue;
      EncodeBlock(values, static_cast<uint8_t>(tried), tried_codes, tried_back);
      const float error = SquaredError(values, tried_back, kMxfp4Block);
      if (!(error < best)) continue;
      best = error;
      *scale = static_cast<uint8_t>(tried);
      std::ranges::copy(tried_codes, codes);
      std::ranges::copy(tried_back, back);
    }
  }

  const int64_t k_;
  const Layout layout_;
  const bool search_;
};

// ---- INT4 ----

class Int4Encoder : public Encoder {
 public:
  explicit Int4Encoder(const EncoderSpec& spec)
      : k_(spec.k), group_(spec.group), search_(spec.method != Method::kMax) {}

  int64_t code_bytes() const override { return k_ / 2; }
  int64_t scale_bytes() const override { return k_ / group_ * 2; }  // BF16

  void EncodeRow(const float* row, uint8_t* codes, uint8_t* scales, float* back) const override {
    for (int64_t at = 0; at < k_; at += group_) {
      const uint16_t scale = EncodeGroup(row + at, codes + at / 2, back + at);
      std::memcpy(scales + at / group_ * 2, &scale, 2);
    }
  }

 private:
  static constexpr int kCandidates = 11;  // amax times 1, 0.96, ..., 0.6

  static int Code(float value, float scale) {
    return static_cast<int>(std::clamp(std::nearbyintf(value / scale), -8.0f, 7.0f));
  }

  uint16_t EncodeGroup(const float* values, uint8_t* codes, float* back) const {
    const float amax = MaxMagnitude(values, static_cast<int>(group_));
    uint16_t best = ScaleFor(amax);
    float best_error = ErrorUnder(values, Bf16ToFloat(best));
    for (int i = 1; search_ && i < kCandidates; ++i) {
      const uint16_t tried = ScaleFor(amax * (1.0f - 0.04f * static_cast<float>(i)));
      const float error = ErrorUnder(values, Bf16ToFloat(tried));
      if (!(error < best_error)) continue;
      best_error = error;
      best = tried;
    }
    const float scale = Bf16ToFloat(best);
    for (int64_t i = 0; i < group_; i += 2) {
      const int even = Code(values[i], scale), odd = Code(values[i + 1], scale);
      codes[i / 2] = static_cast<uint8_t>((even + 8) | (odd + 8) << 4);
      back[i] = static_cast<float>(even) * scale;
      back[i + 1] = static_cast<float>(odd) * scale;
    }
    return best;
  }

  static uint16_t ScaleFor(float amax) {
    const uint16_t scale = Bf16FromFloat(amax / 7.5f);
    return Bf16ToFloat(scale) > 0.0f ? scale : Bf16FromFloat(1.0f);
  }

  float ErrorUnder(const float* values, float scale) const {
    float sum = 0.0f;
    for (int64_t i = 0; i < group_; ++i) {
      const float error = values[i] - static_cast<float>(Code(values[i], scale)) * scale;
      sum += error * error;
    }
    return sum;
  }

  const int64_t k_;
  const int64_t group_;
  const bool search_;
};

// ---- FP8 ----

class Fp8Encoder : public Encoder {
 public:
  explicit Fp8Encoder(const EncoderSpec& spec) : k_(spec.k) {}

  int64_t code_bytes() const override { return k_; }
  int64_t scale_bytes() const override { return 2; }  // BF16

  void EncodeRow(const float* row, uint8_t* codes, uint8_t* scales, float* back) const override {
    uint16_t scale = Bf16FromFloat(MaxMagnitude(row, static_cast<int>(k_)) / kE4M3Max);
    if (!(Bf16ToFloat(scale) > 0.0f)) scale = Bf16FromFloat(1.0f);
    std::memcpy(scales, &scale, 2);
    const float step = Bf16ToFloat(scale);
    for (int64_t i = 0; i < k_; ++i) {
      codes[i] = E4M3FromFloat(row[i] / step);
      back[i] = E4M3ToFloat(codes[i]) * step;
    }
  }

 private:
  const int64_t k_;
};

// Whether s / divisor and s * (1 / divisor) are the same for every block scale s: then readers that
// divide and readers that multiply by the reciprocal see the same weights. Block scales differ from
// the eight tried by powers of two alone.
bool DividesLikeItsReciprocal(float divisor) {
  for (int eighths = 8; eighths < 16; ++eighths) {
    const auto scale = static_cast<float>(eighths);
    if (scale / divisor != scale * (1.0f / divisor)) return false;
  }
  return true;
}

// A divisor within a few hundred ulps of 1 / tensor_scale for which both kinds of reader agree;
// one in twenty or so does.
float AgreeableDivisor(float tensor_scale) {
  const float nearest = 1.0f / tensor_scale;
  const auto bits = std::bit_cast<int32_t>(nearest);
  for (int32_t distance = 0; distance < 4096; ++distance) {
    // A smaller divisor first: a larger tensor scale saturates nothing.
    for (const int32_t tried : {bits - distance, bits + distance}) {
      const auto divisor = std::bit_cast<float>(tried);
      if (std::isnormal(divisor) && std::isnormal(1.0f / divisor) &&
          DividesLikeItsReciprocal(divisor))
        return divisor;
    }
  }
  return nearest;
}

}  // namespace

std::unique_ptr<Encoder> MakeEncoder(const EncoderSpec& spec) {
  switch (spec.format) {
    case Format::kNvfp4:
      if (spec.method == Method::kMse) return std::make_unique<Nvfp4SearchEncoder>(spec);
      if (spec.method == Method::kFourOverSix) return std::make_unique<FourOverSixEncoder>(spec);
      return std::make_unique<Nvfp4Encoder>(spec);
    case Format::kMxfp4:
      return std::make_unique<Mxfp4Encoder>(spec);
    case Format::kInt4:
      return std::make_unique<Int4Encoder>(spec);
    case Format::kFp8:
      return std::make_unique<Fp8Encoder>(spec);
    case Format::kBf16:
      break;
  }
  NIBBLE_CHECK(false, "no encoder for BF16");
  return nullptr;
}

int64_t ColumnMultiple(Format format) {
  switch (format) {
    case Format::kNvfp4:
      return kNvfp4Block;
    case Format::kMxfp4:
    case Format::kInt4:
      return kMxfp4Block;
    case Format::kFp8:
    case Format::kBf16:
      break;
  }
  return 1;
}

float TensorScale(float amax, Method method, Layout layout, Rounding rounding) {
  if (!(amax > 0.0f)) return 1.0f;
  float scale = rounding == Rounding::kCuda ? Nvfp4TensorScale(amax) : amax / kNvfp4Range;
  if (method == Method::kFourOverSix) scale = amax / (kE2M1Max * 256.0f);
  // So small that it underflows: the weights are then zero in every format.
  if (!std::isnormal(scale)) return 1.0f;
  return layout == Layout::kModelOpt ? scale : 1.0f / AgreeableDivisor(scale);
}

float ExactDivisor(float tensor_scale) {
  const auto bits = std::bit_cast<int32_t>(1.0f / tensor_scale);
  float found = 0.0f;
  for (const int32_t offset : {-1, 1, 0}) {
    const auto divisor = std::bit_cast<float>(bits + offset);
    if (!(divisor > 0.0f) || !std::isfinite(divisor) || 1.0f / divisor != tensor_scale) continue;
    // The one for which readers that divide agree, if there is one.
    if (found == 0.0f || DividesLikeItsReciprocal(divisor)) found = divisor;
  }
  return found;
}

}  // namespace nibble::quantize
