#include "formats/gguf.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "formats/gguf_config.h"
#include "formats/gguf_tensors.h"
#include "formats/gguf_tokenizer.h"
#include "formats/json_file.h"

namespace nibble::formats {
namespace {

namespace json = boost::json;

// The parts as one set of tensors.
class GgufParts {
 public:
  static Result<GgufParts> Make(std::vector<std::shared_ptr<const GgufFile>> files) {
    GgufParts parts;
    parts.files_ = std::move(files);
    for (const auto& file : parts.files_) {
      for (const GgufTensor& tensor : file->tensors()) {
        if (!parts.index_.emplace(tensor.name, &tensor).second) {
          return Fail(Code::kCorruption, "{}: tensor {} occurs in another part too", file->name(),
                      Quoted(tensor.name));
        }
        parts.tensors_.push_back(&tensor);
      }
    }
    return parts;
  }

  const GgufFile& metadata() const { return *files_[0]; }
  const std::vector<const GgufTensor*>& tensors() const { return tensors_; }
  const std::vector<std::shared_ptr<const GgufFile>>& files() const { return files_; }
  const GgufTensor* Find(std::string_view name) const {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : found->second;
  }

 private:
  std::vector<std::shared_ptr<const GgufFile>> files_;
  std::vector<const GgufTensor*> tensors_;
  std::unordered_map<std::string_view, const GgufTensor*> index_;
};

class GgufCheckpoint : public Checkpoint {
 public:
  GgufCheckpoint(std::string path, std::shared_ptr<const GgufParts> parts, json::object config,
                 std::vector<GgufEntry> entries)
      : parts_(std::move(parts)) {
    path_ = std::move(path);
    config_ = std::move(config);
    for (GgufEntry& entry : entries) {
      tensors_.push_back(std::move(entry.entry));
      sources_.push_back(entry.source);
    }
  }

  Result<std::string> ReadText(std::string_view name) const override {
    const GgufFile& metadata = parts_->metadata();
    const auto serialize = [](const json::object& object) { return json::serialize(object); };
    if (name == "config.json") return json::serialize(config_);
    if (name == "generation_config.json") return MakeGgufGenerationConfig(metadata).map(serialize);
    if (name == "tokenizer.json") return MakeGgufTokenizer(metadata).map(serialize);
    if (name == "tokenizer_config.json") return MakeGgufTokenizerConfig(metadata).map(serialize);
    return Fail(Code::kNotFound, "{}: a GGUF file has no {}", path_, name);
  }

  Result<TensorData> Read(const TensorEntry& entry) const override {
    const auto found = std::ranges::lower_bound(tensors_, entry.name, {}, &TensorEntry::name);
    if (found == tensors_.end() || found->name != entry.name) {
      return Fail(Code::kNotFound, "{}: no tensor {}", path_, Quoted(entry.name));
    }
    return ReadGgufTensor(*found, sources_[static_cast<size_t>(found - tensors_.begin())], parts_);
  }

 private:
  std::shared_ptr<const GgufParts> parts_;
  std::vector<GgufSource> sources_;  // parallel to tensors_
};

constexpr int64_t kMaxParts = 9999;

// Parts that a file says it is one of; 1 for a whole file.
Result<int64_t> PartCount(const GgufFile& file) {
  if (!file.Has("split.count")) return 1;
  NIBBLE_ASSIGN(const int64_t count, file.GetInteger("split.count", 0, kMaxParts));
  return std::max<int64_t>(count, 1);
}

// "model-00002-of-00003.gguf" -> "model".
Result<std::string> SplitStem(const std::string& path, int64_t part, int64_t count) {
  const std::string suffix = fmt::format("-{:05}-of-{:05}.gguf", part + 1, count);
  if (!path.ends_with(suffix)) {
    return Fail(Code::kInvalidArgument,
                "{}: part {} of {} of a split file, but its name does not end in {}", path,
                part + 1, count, suffix);
  }
  return path.substr(0, path.size() - suffix.size());
}

}  // namespace

Result<std::unique_ptr<Checkpoint>> ImportGguf(std::vector<std::shared_ptr<const GgufFile>> files,
                                               const std::string& path) {
  NIBBLE_ASSIGN(auto made, GgufParts::Make(std::move(files)));
  auto parts = std::make_shared<const GgufParts>(std::move(made));
  const FindGgufTensor find = [&parts](std::string_view name) { return parts->Find(name); };
  NIBBLE_ASSIGN(const GgufModel model, ReadGgufModel(parts->metadata(), find));
  NIBBLE_ASSIGN(json::object config, MakeGgufConfig(parts->metadata(), model, find));
  NIBBLE_ASSIGN(auto entries, MapGgufTensors(parts->tensors(), model, find, path));
  return std::make_unique<GgufCheckpoint>(path, std::move(parts), std::move(config),
                                          std::move(entries));
}

Result<std::unique_ptr<Checkpoint>> OpenGguf(const std::string& path) {
  NIBBLE_ASSIGN(auto file, GgufFile::Open(path));
  NIBBLE_ASSIGN(const int64_t count, PartCount(*file));
  std::vector<std::shared_ptr<const GgufFile>> parts;
  if (count == 1) {
    parts.push_back(std::move(file));
    return ImportGguf(std::move(parts), path);
  }
  NIBBLE_ASSIGN(const int64_t given, file->GetInteger("split.no", 0, count - 1));
  NIBBLE_ASSIGN(const std::string stem, SplitStem(path, given, count));
  for (int64_t i = 0; i < count; ++i) {
    NIBBLE_ASSIGN(auto part,
                  GgufFile::Open(fmt::format("{}-{:05}-of-{:05}.gguf", stem, i + 1, count)));
    NIBBLE_TRY(part->GetInteger("split.no", i, i));
    NIBBLE_TRY(part->GetInteger("split.count", count, count));
    parts.push_back(std::move(part));
  }
  return ImportGguf(std::move(parts), path);
}

}  // namespace nibble::formats
