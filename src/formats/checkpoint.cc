#include "formats/checkpoint.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "base/file.h"
#include "base/log.h"
#include "formats/gguf.h"
#include "formats/hf_checkpoint.h"
#include "formats/json_file.h"
#include "formats/stored_formats.h"
#include "numerics/bf16.h"
#include "numerics/f16.h"

namespace nibble::formats {
namespace {

namespace json = boost::json;

constexpr size_t kAmbiguous = std::numeric_limits<size_t>::max();

// What wrappers of a text model put in front of its names, and what the text model alone has there.
constexpr std::array<std::pair<std::string_view, std::string_view>, 6> kPrefixes = {{
    {"model.language_model.", "model."},
    {"language_model.model.", "model."},
    {"language_model.", ""},
    {"layers.", "model.layers."},
    {"embed_tokens.", "model.embed_tokens."},
    {"norm.", "model.norm."},
}};

void AppendTokenIds(const json::value& value, std::vector<int32_t>& ids) {
  if (const auto* array = value.if_array()) {
    for (const json::value& item : *array) {
      if (item.is_int64()) AppendTokenIds(item, ids);
    }
    return;
  }
  const int64_t* id = value.if_int64();
  if (id != nullptr && *id >= 0 && *id <= std::numeric_limits<int32_t>::max()) {
    ids.push_back(static_cast<int32_t>(*id));
  }
}

std::vector<int32_t> EosTokenIds(const json::object& object) {
  std::vector<int32_t> ids;
  if (const auto* eos = object.if_contains("eos_token_id")) AppendTokenIds(*eos, ids);
  return ids;
}

}  // namespace

std::string PlainName(std::string_view name) {
  for (const auto& [wrapped, plain] : kPrefixes) {
    if (name.starts_with(wrapped)) {
      return std::string(plain) + std::string(name.substr(wrapped.size()));
    }
  }
  return std::string(name);
}

void Checkpoint::SetTensors(std::vector<TensorEntry> sorted) {
  tensors_ = std::move(sorted);
  aliases_.clear();
  for (size_t i = 0; i < tensors_.size(); ++i) {
    std::string plain = PlainName(tensors_[i].name);
    if (plain == tensors_[i].name) continue;
    const auto [at, inserted] = aliases_.emplace(std::move(plain), i);
    if (!inserted) at->second = kAmbiguous;
  }
}

const TensorEntry* Checkpoint::Find(std::string_view name) const {
  const auto at = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const TensorEntry& entry, std::string_view wanted) { return entry.name < wanted; });
  if (at != tensors_.end() && at->name == name) return &*at;
  if (aliases_.empty()) return nullptr;
  const auto alias = aliases_.find(PlainName(name));
  if (alias == aliases_.end() || alias->second == kAmbiguous) return nullptr;
  return &tensors_[alias->second];
}

Result<TensorData> Checkpoint::Read(std::string_view name) const {
  const TensorEntry* entry = Find(name);
  if (entry == nullptr) {
    return Fail(Code::kNotFound, "{}: no tensor {} among {}", path_, Quoted(name), tensors_.size());
  }
  return Read(*entry);
}

Result<float> Checkpoint::ReadScalar(const TensorEntry& entry) const {
  if (entry.shape.elements() != 1) {
    return Fail(Code::kCorruption, "{}: tensor {}: shape {}, expected a scalar, [] or [1]", path_,
                Quoted(entry.name), entry.shape.ToString());
  }
  NIBBLE_ASSIGN(const TensorData data, Read(entry));
  uint16_t half = 0;
  float single = 0;
  switch (entry.dtype) {
    case DType::kF32:
      std::memcpy(&single, data.view.data, sizeof single);
      return single;
    case DType::kBF16:
      std::memcpy(&half, data.view.data, sizeof half);
      return Bf16ToFloat(half);
    case DType::kF16:
      std::memcpy(&half, data.view.data, sizeof half);
      return F16ToFloat(half);
    default:
      return Fail(Code::kCorruption, "{}: tensor {}: dtype {}, expected F32, BF16 or F16", path_,
                  Quoted(entry.name), DTypeName(entry.dtype));
  }
}

Result<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::string& path,
                                                   const OpenOptions& options) {
  std::unique_ptr<Checkpoint> checkpoint;
  if (IsDirectory(path)) {
    NIBBLE_ASSIGN(checkpoint, OpenHfFolder(path));
  } else if (FileExists(path) && path.ends_with(".gguf")) {
    NIBBLE_ASSIGN(checkpoint, OpenGguf(path));
  } else if (FileExists(path)) {
    return Fail(Code::kInvalidArgument,
                "{}: not a model; give a folder with config.json or a .gguf file", path);
  } else {
    return Fail(Code::kNotFound, "{}: no such folder or .gguf file", path);
  }
  NIBBLE_TRY(CheckStoredFormats(*checkpoint, options.quantization));
  return checkpoint;
}

std::vector<int32_t> StopTokenIds(const Checkpoint& checkpoint) {
  if (const auto text = checkpoint.ReadText("generation_config.json")) {
    const auto object = ParseJsonObject(*text, checkpoint.path() + "/generation_config.json");
    if (!object) LogWarning("{}; config.json's eos_token_id is used", object.error().message());
    auto ids = object ? EosTokenIds(*object) : std::vector<int32_t>();
    if (!ids.empty()) return ids;
  }
  auto ids = EosTokenIds(checkpoint.config());
  const auto* nested = checkpoint.config().if_contains("text_config");
  if (ids.empty() && nested != nullptr && nested->is_object())
    ids = EosTokenIds(nested->get_object());
  return ids;
}

}  // namespace nibble::formats
