// The safetensors container: u64 header length, JSON header, tensor bytes.
//
// Every rule of the reference implementation is enforced before a tensor can be seen: header
// limits, types, whole numbers, no holes, no overlap, sizes that match shapes, no trailing bytes;
// and two of the specification that it leaves open: names are unique and the header begins with
// '{'. All arithmetic on values from the file is checked for overflow. Values of tensors are not
// looked at, and nothing is assumed about their alignment.
//
// Thread-safety: parsing is pure; a SafetensorsFile is immutable.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "tensor/tensor.h"

namespace nibble::formats {

inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;     // bytes, the format's own limit
inline constexpr size_t kMaxSafetensorsTensors = size_t{1} << 20;  // per file

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kU8;
  Shape shape;
  int64_t begin = 0;  // byte offsets from the start of the file
  int64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;  // by offset
  std::vector<std::pair<std::string, std::string>> metadata;
};

// file: all bytes of the file; file_name is named in errors, which say tensor, value and
// expectation.
Result<SafetensorsHeader> ParseSafetensors(std::span<const std::byte> file,
                                           std::string_view file_name);

struct SafetensorsFile {
  MappedFile mapping;
  SafetensorsHeader header;
};

// Maps and checks. The size is taken at open; a file that is cut short while it is open is beyond
// what a mapping can report (see MappedFile).
Result<std::shared_ptr<const SafetensorsFile>> OpenSafetensors(const std::string& path);

}  // namespace nibble::formats
