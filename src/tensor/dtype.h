// Element types, named as safetensors names them.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace nibble {

enum class DType : uint8_t {
  kBool,
  kU8,
  kI8,
  kF8E4M3,
  kF8E5M2,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,
  kU16,
  kI16,
  kF16,
  kBF16,
  kU32,
  kI32,
  kF32,
  kU64,
  kI64,
  kF64,
  kC64,
  kF4,
  kF6E2M3,
  kF6E3M2,
};

int DTypeBits(DType dtype);
std::string_view DTypeName(DType dtype);                 // "BF16"
std::optional<DType> ParseDType(std::string_view name);  // by that name

}  // namespace nibble
