// Encoders and decoders of every number format, proven over whole input sets: see
// testing/encoding_cases.h. Where the CUDA toolkit's headers are installed, also code by code
// against their host side.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <optional>
#include <string>

#include "numerics/bf16.h"
#include "numerics/e2m1.h"
#include "numerics/e4m3.h"
#include "numerics/e8m0.h"
#include "numerics/f16.h"
#include "testing/encoding_cases.h"
#include "testing/golden.h"
#ifdef NIBBLE_HAVE_CUDA_HEADERS
#include "testing/cuda_number_formats.h"
#endif

namespace nibble {
namespace {

// A format as the product implements it.
struct Product {
  void (*encode)(std::span<const float> inputs, const NumberFormat& format, uint16_t* codes);
  float (*decode)(uint16_t code);
};

template <auto kEncode>
void EncodeAll(std::span<const float> inputs, const NumberFormat& format, uint16_t* codes) {
  const NumberFormat local = format;  // nothing that the stores could alias
  for (size_t i = 0; i < inputs.size(); ++i)
    codes[i] = CanonicalCode(local, static_cast<uint16_t>(kEncode(inputs[i])));
}

template <auto kDecode>
float DecodeOne(uint16_t code) {
  return kDecode(code);
}

Product ProductOf(std::string_view name) {
  if (name == "e2m1") return {EncodeAll<E2M1FromFloat>, DecodeOne<E2M1ToFloat>};
  if (name == "e4m3") return {EncodeAll<E4M3FromFloat>, DecodeOne<E4M3ToFloat>};
  if (name == "e4m3_nosat") return {EncodeAll<E4M3FromFloatNoSaturate>, DecodeOne<E4M3ToFloat>};
  if (name == "e8m0") return {EncodeAll<E8M0FromFloat>, DecodeOne<E8M0ToFloat>};
  if (name == "bf16") return {EncodeAll<Bf16FromFloat>, DecodeOne<Bf16ToFloat>};
  return {EncodeAll<F16FromFloat>, DecodeOne<F16ToFloat>};
}

std::string Hex(uint32_t value) {
  char text[16];
  std::snprintf(text, sizeof(text), "0x%X", value);
  return text;
}

std::map<std::pair<std::string, int>, uint64_t> GoldenHashes() {
  std::map<std::pair<std::string, int>, uint64_t> hashes;
  std::ifstream file(GoldenPath("numerics/encodings.txt"));
  std::string format, hash;
  int chunk = 0;
  while (file >> format >> chunk >> hash) hashes[{format, chunk}] = std::stoull(hash, nullptr, 16);
  return hashes;
}

// The first input whose code is not the reference's, in words.
std::string FirstFailure(const NumberFormat& format, std::span<const float> inputs,
                         std::span<const uint16_t> codes) {
  const std::vector<double> magnitudes = Magnitudes(format);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const uint16_t expected = ReferenceEncode(format, magnitudes, inputs[i]);
    if (CanonicalCode(format, expected) == codes[i]) continue;
    return "input " + std::to_string(i) + " = " + std::to_string(inputs[i]) + " (" +
           Hex(std::bit_cast<uint32_t>(inputs[i])) + ") gives " + Hex(codes[i]) + ", expected " +
           Hex(expected);
  }
  return "no input differs from the reference: the inputs or the hashes have changed";
}

class Encoding : public testing::TestWithParam<NumberFormat> {};

TEST_P(Encoding, EveryCodeDecodes) {
  const NumberFormat format = GetParam();
  const Product product = ProductOf(format.name);
  const int codes = format.sign_bit == 0 ? 0x100 : static_cast<int>(2 * format.sign_bit);
  for (int code = 0; code < codes; ++code) {
    const float value = product.decode(static_cast<uint16_t>(code));
    const auto sign = static_cast<uint32_t>(code) & format.sign_bit;
    const int magnitude_code = code ^ static_cast<int>(sign);
    const bool has_infinity = format.sign_bit == 0x8000;
    if (has_infinity && magnitude_code == format.max_code + 1) {
      EXPECT_TRUE(std::isinf(value)) << Hex(code);
    } else if (magnitude_code > format.max_code) {
      EXPECT_TRUE(std::isnan(value)) << Hex(code);
      continue;
    } else {
      EXPECT_EQ(std::abs(value), Magnitude(format, magnitude_code)) << Hex(code);
    }
    EXPECT_EQ(std::signbit(value), sign != 0) << Hex(code);
    uint16_t back = 0;
    product.encode({&value, 1}, format, &back);
    const bool overflows = std::isinf(value) && format.saturates;
    if (!overflows) {
      EXPECT_EQ(back, code) << "decoding and encoding";
    }
  }
}

TEST_P(Encoding, MatchesTheReferenceOnBf16F16AndEveryBorder) {
  const NumberFormat format = GetParam();
  const std::vector<double> magnitudes = Magnitudes(format);
  for (int chunk = 0; chunk < 3; ++chunk) {
    const std::vector<float> inputs = EncodingInputs(format, chunk);
    std::vector<uint16_t> codes(inputs.size());
    ProductOf(format.name).encode(inputs, format, codes.data());
    size_t wrong = 0;
    for (size_t i = 0; i < inputs.size(); ++i) {
      const uint16_t expected = ReferenceEncode(format, magnitudes, inputs[i]);
      wrong += codes[i] != CanonicalCode(format, expected);
    }
    EXPECT_EQ(wrong, 0) << "chunk " << chunk << ": " << FirstFailure(format, inputs, codes);
  }
}

// The outputs are hashed, so that 2^26 inputs per format cost a second and no file.
TEST(EncodingHashes, MatchesTheHashesOfCuda) {
  const auto hashes = GoldenHashes();
  ASSERT_EQ(hashes.size(), std::size(kNumberFormats) * kEncodingChunks);
  for (int chunk = 0; chunk < kEncodingChunks; ++chunk) {
    std::vector<float> inputs;
    for (const NumberFormat& format : kNumberFormats) {
      if (inputs.empty() || chunk <= 3) inputs = EncodingInputs(format, chunk);
      std::vector<uint16_t> codes(inputs.size());
      ProductOf(format.name).encode(inputs, format, codes.data());
      EXPECT_EQ(HashCodes<uint16_t>(codes), hashes.at({std::string(format.name), chunk}))
          << format.name << ", chunk " << chunk << ": " << FirstFailure(format, inputs, codes);
    }
  }
}

// A wrong encoder is found, and so is the input: the hashes and the search are no mere ornament.
TEST(EncodingHashes, AWrongCodeIsFoundAndNamed) {
  const NumberFormat& format = kNumberFormats[1];
  const std::vector<float> inputs = RandomInputs(1);
  std::vector<uint16_t> codes(inputs.size());
  EncodeAll<E4M3FromFloat>(inputs, format, codes.data());
  codes[777'777] ^= 1;
  EXPECT_NE(HashCodes<uint16_t>(codes), GoldenHashes().at({"e4m3", 4}));
  EXPECT_EQ(FirstFailure(format, inputs, codes).rfind("input 777777 = ", 0), 0);
}

TEST_P(Encoding, NanStaysNan) {
  const NumberFormat format = GetParam();
  const Product product = ProductOf(format.name);
  for (const uint32_t bits : {0x7FC00000u, 0xFFC00000u, 0x7F800001u, 0xFFFFFFFFu}) {
    const auto value = std::bit_cast<float>(bits);
    uint16_t code = 0;
    product.encode({&value, 1}, format, &code);
    EXPECT_EQ(code, format.nan_code);
    const float back = product.decode(code);
    // E2M1 has no NaN: its largest value instead.
    if (format.name == "e2m1") {
      EXPECT_EQ(back, kE2M1Max);
    } else {
      EXPECT_TRUE(std::isnan(back)) << Hex(bits);
    }
  }
}

#ifdef NIBBLE_HAVE_CUDA_HEADERS

TEST_P(Encoding, DecodesAsCudaDoes) {
  const NumberFormat format = GetParam();
  const Product product = ProductOf(format.name);
  const auto cuda = CudaDecoder(format.name);
  const int codes = format.sign_bit == 0 ? 0x100 : static_cast<int>(2 * format.sign_bit);
  for (int code = 0; code < codes; ++code) {
    const float ours = product.decode(static_cast<uint16_t>(code));
    const float theirs = cuda(static_cast<uint16_t>(code));
    if (std::isnan(ours) && std::isnan(theirs)) continue;
    EXPECT_EQ(std::bit_cast<uint32_t>(ours), std::bit_cast<uint32_t>(theirs)) << Hex(code);
  }
}

// The random inputs are compared by hash; here the rest and two random chunks, code by code.
TEST_P(Encoding, EncodesAsCudaDoes) {
  const NumberFormat format = GetParam();
  const auto cuda = CudaEncoder(format.name);
  for (const int chunk : {0, 1, 2, 3, 4}) {
    const std::vector<float> inputs = EncodingInputs(format, chunk);
    std::vector<uint16_t> codes(inputs.size());
    ProductOf(format.name).encode(inputs, format, codes.data());
    for (size_t i = 0; i < inputs.size(); ++i) {
      ASSERT_EQ(codes[i], CanonicalCode(format, cuda(inputs[i])))
          << Hex(std::bit_cast<uint32_t>(inputs[i]));
    }
  }
}

#endif

INSTANTIATE_TEST_SUITE_P(Formats, Encoding, testing::ValuesIn(kNumberFormats),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(E2M1, DoubledIsTwiceTheValueAndPairsKeepTheirOrder) {
  for (int code = 0; code < 16; ++code) {
    EXPECT_EQ(static_cast<float>(E2M1Doubled(code)), 2 * E2M1ToFloat(code));
    for (int odd = 0; odd < 16; ++odd) {
      const uint8_t pair = PackE2M1(code, odd);
      EXPECT_EQ(pair & 0xF, code);
      EXPECT_EQ(UnpackE2M1(&pair, 0), code);
      EXPECT_EQ(UnpackE2M1(&pair, 1), odd);
    }
  }
}

TEST(Numerics, WorksAtCompileTime) {
  static_assert(E2M1FromFloat(2.4f) == 4 && E2M1FromFloat(-0.1f) == 8);
  static_assert(E4M3FromFloat(464.0f) == 0x7E && E4M3FromFloatNoSaturate(465.0f) == 0x7F);
  static_assert(E8M0FromFloat(0.7f) == 126 && E8M0ToFloat(126) == 0.5f);
  static_assert(Bf16FromFloat(1.0f) == 0x3F80 && F16FromFloat(1.0f) == 0x3C00);
}

}  // namespace
}  // namespace nibble
