#include "formats/safetensors.h"

#include <algorithm>
#include <bit>
#include <boost/json/basic_parser_impl.hpp>
#include <cstring>
#include <limits>

#include "formats/json_file.h"

namespace nibble::formats {
namespace {

namespace json = boost::json;

constexpr std::string_view kMetadataKey = "__metadata__";
constexpr int64_t kMaxOffset = std::numeric_limits<int64_t>::max();

// An entry as the header spells it: offsets count from the byte buffer.
struct RawEntry {
  std::string name;
  DType dtype = DType::kU8;
  std::vector<uint64_t> shape;
  std::vector<uint64_t> offsets;
  bool has_dtype = false;
  bool has_shape = false;
  bool has_offsets = false;
};

// Events of the JSON parser → entries. A DOM would lose repeated names, and cost several times the
// memory for headers of many megabytes.
class HeaderHandler {
 public:
  constexpr static size_t max_object_size = static_cast<size_t>(-1);
  constexpr static size_t max_array_size = static_cast<size_t>(-1);
  constexpr static size_t max_key_size = static_cast<size_t>(-1);
  constexpr static size_t max_string_size = static_cast<size_t>(-1);

  std::vector<RawEntry> entries;
  std::vector<std::pair<std::string, std::string>> metadata;
  std::string message;  // why the last event was refused

  bool on_document_begin(json::error_code&) { return true; }
  bool on_document_end(json::error_code&) { return true; }

  bool on_object_begin(json::error_code& error) {
    switch (place_) {
      case Place::kDocument:
        place_ = Place::kNames;
        return true;
      case Place::kNames:
        return key_ == kMetadataKey ? BeginMetadata(error) : BeginEntry(error);
      case Place::kEntry:
        if (IsField(key_)) return RefuseValue("an object", error);
        return BeginSkipped();
      case Place::kSkipped:
        return BeginSkipped();
      default:
        return RefuseValue("an object", error);
    }
  }

  bool on_object_end(size_t, json::error_code& error) {
    switch (place_) {
      case Place::kEntry:
        place_ = Place::kNames;
        return CheckComplete(error);
      case Place::kMetadata:
        place_ = Place::kNames;
        return true;
      case Place::kSkipped:
        return EndSkipped();
      default:  // the document itself
        return true;
    }
  }

  bool on_array_begin(json::error_code& error) {
    if (place_ == Place::kSkipped) return BeginSkipped();
    if (place_ != Place::kEntry) return RefuseValue("an array", error);
    RawEntry& entry = entries.back();
    if (key_ == "shape") return BeginNumbers(Place::kShape, entry.has_shape, error);
    if (key_ == "data_offsets") return BeginNumbers(Place::kOffsets, entry.has_offsets, error);
    if (IsField(key_)) return RefuseValue("an array", error);
    return BeginSkipped();
  }

  bool on_array_end(size_t, json::error_code&) {
    if (place_ == Place::kSkipped) return EndSkipped();
    place_ = Place::kEntry;
    return true;
  }

  bool on_key_part(json::string_view part, size_t, json::error_code&) {
    partial_ += std::string_view(part);
    return true;
  }
  bool on_key(json::string_view part, size_t, json::error_code&) {
    partial_ += std::string_view(part);
    if (place_ != Place::kSkipped) key_ = std::move(partial_);
    partial_.clear();
    return true;
  }

  bool on_string_part(json::string_view part, size_t, json::error_code&) {
    partial_ += std::string_view(part);
    return true;
  }
  bool on_string(json::string_view part, size_t, json::error_code& error) {
    partial_ += std::string_view(part);
    const std::string value = std::exchange(partial_, {});
    if (place_ == Place::kSkipped) return true;
    if (place_ == Place::kMetadata) {
      metadata.emplace_back(key_, value);
      return true;
    }
    if (place_ != Place::kEntry) return RefuseValue("a string", error);
    if (key_ == "dtype") return SetDType(value, error);
    return IsField(key_) ? RefuseValue("a string", error) : true;
  }

  bool on_number_part(json::string_view, json::error_code&) { return true; }
  bool on_int64(int64_t value, json::string_view, json::error_code& error) {
    if (value < 0) return RefuseValue(fmt::format("the negative number {}", value), error);
    return AddNumber(static_cast<uint64_t>(value), error);
  }
  bool on_uint64(uint64_t value, json::string_view, json::error_code& error) {
    return AddNumber(value, error);
  }
  bool on_double(double value, json::string_view, json::error_code& error) {
    return Scalar(fmt::format("the number {}", value), error);
  }
  bool on_bool(bool, json::error_code& error) { return Scalar("a boolean", error); }
  bool on_null(json::error_code& error) {
    if (place_ == Place::kNames && key_ == kMetadataKey) return true;  // as if there were none
    return Scalar("null", error);
  }
  bool on_comment_part(json::string_view, json::error_code&) { return true; }
  bool on_comment(json::string_view, json::error_code&) { return true; }

 private:
  enum class Place { kDocument, kNames, kEntry, kMetadata, kShape, kOffsets, kSkipped };

  static bool IsField(std::string_view key) {
    return key == "dtype" || key == "shape" || key == "data_offsets";
  }

  bool Refuse(std::string why, json::error_code& error) {
    message = std::move(why);
    error = json::error::syntax;
    return false;
  }

  // A value of the wrong kind for where it stands.
  bool RefuseValue(std::string_view found, json::error_code& error) {
    switch (place_) {
      case Place::kDocument:
        return Refuse(fmt::format("the header is {}, expected a JSON object", found), error);
      case Place::kNames:
        return Refuse(fmt::format("entry {} is {}, expected an object", Quoted(key_), found),
                      error);
      case Place::kMetadata:
        return Refuse(
            fmt::format("__metadata__ value {} is {}, expected a string", Quoted(key_), found),
            error);
      case Place::kShape:
      case Place::kOffsets:
        return Refuse(fmt::format("tensor {}: {} holds {}, expected whole numbers that are not "
                                  "negative",
                                  Quoted(entries.back().name), key_, found),
                      error);
      default:
        return Refuse(
            fmt::format("tensor {}: {} is {}, expected {}", Quoted(entries.back().name), key_,
                        found, key_ == "dtype" ? "a string" : "an array of whole numbers"),
            error);
    }
  }

  bool RefuseRepeated(json::error_code& error) {
    return Refuse(fmt::format("tensor {}: {} is given twice", Quoted(entries.back().name), key_),
                  error);
  }

  bool BeginMetadata(json::error_code& error) {
    if (std::exchange(has_metadata_, true)) return Refuse("__metadata__ is given twice", error);
    place_ = Place::kMetadata;
    return true;
  }

  bool BeginEntry(json::error_code& error) {
    if (entries.size() == kMaxSafetensorsTensors) {
      return Refuse(fmt::format("more than {} tensors in one file", kMaxSafetensorsTensors), error);
    }
    entries.emplace_back().name = key_;
    place_ = Place::kEntry;
    return true;
  }

  bool BeginSkipped() {
    place_ = Place::kSkipped;
    ++skipped_depth_;
    return true;
  }
  bool EndSkipped() {
    if (--skipped_depth_ == 0) place_ = Place::kEntry;
    return true;
  }

  bool BeginNumbers(Place place, bool& seen, json::error_code& error) {
    if (std::exchange(seen, true)) return RefuseRepeated(error);
    place_ = place;
    return true;
  }

  bool AddNumber(uint64_t value, json::error_code& error) {
    if (place_ == Place::kShape) {
      if (entries.back().shape.size() == Shape::kMaxRank) {
        return Refuse(fmt::format("tensor {}: more than {} dimensions", Quoted(entries.back().name),
                                  Shape::kMaxRank),
                      error);
      }
      entries.back().shape.push_back(value);
      return true;
    }
    if (place_ == Place::kOffsets && entries.back().offsets.size() < 2) {
      entries.back().offsets.push_back(value);
      return true;
    }
    if (place_ == Place::kOffsets) {
      return Refuse(fmt::format("tensor {}: data_offsets has more than 2 numbers",
                                Quoted(entries.back().name)),
                    error);
    }
    return Scalar(fmt::format("the number {}", value), error);
  }

  // Numbers, booleans and null outside of shape and data_offsets.
  bool Scalar(std::string_view found, json::error_code& error) {
    if (place_ == Place::kSkipped) return true;
    if (place_ == Place::kEntry && !IsField(key_)) return true;
    return RefuseValue(found, error);
  }

  bool SetDType(const std::string& name, json::error_code& error) {
    RawEntry& entry = entries.back();
    if (std::exchange(entry.has_dtype, true)) return RefuseRepeated(error);
    const auto dtype = ParseDType(name);
    if (!dtype) {
      return Refuse(fmt::format("tensor {}: unknown dtype {}", Quoted(entry.name), Quoted(name)),
                    error);
    }
    entry.dtype = *dtype;
    return true;
  }

  bool CheckComplete(json::error_code& error) {
    const RawEntry& entry = entries.back();
    const char* missing = !entry.has_dtype     ? "dtype"
                          : !entry.has_shape   ? "shape"
                          : !entry.has_offsets ? "data_offsets"
                                               : nullptr;
    if (missing != nullptr) {
      return Refuse(fmt::format("tensor {}: no {}", Quoted(entry.name), missing), error);
    }
    if (entry.offsets.size() != 2) {
      return Refuse(fmt::format("tensor {}: data_offsets has {} numbers, expected 2",
                                Quoted(entry.name), entry.offsets.size()),
                    error);
    }
    return true;
  }

  Place place_ = Place::kDocument;
  int skipped_depth_ = 0;
  bool has_metadata_ = false;
  std::string key_;      // of the value that comes next
  std::string partial_;  // of a key or string that comes in parts
};

std::string ShapeText(const std::vector<uint64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += fmt::format("{}{}", i == 0 ? "" : ", ", shape[i]);
  }
  return text + "]";
}

// Bytes that shape and dtype ask for.
Result<uint64_t> ExpectedBytes(const RawEntry& entry, std::string_view file) {
  uint64_t bits = static_cast<uint64_t>(DTypeBits(entry.dtype));
  for (const uint64_t dim : entry.shape) {
    if (dim > static_cast<uint64_t>(kMaxOffset) || __builtin_mul_overflow(bits, dim, &bits) ||
        bits > static_cast<uint64_t>(kMaxOffset)) {
      return Fail(Code::kCorruption, "{}: tensor {}: shape {} of {} overflows 64 bits", file,
                  Quoted(entry.name), ShapeText(entry.shape), DTypeName(entry.dtype));
    }
  }
  if (bits % 8 != 0) {
    return Fail(Code::kCorruption, "{}: tensor {}: shape {} of {} is {} bits, not whole bytes",
                file, Quoted(entry.name), ShapeText(entry.shape), DTypeName(entry.dtype), bits);
  }
  return bits / 8;
}

Status CheckUniqueNames(const std::vector<RawEntry>& entries, std::string_view file) {
  std::vector<std::string_view> names;
  names.reserve(entries.size());
  for (const RawEntry& entry : entries) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice == names.end()) return {};
  return Fail(Code::kCorruption, "{}: tensor {} is listed twice", file, Quoted(*twice));
}

// Offsets must cover the byte buffer without holes, overlap or rest, in any order of names.
Result<std::vector<SafetensorsEntry>> LayOut(std::vector<RawEntry> raw, uint64_t data_start,
                                             uint64_t file_size, std::string_view file) {
  std::sort(raw.begin(), raw.end(),
            [](const RawEntry& a, const RawEntry& b) { return a.offsets < b.offsets; });
  const uint64_t buffer_size = file_size - data_start;
  std::vector<SafetensorsEntry> entries;
  entries.reserve(raw.size());
  uint64_t expected_begin = 0;
  for (RawEntry& entry : raw) {
    const uint64_t begin = entry.offsets[0];
    const uint64_t end = entry.offsets[1];
    if (begin != expected_begin || end < begin) {
      return Fail(Code::kCorruption,
                  "{}: tensor {}: data_offsets [{}, {}], expected to begin at {} (the bytes must "
                  "have no hole and no overlap)",
                  file, Quoted(entry.name), begin, end, expected_begin);
    }
    if (end > buffer_size) {
      return Fail(Code::kCorruption,
                  "{}: tensor {}: data_offsets end at {}, but the file holds {} bytes of tensors; "
                  "it is cut short",
                  file, Quoted(entry.name), end, buffer_size);
    }
    NIBBLE_ASSIGN(const uint64_t bytes, ExpectedBytes(entry, file));
    if (bytes != end - begin) {
      return Fail(Code::kCorruption,
                  "{}: tensor {}: data_offsets [{}, {}] hold {} bytes, but shape {} of {} needs {}",
                  file, Quoted(entry.name), begin, end, end - begin, ShapeText(entry.shape),
                  DTypeName(entry.dtype), bytes);
    }
    SafetensorsEntry& laid = entries.emplace_back();
    laid.name = std::move(entry.name);
    laid.dtype = entry.dtype;
    for (const uint64_t dim : entry.shape) laid.shape.Append(static_cast<int64_t>(dim));
    laid.begin = static_cast<int64_t>(data_start + begin);
    laid.end = static_cast<int64_t>(data_start + end);
    expected_begin = end;
  }
  if (expected_begin != buffer_size) {
    return Fail(Code::kCorruption,
                "{}: {} bytes of tensors are described, but the file holds {} after its header",
                file, expected_begin, buffer_size);
  }
  return entries;
}

// The header's JSON text, limits checked.
Result<std::string_view> HeaderText(std::span<const std::byte> file, std::string_view file_name) {
  static_assert(std::endian::native == std::endian::little);
  if (file.size() < 8) {
    return Fail(Code::kCorruption, "{}: {} bytes, a safetensors file has at least 8", file_name,
                file.size());
  }
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof length);
  if (length > kMaxSafetensorsHeader) {
    return Fail(Code::kCorruption,
                "{}: header length {}, at most {} are allowed; is this a safetensors file?",
                file_name, length, kMaxSafetensorsHeader);
  }
  if (length > file.size() - 8) {
    return Fail(Code::kCorruption,
                "{}: header length {}, but only {} bytes follow; the file is cut short", file_name,
                length, file.size() - 8);
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + 8, length);
  if (!text.starts_with('{')) {
    return Fail(Code::kCorruption, "{}: the header does not begin with '{{'", file_name);
  }
  return text;
}

}  // namespace

Result<SafetensorsHeader> ParseSafetensors(std::span<const std::byte> file,
                                           std::string_view file_name) {
  NIBBLE_ASSIGN(const std::string_view text, HeaderText(file, file_name));
  json::basic_parser<HeaderHandler> parser{json::parse_options{}};
  json::error_code error;
  const size_t consumed = parser.write_some(false, text.data(), text.size(), error);
  HeaderHandler& handler = parser.handler();
  if (!error && consumed < text.size()) error = json::error::extra_data;
  if (error && !handler.message.empty()) {
    return Fail(Code::kCorruption, "{}: {}", file_name, handler.message);
  }
  if (error) {
    return Fail(Code::kCorruption, "{}: the header is not valid JSON at byte {}: {}", file_name,
                8 + consumed, error.message());
  }
  NIBBLE_TRY(CheckUniqueNames(handler.entries, file_name));
  SafetensorsHeader header;
  header.metadata = std::move(handler.metadata);
  NIBBLE_ASSIGN(header.tensors,
                LayOut(std::move(handler.entries), 8 + text.size(), file.size(), file_name));
  return header;
}

Result<std::shared_ptr<const SafetensorsFile>> OpenSafetensors(const std::string& path) {
  auto file = std::make_shared<SafetensorsFile>();
  NIBBLE_ASSIGN(file->mapping, MappedFile::Open(path));
  NIBBLE_ASSIGN(file->header, ParseSafetensors(file->mapping.bytes(), path));
  return std::shared_ptr<const SafetensorsFile>(std::move(file));
}

}  // namespace nibble::formats
