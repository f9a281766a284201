// The GGUF container (v2, v3): typed metadata and tensor descriptions over borrowed bytes.
//
// Parsing follows every rule of the reference reader: known types, unique keys and tensor names,
// sizes without overflow, rows of whole blocks, offsets exactly consecutive, data inside the file.
// Nothing is read outside the bytes, and memory stays proportional to them whatever the header
// claims. Little-endian files only. Thread-safety: immutable after Parse.
// Source: ggml's gguf.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/error.h"
#include "formats/gguf_blocks.h"
#include "tensor/tensor.h"

namespace nibble::formats {

enum class GgufType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

std::string_view GgufTypeName(GgufType type);

// A metadata value. A scalar is an array of one that is not marked as such.
struct GgufValue {
  GgufType type = GgufType::kU8;  // of the elements
  bool is_array = false;
  uint64_t count = 1;
  const std::byte* data = nullptr;        // packed elements, unaligned; unused for strings
  std::vector<std::string_view> strings;  // of strings

  bool is_integer() const;
  bool is_float() const { return type == GgufType::kF32 || type == GgufType::kF64; }
  // Element `index` converted; the type must fit (is_integer() or bool, is_float() or integer).
  int64_t IntegerAt(uint64_t index) const;  // U64 beyond int64 saturates
  double FloatAt(uint64_t index) const;
};

struct GgufTensor {
  std::string name;
  GgmlType type = GgmlType::kF32;
  Shape shape;  // row-major, outermost first: ggml's ne reversed
  std::span<const std::byte> bytes;

  // Elements of the innermost dimension, and how many such rows there are.
  int64_t columns() const { return shape.rank() == 0 ? 1 : shape[shape.rank() - 1]; }
  int64_t rows() const { return columns() == 0 ? 0 : shape.elements() / columns(); }
};

class GgufFile {
 public:
  // name: for messages. The bytes are borrowed; `owner` (may be null) keeps them alive.
  static Result<std::shared_ptr<const GgufFile>> Parse(std::span<const std::byte> bytes,
                                                       std::string name,
                                                       std::shared_ptr<const void> owner);
  // Maps a file and parses it.
  static Result<std::shared_ptr<const GgufFile>> Open(const std::string& path);

  const std::string& name() const { return name_; }
  std::span<const GgufTensor> tensors() const { return tensors_; }
  const GgufTensor* FindTensor(std::string_view name) const;

  const GgufValue* Find(std::string_view key) const;
  bool Has(std::string_view key) const { return Find(key) != nullptr; }
  // All keys, in file order.
  const std::vector<std::string_view>& keys() const { return keys_; }

  // A value of a kind; kCorruption naming file, key and type when it is absent or of another kind.
  Result<int64_t> GetInteger(std::string_view key, int64_t min, int64_t max) const;
  Result<double> GetFloat(std::string_view key) const;
  Result<bool> GetBool(std::string_view key) const;
  Result<std::string_view> GetString(std::string_view key) const;
  Result<std::span<const std::string_view>> GetStrings(std::string_view key) const;
  // An array of integers or floats with at least min_count elements.
  Result<const GgufValue*> GetNumbers(std::string_view key, uint64_t min_count) const;

 private:
  class Parser;
  GgufFile() = default;
  Result<const GgufValue*> Require(std::string_view key) const;

  std::string name_;
  std::shared_ptr<const void> owner_;
  std::vector<std::string_view> keys_;
  std::unordered_map<std::string_view, GgufValue> values_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> tensor_index_;  // views of tensors_' names
};

}  // namespace nibble::formats
