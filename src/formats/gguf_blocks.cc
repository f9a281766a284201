#include "formats/gguf_blocks.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "numerics/bf16.h"
#include "numerics/e2m1.h"
#include "numerics/e4m3.h"
#include "numerics/e8m0.h"
#include "numerics/f16.h"

namespace nibble::formats {
namespace {

struct KnownType {
  GgmlType type;
  GgmlTypeInfo info;
};

constexpr std::array<KnownType, 13> kKnownTypes = {{
    {GgmlType::kF32, {"F32", 1, 4}},
    {GgmlType::kF16, {"F16", 1, 2}},
    {GgmlType::kBf16, {"BF16", 1, 2}},
    {GgmlType::kQ8_0, {"Q8_0", 32, 34}},
    {GgmlType::kQ4_0, {"Q4_0", 32, 18}},
    {GgmlType::kQ4_1, {"Q4_1", 32, 20}},
    {GgmlType::kQ5_0, {"Q5_0", 32, 22}},
    {GgmlType::kQ5_1, {"Q5_1", 32, 24}},
    {GgmlType::kQ4_K, {"Q4_K", 256, 144}},
    {GgmlType::kQ5_K, {"Q5_K", 256, 176}},
    {GgmlType::kQ6_K, {"Q6_K", 256, 210}},
    {GgmlType::kMxfp4, {"MXFP4", 32, 17}},
    {GgmlType::kNvfp4, {"NVFP4", 64, 36}},
}};

// Types of ggml that this reader refuses, for the message.
constexpr std::array<std::pair<uint32_t, std::string_view>, 22> kOtherTypes = {{
    {4, "Q4_2"},     {5, "Q4_3"},    {9, "Q8_1"},     {10, "Q2_K"},  {11, "Q3_K"},   {15, "Q8_K"},
    {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"},
    {22, "IQ2_S"},   {23, "IQ4_XS"}, {24, "I8"},      {25, "I16"},   {26, "I32"},    {27, "I64"},
    {28, "F64"},     {29, "IQ1_M"},  {34, "TQ1_0"},   {35, "TQ2_0"},
}};

uint8_t ByteAt(const std::byte* in, int64_t index) { return static_cast<uint8_t>(in[index]); }

uint16_t Load16(const std::byte* in) {
  uint16_t bits;
  std::memcpy(&bits, in, sizeof(bits));
  return bits;
}

uint32_t Load32(const std::byte* in) {
  uint32_t bits;
  std::memcpy(&bits, in, sizeof(bits));
  return bits;
}

float LoadF16(const std::byte* in) { return F16ToFloat(Load16(in)); }

// f16 d; i8 q[32]: q d.
void BlockQ8_0(const std::byte* in, float* out) {
  const float d = LoadF16(in);
  for (int i = 0; i < 32; ++i) {
    out[i] = static_cast<float>(static_cast<int8_t>(ByteAt(in, 2 + i))) * d;
  }
}

// f16 d; 16 bytes of nibbles: (q - 8) d. Byte j holds elements j (low) and j + 16 (high), as in all
// types with blocks of 32.
void BlockQ4_0(const std::byte* in, float* out) {
  const float d = LoadF16(in);
  for (int j = 0; j < 16; ++j) {
    const int q = ByteAt(in, 2 + j);
    out[j] = static_cast<float>((q & 15) - 8) * d;
    out[j + 16] = static_cast<float>((q >> 4) - 8) * d;
  }
}

// f16 d; f16 m; nibbles: q d + m.
void BlockQ4_1(const std::byte* in, float* out) {
  const float d = LoadF16(in);
  const float m = LoadF16(in + 2);
  for (int j = 0; j < 16; ++j) {
    const int q = ByteAt(in, 4 + j);
    out[j] = static_cast<float>(q & 15) * d + m;
    out[j + 16] = static_cast<float>(q >> 4) * d + m;
  }
}

// f16 d; u32 of fifth bits, bit i for element i; nibbles: (q - 16) d.
void BlockQ5_0(const std::byte* in, float* out) {
  const float d = LoadF16(in);
  const uint32_t high = Load32(in + 2);
  for (int j = 0; j < 16; ++j) {
    const int q = ByteAt(in, 6 + j);
    const int low_element = (q & 15) | static_cast<int>((high >> j) & 1) << 4;
    const int high_element = (q >> 4) | static_cast<int>((high >> (j + 16)) & 1) << 4;
    out[j] = static_cast<float>(low_element - 16) * d;
    out[j + 16] = static_cast<float>(high_element - 16) * d;
  }
}

// f16 d; f16 m; u32 of fifth bits; nibbles: q d + m.
void BlockQ5_1(const std::byte* in, float* out) {
  const float d = LoadF16(in);
  const float m = LoadF16(in + 2);
  const uint32_t high = Load32(in + 4);
  for (int j = 0; j < 16; ++j) {
    const int q = ByteAt(in, 8 + j);
    const int low_element = (q & 15) | static_cast<int>((high >> j) & 1) << 4;
    const int high_element = (q >> 4) | static_cast<int>((high >> (j + 16)) & 1) << 4;
    out[j] = static_cast<float>(low_element) * d + m;
    out[j + 16] = static_cast<float>(high_element) * d + m;
  }
}

// The eight 6-bit scales and minima of a K-quant super-block, packed into 12 bytes: the low six
// bits of bytes 0..3 and 4..7 hold those of sub-blocks 0..3; sub-blocks 4..7 have their low four
// bits in bytes 8..11 and their upper two in the top of bytes 0..7.
struct ScaleAndMin {
  float scale;
  float min;
};

ScaleAndMin KQuantScale(const std::byte* packed, int sub_block) {
  int scale;
  int min;
  if (sub_block < 4) {
    scale = ByteAt(packed, sub_block) & 63;
    min = ByteAt(packed, sub_block + 4) & 63;
  } else {
    const int low = ByteAt(packed, sub_block + 4);
    scale = (low & 15) | (ByteAt(packed, sub_block - 4) >> 6) << 4;
    min = (low >> 4) | (ByteAt(packed, sub_block) >> 6) << 4;
  }
  return {static_cast<float>(scale), static_cast<float>(min)};
}

// f16 d; f16 dmin; 12 bytes of scales; 128 bytes of nibbles: q (d scale) - (dmin min), with eight
// sub-blocks of 32. 32 bytes hold two sub-blocks, the first in the low nibbles.
void BlockQ4_K(const std::byte* in, float* out) {
  const float d = LoadF16(in);
  const float dmin = LoadF16(in + 2);
  const std::byte* scales = in + 4;
  const std::byte* codes = in + 16;
  for (int sub = 0; sub < 8; ++sub) {
    const ScaleAndMin s = KQuantScale(scales, sub);
    const float scale = d * s.scale;
    const float min = dmin * s.min;
    const std::byte* bytes = codes + (sub / 2) * 32;
    const int shift = (sub & 1) * 4;
    for (int i = 0; i < 32; ++i) {
      const int q = (ByteAt(bytes, i) >> shift) & 15;
      out[sub * 32 + i] = scale * static_cast<float>(q) - min;
    }
  }
}

// As Q4_K, with 32 bytes of fifth bits before the nibbles: bit `sub` of byte i for element i of
// that sub-block.
void BlockQ5_K(const std::byte* in, float* out) {
  const float d = LoadF16(in);
  const float dmin = LoadF16(in + 2);
  const std::byte* scales = in + 4;
  const std::byte* high = in + 16;
  const std::byte* codes = in + 48;
  for (int sub = 0; sub < 8; ++sub) {
    const ScaleAndMin s = KQuantScale(scales, sub);
    const float scale = d * s.scale;
    const float min = dmin * s.min;
    const std::byte* bytes = codes + (sub / 2) * 32;
    const int shift = (sub & 1) * 4;
    for (int i = 0; i < 32; ++i) {
      const int q = ((ByteAt(bytes, i) >> shift) & 15) | ((ByteAt(high, i) >> sub) & 1) << 4;
      out[sub * 32 + i] = scale * static_cast<float>(q) - min;
    }
  }
}

// 128 bytes of low nibbles; 64 bytes of upper bit pairs; i8 scale[16]; f16 d: (q - 32)(d scale).
// Each half of 128 elements is four runs of 32: runs 0 and 1 in the low nibbles of 64 bytes, runs 2
// and 3 in their high nibbles; bit pair `run` of 32 bytes completes them. One scale per 16.
void BlockQ6_K(const std::byte* in, float* out) {
  const float d = LoadF16(in + 208);
  for (int half = 0; half < 2; ++half) {
    const std::byte* low = in + half * 64;
    const std::byte* high = in + 128 + half * 32;
    const std::byte* scales = in + 192 + half * 8;
    for (int run = 0; run < 4; ++run) {
      for (int i = 0; i < 32; ++i) {
        const int nibble = (ByteAt(low, (run & 1) * 32 + i) >> (run / 2 * 4)) & 15;
        const int q = nibble | ((ByteAt(high, i) >> (2 * run)) & 3) << 4;
        const float scale =
            d * static_cast<float>(static_cast<int8_t>(ByteAt(scales, run * 2 + i / 16)));
        out[half * 128 + run * 32 + i] = scale * static_cast<float>(q - 32);
      }
    }
  }
}

// u8 E8M0 scale; 16 bytes of E2M1 nibbles.
void BlockMxfp4(const std::byte* in, float* out) {
  const float scale = E8M0ToFloat(ByteAt(in, 0));
  for (int j = 0; j < 16; ++j) {
    const int q = ByteAt(in, 1 + j);
    out[j] = E2M1ToFloat(static_cast<uint8_t>(q & 15)) * scale;
    out[j + 16] = E2M1ToFloat(static_cast<uint8_t>(q >> 4)) * scale;
  }
}

// 4 E4M3 scales; 4 x 8 bytes of E2M1 nibbles: byte j of a sub-block of 16 holds elements j and
// j + 8.
void BlockNvfp4(const std::byte* in, float* out) {
  for (int sub = 0; sub < 4; ++sub) {
    const float scale = E4M3ToFloat(ByteAt(in, sub));
    for (int j = 0; j < 8; ++j) {
      const int q = ByteAt(in, 4 + sub * 8 + j);
      out[sub * 16 + j] = E2M1ToFloat(static_cast<uint8_t>(q & 15)) * scale;
      out[sub * 16 + j + 8] = E2M1ToFloat(static_cast<uint8_t>(q >> 4)) * scale;
    }
  }
}

using BlockFunction = void (*)(const std::byte*, float*);

BlockFunction FunctionOf(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return [](const std::byte* in, float* out) { std::memcpy(out, in, sizeof(float)); };
    case GgmlType::kF16:
      return [](const std::byte* in, float* out) { *out = LoadF16(in); };
    case GgmlType::kBf16:
      return [](const std::byte* in, float* out) { *out = Bf16ToFloat(Load16(in)); };
    case GgmlType::kQ8_0:
      return BlockQ8_0;
    case GgmlType::kQ4_0:
      return BlockQ4_0;
    case GgmlType::kQ4_1:
      return BlockQ4_1;
    case GgmlType::kQ5_0:
      return BlockQ5_0;
    case GgmlType::kQ5_1:
      return BlockQ5_1;
    case GgmlType::kQ4_K:
      return BlockQ4_K;
    case GgmlType::kQ5_K:
      return BlockQ5_K;
    case GgmlType::kQ6_K:
      return BlockQ6_K;
    case GgmlType::kMxfp4:
      return BlockMxfp4;
    case GgmlType::kNvfp4:
      return BlockNvfp4;
  }
  NIBBLE_CHECK(false, "ggml type {}", static_cast<uint32_t>(type));
  return nullptr;
}

// Re-packs a run of 2 * half elements stored with element j in the low and j + half in the high
// nibble of byte j.
void RepackNibbles(const std::byte* in, int half, std::byte* out) {
  for (int pair = 0; pair < half; ++pair) {
    const auto code = [&](int element) {
      const int byte = ByteAt(in, element % half);
      return static_cast<uint8_t>(element < half ? byte & 15 : byte >> 4);
    };
    out[pair] = static_cast<std::byte>(PackE2M1(code(2 * pair), code(2 * pair + 1)));
  }
}

}  // namespace

std::optional<GgmlType> ParseGgmlType(uint32_t id) {
  for (const KnownType& known : kKnownTypes) {
    if (static_cast<uint32_t>(known.type) == id) return known.type;
  }
  return std::nullopt;
}

const GgmlTypeInfo& InfoOf(GgmlType type) {
  for (const KnownType& known : kKnownTypes) {
    if (known.type == type) return known.info;
  }
  NIBBLE_CHECK(false, "ggml type {}", static_cast<uint32_t>(type));
  return kKnownTypes[0].info;
}

std::string_view GgmlTypeNameOfId(uint32_t id) {
  if (const auto type = ParseGgmlType(id)) return InfoOf(*type).name;
  for (const auto& [other, name] : kOtherTypes) {
    if (other == id) return name;
  }
  return "unknown";
}

std::string SupportedGgmlTypes() {
  std::string list;
  for (const KnownType& known : kKnownTypes) {
    if (!list.empty()) list += ", ";
    list += known.info.name;
  }
  return list;
}

void DequantizeGgml(GgmlType type, const std::byte* in, int64_t elements, float* out) {
  const GgmlTypeInfo& info = InfoOf(type);
  const BlockFunction block = FunctionOf(type);
  for (int64_t i = 0; i < elements; i += info.block_elements, in += info.block_bytes) {
    block(in, out + i);
  }
}

void DequantizeGgmlToBf16(GgmlType type, const std::byte* in, int64_t elements, uint16_t* out) {
  const GgmlTypeInfo& info = InfoOf(type);
  constexpr int64_t kChunk = 4096;  // a multiple of every block
  std::array<float, kChunk> values;
  for (int64_t begin = 0; begin < elements; begin += kChunk) {
    const int64_t count = std::min(kChunk, elements - begin);
    DequantizeGgml(type, in + begin / info.block_elements * info.block_bytes, count, values.data());
    for (int64_t i = 0; i < count; ++i) out[begin + i] = Bf16FromFloat(values[i]);
  }
}

void RepackNvfp4(const std::byte* in, int64_t elements, std::byte* codes, std::byte* scales) {
  for (int64_t block = 0; block < elements / 64; ++block, in += 36) {
    if (scales != nullptr) std::memcpy(scales + block * 4, in, 4);
    if (codes == nullptr) continue;
    for (int sub = 0; sub < 4; ++sub) {
      RepackNibbles(in + 4 + sub * 8, 8, codes + block * 32 + sub * 8);
    }
  }
}

void RepackMxfp4(const std::byte* in, int64_t elements, std::byte* codes, std::byte* scales) {
  for (int64_t block = 0; block < elements / 32; ++block, in += 17) {
    if (scales != nullptr) scales[block] = in[0];
    if (codes != nullptr) RepackNibbles(in + 1, 16, codes + block * 16);
  }
}

}  // namespace nibble::formats
