#include "formats/checkpoint.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <utility>

#include "base/file.h"
#include "base/log.h"
#include "formats/float_tensor.h"
#include "formats/gguf.h"
#include "formats/hf_checkpoint.h"
#include "formats/json_file.h"
#include "formats/stored_formats.h"

namespace nibble::formats {
namespace {

namespace json = boost::json;

// What wrappers of a text model put in front of its names, and what the text model alone has there.
constexpr std::array<std::pair<std::string_view, std::string_view>, 6> kPrefixes = {{
    {"model.language_model.", "model."},
    {"language_model.model.", "model."},
    {"language_model.", ""},
    {"layers.", "model.layers."},
    {"embed_tokens.", "model.embed_tokens."},
    {"norm.", "model.norm."},
}};

// A name as a plain text model gives it, in two pieces: nothing is copied.
struct Plain {
  std::string_view prefix;  // in place of a wrapper's, or empty
  std::string_view rest;

  bool operator==(std::string_view name) const {
    return name.size() == prefix.size() + rest.size() && name.starts_with(prefix) &&
           name.ends_with(rest);
  }
};

// Nothing where the name has no wrapper.
std::optional<Plain> Unwrap(std::string_view name) {
  for (const auto& [wrapped, plain] : kPrefixes) {
    if (name.starts_with(wrapped)) return Plain{plain, name.substr(wrapped.size())};
  }
  return std::nullopt;
}

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
  const auto plain = Unwrap(name);
  return plain ? std::string(plain->prefix) + std::string(plain->rest) : std::string(name);
}

void Checkpoint::SetTensors(std::vector<TensorEntry> sorted) {
  tensors_ = std::move(sorted);
  names_.Reset(tensors_.size());
  size_t wrapped = 0;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    names_.Insert(tensors_[i].name, i);
    if (Unwrap(tensors_[i].name)) ++wrapped;
  }
  aliases_.Reset(wrapped);
  ambiguous_.assign(tensors_.size(), false);
  for (size_t i = 0; wrapped > 0 && i < tensors_.size(); ++i) {
    if (!Unwrap(tensors_[i].name)) continue;
    const std::string plain = PlainName(tensors_[i].name);
    const size_t other = FindAlias(plain);
    if (other == NameIndex::kNone) {
      aliases_.Insert(plain, i);
    } else {
      ambiguous_[other] = true;
    }
  }
}

size_t Checkpoint::FindAlias(std::string_view plain) const {
  return aliases_.Find(plain,
                       [&](size_t position) { return *Unwrap(tensors_[position].name) == plain; });
}

const TensorEntry* Checkpoint::Find(std::string_view name) const {
  if (names_.empty()) {
    const auto at = std::ranges::lower_bound(tensors_, name, {}, &TensorEntry::name);
    return at != tensors_.end() && at->name == name ? &*at : nullptr;
  }
  const auto is_name = [&](size_t position) { return tensors_[position].name == name; };
  if (const size_t at = names_.Find(name, is_name); at != NameIndex::kNone) return &tensors_[at];
  const auto wrapped = Unwrap(name);
  const size_t alias = wrapped ? FindAlias(PlainName(name)) : FindAlias(name);
  if (alias == NameIndex::kNone || ambiguous_[alias]) return nullptr;
  return &tensors_[alias];
}

Result<TensorData> Checkpoint::Read(std::string_view name) const {
  const TensorEntry* entry = Find(name);
  if (entry == nullptr) {
    return Fail(Code::kNotFound, "{}: no tensor {} among {}", path_, Quoted(name), tensors_.size());
  }
  return Read(*entry);
}

Result<TensorData> Checkpoint::ReadSlice(const TensorEntry& entry, int64_t begin,
                                         int64_t count) const {
  NIBBLE_CHECK(
      entry.shape.rank() > 0 && begin >= 0 && count >= 0 && begin <= entry.shape[0] - count,
      "slice {} + {} of {}", begin, count, entry.shape.ToString());
  NIBBLE_ASSIGN(TensorData data, Read(entry));
  Shape shape = {count};
  for (int axis = 1; axis < entry.shape.rank(); ++axis) shape.Append(entry.shape[axis]);
  if (count > 0) data.view.data += begin * (data.view.bytes() / entry.shape[0]);
  data.view.shape = shape;
  return data;
}

Result<float> Checkpoint::ReadScalar(const TensorEntry& entry) const {
  if (entry.shape.elements() != 1) {
    return Fail(Code::kCorruption, "{}: tensor {}: shape {}, expected a scalar, [] or [1]", path_,
                Quoted(entry.name), entry.shape.ToString());
  }
  NIBBLE_ASSIGN(const std::vector<float> values, ReadFloats(*this, entry, 0, 1, 1));
  return values[0];
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
