// GGML's tensor types: block geometry and dequantisation.
//
// A quantised row is a sequence of blocks along K; the byte layouts are in gguf_blocks.cc beside
// the code that reads them. Values are computed in FP32, one rounding per operation, in the order
// of ggml's reference code. Thread-safety: pure functions.
// Source: ggml's ggml-common.h and ggml-quants.c.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nibble::formats {

enum class GgmlType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBf16 = 30,
  kMxfp4 = 39,
  kNvfp4 = 40,
};

struct GgmlTypeInfo {
  std::string_view name;
  int64_t block_elements;
  int64_t block_bytes;
};

// nullopt for an id that this reader does not know.
std::optional<GgmlType> ParseGgmlType(uint32_t id);
const GgmlTypeInfo& InfoOf(GgmlType type);
// "Q2_K" for ids of types that ggml has and this reader lacks, "unknown" for others.
std::string_view GgmlTypeNameOfId(uint32_t id);
std::string SupportedGgmlTypes();  // "F32, F16, ..."

// elements: a multiple of the type's block. in: elements / block_elements * block_bytes bytes.
void DequantizeGgml(GgmlType type, const std::byte* in, int64_t elements, float* out);

// The same, rounded to BF16 (nearest, ties to even).
void DequantizeGgmlToBf16(GgmlType type, const std::byte* in, int64_t elements, uint16_t* out);

// Lossless re-packing into the Hugging Face layout: E2M1 pairs along K with the even element in the
// low nibble, and one scale byte per 16 (NVFP4, E4M3) or 32 (MXFP4, E8M0) elements. Either output
// may be null.
void RepackNvfp4(const std::byte* in, int64_t elements, std::byte* codes, std::byte* scales);
void RepackMxfp4(const std::byte* in, int64_t elements, std::byte* codes, std::byte* scales);

}  // namespace nibble::formats
