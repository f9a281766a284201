#include "formats/gguf_file.h"

#include <bit>
#include <cstring>
#include <limits>
#include <unordered_set>
#include <utility>

#include "base/file.h"
#include "formats/json_file.h"

namespace nibble::formats {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read in place");

constexpr uint64_t kMaxLength = uint64_t{1} << 30;  // of a string or an array
constexpr size_t kMaxTensorName = 63;               // bytes
constexpr uint32_t kMaxDims = 4;
constexpr int64_t kDefaultAlignment = 32;

// Bytes of one element; 0 for strings and arrays.
int64_t FixedSize(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return 1;
    case GgufType::kU16:
    case GgufType::kI16:
      return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32:
      return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      break;
  }
  return 0;
}

template <typename T>
T LoadAt(const std::byte* data, uint64_t index) {
  T value;
  std::memcpy(&value, data + index * sizeof(T), sizeof(T));
  return value;
}

// "an array of 3 U32", "STRING".
std::string Describe(const GgufValue& value) {
  if (value.is_array)
    return fmt::format("an array of {} {}", value.count, GgufTypeName(value.type));
  return std::string(GgufTypeName(value.type));
}

}  // namespace

std::string_view GgufTypeName(GgufType type) {
  constexpr std::string_view kNames[] = {"U8",   "I8",     "U16",   "I16", "U32", "I32", "F32",
                                         "BOOL", "STRING", "ARRAY", "U64", "I64", "F64"};
  return kNames[static_cast<uint32_t>(type)];
}

bool GgufValue::is_integer() const {
  return !is_float() && type != GgufType::kBool && type != GgufType::kString;
}

int64_t GgufValue::IntegerAt(uint64_t index) const {
  switch (type) {
    case GgufType::kU8:
      return LoadAt<uint8_t>(data, index);
    case GgufType::kI8:
      return LoadAt<int8_t>(data, index);
    case GgufType::kU16:
      return LoadAt<uint16_t>(data, index);
    case GgufType::kI16:
      return LoadAt<int16_t>(data, index);
    case GgufType::kU32:
      return LoadAt<uint32_t>(data, index);
    case GgufType::kI32:
      return LoadAt<int32_t>(data, index);
    case GgufType::kI64:
      return LoadAt<int64_t>(data, index);
    case GgufType::kBool:
      return LoadAt<uint8_t>(data, index) != 0;
    case GgufType::kU64: {
      const uint64_t value = LoadAt<uint64_t>(data, index);
      constexpr auto kMax = std::numeric_limits<int64_t>::max();
      return value > static_cast<uint64_t>(kMax) ? kMax : static_cast<int64_t>(value);
    }
    default:
      break;
  }
  NIBBLE_CHECK(false, "{} read as an integer", GgufTypeName(type));
  return 0;
}

double GgufValue::FloatAt(uint64_t index) const {
  if (type == GgufType::kF32) return LoadAt<float>(data, index);
  if (type == GgufType::kF64) return LoadAt<double>(data, index);
  return static_cast<double>(IntegerAt(index));
}

// A cursor over the header. Every read checks what is left.
class GgufFile::Parser {
 public:
  Parser(std::span<const std::byte> bytes, GgufFile* file) : bytes_(bytes), file_(*file) {}

  Status Run() {
    NIBBLE_ASSIGN(const Counts counts, ReadPreamble());
    for (int64_t i = 0; i < counts.values; ++i) NIBBLE_TRY(ReadPair());
    NIBBLE_TRY(ReadAlignment());
    for (int64_t i = 0; i < counts.tensors; ++i) NIBBLE_TRY(ReadTensorInfo());
    return PlaceTensors();
  }

 private:
  struct Counts {
    int64_t tensors;
    int64_t values;
  };
  struct Placement {
    uint64_t offset;
    int64_t size;
  };

  template <typename... Args>
  tl::unexpected<Error> Corrupt(fmt::format_string<Args...> format, Args&&... args) const {
    return Fail(Code::kCorruption, "{}: {}", file_.name_,
                fmt::format(format, std::forward<Args>(args)...));
  }

  // reading: what is read, for the message.
  Result<const std::byte*> Take(uint64_t count, std::string_view reading) {
    if (count > bytes_.size() - at_) {
      return Corrupt("truncated: {} needs {} bytes at offset {}, the file has {}", Quoted(reading),
                     count, at_, bytes_.size());
    }
    const std::byte* data = bytes_.data() + at_;
    at_ += count;
    return data;
  }

  template <typename T>
  Result<T> Number(std::string_view reading) {
    NIBBLE_ASSIGN(const std::byte* data, Take(sizeof(T), reading));
    return LoadAt<T>(data, 0);
  }

  Result<std::string_view> String(std::string_view reading) {
    NIBBLE_ASSIGN(const uint64_t length, Number<uint64_t>(reading));
    if (length > kMaxLength) {
      return Corrupt("{} is {} bytes long, at most {} are allowed", Quoted(reading), length,
                     kMaxLength);
    }
    NIBBLE_ASSIGN(const std::byte* data, Take(length, reading));
    return std::string_view(reinterpret_cast<const char*>(data), length);
  }

  Result<Counts> ReadPreamble() {
    NIBBLE_ASSIGN(const std::byte* magic, Take(4, "magic"));
    if (std::memcmp(magic, "GGUF", 4) != 0) {
      return Corrupt("not a GGUF file: it does not start with \"GGUF\"");
    }
    NIBBLE_ASSIGN(const uint32_t version, Number<uint32_t>("version"));
    if (version != 0 && (version & 0xFFFF) == 0) {
      return Fail(Code::kUnsupported, "{}: a big-endian GGUF file; only little-endian is supported",
                  file_.name_);
    }
    if (version != 2 && version != 3) {
      return Fail(Code::kUnsupported, "{}: GGUF version {}; supported: 2 and 3", file_.name_,
                  version);
    }
    NIBBLE_ASSIGN(const int64_t tensors, Number<int64_t>("tensor count"));
    NIBBLE_ASSIGN(const int64_t values, Number<int64_t>("metadata count"));
    if (tensors < 0 || values < 0) {
      return Corrupt("negative counts: {} tensors, {} metadata values", tensors, values);
    }
    return Counts{tensors, values};
  }

  Result<GgufType> Type(std::string_view key) {
    NIBBLE_ASSIGN(const uint32_t id, Number<uint32_t>(key));
    if (id > static_cast<uint32_t>(GgufType::kF64)) {
      return Corrupt("metadata key {} has unknown type {} (0 to 12 are known)", Quoted(key), id);
    }
    return static_cast<GgufType>(id);
  }

  Status ReadPair() {
    NIBBLE_ASSIGN(const std::string_view key, String("a metadata key"));
    GgufValue value;
    NIBBLE_ASSIGN(value.type, Type(key));
    if (value.type == GgufType::kArray) {
      value.is_array = true;
      NIBBLE_ASSIGN(value.type, Type(key));
      if (value.type == GgufType::kArray) {
        return Corrupt("metadata key {} is an array of arrays, which GGUF does not allow",
                       Quoted(key));
      }
      NIBBLE_ASSIGN(value.count, Number<uint64_t>(key));
      if (value.count > kMaxLength) {
        return Corrupt("metadata key {} has {} elements, at most {} are allowed", Quoted(key),
                       value.count, kMaxLength);
      }
    }
    if (value.type == GgufType::kString) {
      for (uint64_t i = 0; i < value.count; ++i) {
        NIBBLE_ASSIGN(const std::string_view text, String(key));
        value.strings.push_back(text);
      }
    } else {
      NIBBLE_ASSIGN(value.data,
                    Take(value.count * static_cast<uint64_t>(FixedSize(value.type)), key));
    }
    if (!file_.values_.emplace(key, std::move(value)).second) {
      return Corrupt("metadata key {} occurs twice", Quoted(key));
    }
    file_.keys_.push_back(key);
    return {};
  }

  Status ReadAlignment() {
    const GgufValue* value = file_.Find("general.alignment");
    if (value == nullptr) return {};
    if (value->is_array || value->type != GgufType::kU32) {
      return Corrupt("general.alignment is {}, expected U32", Describe(*value));
    }
    alignment_ = value->IntegerAt(0);
    if (alignment_ <= 0 || !std::has_single_bit(static_cast<uint64_t>(alignment_))) {
      return Corrupt("general.alignment is {}, expected a power of two", alignment_);
    }
    return {};
  }

  Status ReadTensorInfo() {
    NIBBLE_ASSIGN(const std::string_view name, String("a tensor name"));
    if (name.size() > kMaxTensorName) {
      return Corrupt("a tensor name of {} bytes, at most {} are allowed", name.size(),
                     kMaxTensorName);
    }
    if (!names_.insert(name).second) return Corrupt("tensor {} occurs twice", Quoted(name));
    NIBBLE_ASSIGN(const uint32_t dims, Number<uint32_t>(name));
    if (dims > kMaxDims) {
      return Corrupt("tensor {} has {} dimensions, at most {} are allowed", Quoted(name), dims,
                     kMaxDims);
    }
    int64_t extents[kMaxDims];  // innermost first
    int64_t elements = 1;
    for (uint32_t i = 0; i < dims; ++i) {
      NIBBLE_ASSIGN(extents[i], Number<int64_t>(name));
      if (extents[i] < 0)
        return Corrupt("tensor {} has a dimension of {}", Quoted(name), extents[i]);
      if (__builtin_mul_overflow(elements, extents[i], &elements)) {
        return Corrupt("tensor {}: the number of elements overflows 64 bits", Quoted(name));
      }
    }
    NIBBLE_ASSIGN(const uint32_t type_id, Number<uint32_t>(name));
    NIBBLE_ASSIGN(const uint64_t offset, Number<uint64_t>(name));

    const auto type = ParseGgmlType(type_id);
    if (!type) {
      return Fail(Code::kUnsupported, "{}: tensor {} is stored as type {} ({}); supported: {}",
                  file_.name_, Quoted(name), type_id, GgmlTypeNameOfId(type_id),
                  SupportedGgmlTypes());
    }
    const GgmlTypeInfo& info = InfoOf(*type);
    const int64_t columns = dims == 0 ? 1 : extents[0];
    if (columns % info.block_elements != 0) {
      return Corrupt("tensor {} has rows of {} elements, not a multiple of {}'s block of {}",
                     Quoted(name), columns, info.name, info.block_elements);
    }
    int64_t size;
    if (__builtin_mul_overflow(elements / info.block_elements, info.block_bytes, &size)) {
      return Corrupt("tensor {}: its size overflows 64 bits", Quoted(name));
    }
    GgufTensor tensor{.name = std::string(name), .type = *type};
    for (uint32_t i = dims; i > 0; --i) tensor.shape.Append(extents[i - 1]);
    file_.tensors_.push_back(std::move(tensor));
    placements_.push_back({offset, size});
    return {};
  }

  // Gives every tensor its bytes: consecutive from the aligned end of the header.
  Status PlaceTensors() {
    if (file_.tensors_.empty()) return {};
    const auto align = [this](uint64_t at, uint64_t* aligned) {
      const uint64_t mask = static_cast<uint64_t>(alignment_) - 1;
      return !__builtin_add_overflow(at, mask, aligned) && (*aligned &= ~mask, true);
    };
    uint64_t start;
    if (!align(at_, &start) || start > bytes_.size()) {
      return Corrupt("truncated: tensor data would start at {}, the file has {} bytes", at_,
                     bytes_.size());
    }
    const uint64_t available = bytes_.size() - start;
    uint64_t expected = 0;
    for (size_t i = 0; i < placements_.size(); ++i) {
      GgufTensor& tensor = file_.tensors_[i];
      const auto [offset, size] = placements_[i];
      if (offset != expected) {
        return Corrupt("tensor {} is at data offset {}, expected {}", Quoted(tensor.name), offset,
                       expected);
      }
      if (offset > available || static_cast<uint64_t>(size) > available - offset) {
        return Corrupt("truncated: tensor {} needs {} bytes at data offset {}, {} are there",
                       Quoted(tensor.name), size, offset, available);
      }
      tensor.bytes = bytes_.subspan(start + offset, static_cast<size_t>(size));
      if (!align(offset + static_cast<uint64_t>(size), &expected)) {
        return Corrupt("tensor {}: the next offset overflows 64 bits", Quoted(tensor.name));
      }
    }
    for (size_t i = 0; i < file_.tensors_.size(); ++i) {
      file_.tensor_index_.emplace(file_.tensors_[i].name, i);
    }
    return {};
  }

  const std::span<const std::byte> bytes_;
  GgufFile& file_;
  uint64_t at_ = 0;
  int64_t alignment_ = kDefaultAlignment;
  std::unordered_set<std::string_view> names_;
  std::vector<Placement> placements_;  // parallel to the file's tensors
};

Result<std::shared_ptr<const GgufFile>> GgufFile::Parse(std::span<const std::byte> bytes,
                                                        std::string name,
                                                        std::shared_ptr<const void> owner) {
  std::shared_ptr<GgufFile> file(new GgufFile());
  file->name_ = std::move(name);
  file->owner_ = std::move(owner);
  NIBBLE_TRY(Parser(bytes, file.get()).Run());
  return file;
}

Result<std::shared_ptr<const GgufFile>> GgufFile::Open(const std::string& path) {
  NIBBLE_ASSIGN(auto mapped, MappedFile::Open(path));
  const auto owner = std::make_shared<const MappedFile>(std::move(mapped));
  return Parse(owner->bytes(), path, owner);
}

const GgufTensor* GgufFile::FindTensor(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

const GgufValue* GgufFile::Find(std::string_view key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

Result<const GgufValue*> GgufFile::Require(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr)
    return Fail(Code::kCorruption, "{}: metadata key {} is missing", name_, Quoted(key));
  return value;
}

Result<int64_t> GgufFile::GetInteger(std::string_view key, int64_t min, int64_t max) const {
  NIBBLE_ASSIGN(const GgufValue* value, Require(key));
  if (value->is_array || !value->is_integer()) {
    return Fail(Code::kCorruption, "{}: {} is {}, expected an integer", name_, key,
                Describe(*value));
  }
  const int64_t number = value->IntegerAt(0);
  if (number < min || number > max) {
    return Fail(Code::kCorruption, "{}: {} is {}, expected {} to {}", name_, key, number, min, max);
  }
  return number;
}

Result<double> GgufFile::GetFloat(std::string_view key) const {
  NIBBLE_ASSIGN(const GgufValue* value, Require(key));
  if (value->is_array || !(value->is_float() || value->is_integer())) {
    return Fail(Code::kCorruption, "{}: {} is {}, expected a number", name_, key, Describe(*value));
  }
  return value->FloatAt(0);
}

Result<bool> GgufFile::GetBool(std::string_view key) const {
  NIBBLE_ASSIGN(const GgufValue* value, Require(key));
  if (value->is_array || value->type != GgufType::kBool) {
    return Fail(Code::kCorruption, "{}: {} is {}, expected BOOL", name_, key, Describe(*value));
  }
  return value->IntegerAt(0) != 0;
}

Result<std::string_view> GgufFile::GetString(std::string_view key) const {
  NIBBLE_ASSIGN(const GgufValue* value, Require(key));
  if (value->is_array || value->type != GgufType::kString) {
    return Fail(Code::kCorruption, "{}: {} is {}, expected STRING", name_, key, Describe(*value));
  }
  return value->strings[0];
}

Result<std::span<const std::string_view>> GgufFile::GetStrings(std::string_view key) const {
  NIBBLE_ASSIGN(const GgufValue* value, Require(key));
  if (!value->is_array || value->type != GgufType::kString) {
    return Fail(Code::kCorruption, "{}: {} is {}, expected an array of STRING", name_, key,
                Describe(*value));
  }
  return std::span<const std::string_view>(value->strings);
}

Result<const GgufValue*> GgufFile::GetNumbers(std::string_view key, uint64_t min_count) const {
  NIBBLE_ASSIGN(const GgufValue* value, Require(key));
  if (!value->is_array || !(value->is_float() || value->is_integer()) || value->count < min_count) {
    return Fail(Code::kCorruption, "{}: {} is {}, expected an array of at least {} numbers", name_,
                key, Describe(*value), min_count);
  }
  return value;
}

}  // namespace nibble::formats
